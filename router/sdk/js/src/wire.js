/** Types of the wire, generated from the schema that the router serves (`/v1/schema.json`): `make sdk`. */

export {};

/**
 * @typedef {object} FileInfo
 * @property {string} sha256
 * @property {string} type
 * @property {"file" | "image" | "video" | "voice"} kind
 * @property {number} size
 * @property {string} [name]
 * @property {number | null} [width]
 * @property {number | null} [height]
 * @property {number | null} [duration]
 * @property {number[] | null} [waveform]
 * @property {number[]} [previews]
 * @property {Poster | null} [poster]
 */

/**
 * @typedef {object} Poster
 * @property {string} sha256
 * @property {string} type
 * @property {number} size
 * @property {number} width
 * @property {number} height
 * @property {number[]} [previews]
 */

/**
 * @typedef {object} SharedFile
 * @property {string} sha256
 * @property {string | null} [in]
 * @property {string | null} [poster]
 */

/**
 * @typedef {object} Hello
 * @property {"hello"} type
 * @property {string | number | null} [id]
 * @property {string | null} [token]
 * @property {string} [device]
 * @property {string | null} [instance]
 * @property {Record<string, number>} [cursors]
 */

/**
 * @typedef {object} Auth
 * @property {"auth"} type
 * @property {string | number | null} [id]
 * @property {string} token
 */

/**
 * @typedef {object} Send
 * @property {"send"} type
 * @property {string | number | null} [id]
 * @property {string} to
 * @property {number} n
 * @property {any} body
 * @property {string} [media]
 * @property {number | null} [reply_to]
 * @property {number} [done]
 * @property {(string | SharedFile)[]} [files]
 */

/**
 * @typedef {object} Edit
 * @property {"edit"} type
 * @property {string | number | null} [id]
 * @property {string} conversation
 * @property {number} seq
 * @property {number} n
 * @property {any} body
 * @property {number} [done]
 */

/**
 * @typedef {object} Delete
 * @property {"delete"} type
 * @property {string | number | null} [id]
 * @property {string} conversation
 * @property {number} seq
 * @property {number} n
 * @property {number} [done]
 */

/**
 * @typedef {object} React
 * @property {"react"} type
 * @property {string | number | null} [id]
 * @property {string} conversation
 * @property {number} seq
 * @property {number} n
 * @property {string} emoji
 * @property {boolean} [remove]
 * @property {number} [done]
 */

/**
 * @typedef {object} Ack
 * @property {"ack"} type
 * @property {string | number | null} [id]
 * @property {string | null} [conversation]
 * @property {number} [seq]
 * @property {Record<string, number>} [cursors]
 */

/**
 * @typedef {object} Read
 * @property {"read"} type
 * @property {string | number | null} [id]
 * @property {string} conversation
 * @property {number} seq
 */

/**
 * @typedef {object} Typing
 * @property {"typing"} type
 * @property {string | number | null} [id]
 * @property {string} to
 */

/**
 * @typedef {object} History
 * @property {"history"} type
 * @property {string | number | null} [id]
 * @property {string} conversation
 * @property {number | null} [before]
 * @property {number | null} [after]
 * @property {number} [limit]
 */

/**
 * @typedef {object} Presence
 * @property {"presence"} type
 * @property {string | number | null} [id]
 * @property {string[]} users
 * @property {boolean} [watch]
 */

/**
 * @typedef {object} State
 * @property {"state"} type
 * @property {string | number | null} [id]
 * @property {string} key
 * @property {any} value
 * @property {number | null} [expect]
 */

/**
 * @typedef {object} Ping
 * @property {"ping"} type
 * @property {string | number | null} [id]
 */

/**
 * @typedef {object} Welcome
 * @property {"welcome"} type
 * @property {string | number | null} [id]
 * @property {string} user
 * @property {string} device
 * @property {string} session
 * @property {string} gateway
 * @property {number} heartbeat_s
 * @property {number} expires_at
 * @property {Limits} limits
 * @property {number} state
 * @property {ConversationState[]} conversations
 * @property {boolean} more
 */

/**
 * @typedef {object} Limits
 * @property {number} frame_bytes
 * @property {number} body_bytes
 * @property {number} sends_per_s
 * @property {number} send_burst
 */

/**
 * @typedef {object} ConversationState
 * @property {string} conversation
 * @property {string} kind
 * @property {string} [title]
 * @property {number} [head]
 * @property {number} [cursor]
 * @property {number} [read]
 * @property {number} [unread]
 * @property {string | null} [with]
 * @property {string | null} [role]
 * @property {string | null} [posting]
 * @property {number | null} [muted_until]
 * @property {boolean} [gone]
 * @property {string | null} [reason]
 * @property {boolean} [held]
 */

/**
 * @typedef {object} ConversationsEvent
 * @property {"conversations"} type
 * @property {ConversationState[]} conversations
 * @property {boolean} more
 */

/**
 * @typedef {object} MessageEvent
 * @property {"message"} type
 * @property {string} conversation
 * @property {number} seq
 * @property {number} prev
 * @property {number} count
 * @property {number} at
 * @property {string} from
 * @property {string} device
 * @property {number} n
 * @property {string} media
 * @property {any} body
 * @property {number | null} [reply_to]
 * @property {boolean} [server]
 * @property {FileInfo[]} [files]
 */

/**
 * @typedef {object} EditEvent
 * @property {"edit"} type
 * @property {string} conversation
 * @property {number} seq
 * @property {number} prev
 * @property {number} count
 * @property {number} at
 * @property {string} from
 * @property {string} device
 * @property {number} n
 * @property {number} target
 * @property {any} body
 */

/**
 * @typedef {object} DeleteEvent
 * @property {"delete"} type
 * @property {string} conversation
 * @property {number} seq
 * @property {number} prev
 * @property {number} count
 * @property {number} at
 * @property {string} from
 * @property {string} device
 * @property {number} n
 * @property {number} target
 */

/**
 * @typedef {object} ReactEvent
 * @property {"react"} type
 * @property {string} conversation
 * @property {number} seq
 * @property {number} prev
 * @property {number} count
 * @property {number} at
 * @property {string} from
 * @property {string} device
 * @property {number} n
 * @property {number} target
 * @property {string} emoji
 * @property {boolean} remove
 */

/**
 * @typedef {object} MemberEvent
 * @property {"member"} type
 * @property {string} conversation
 * @property {number} seq
 * @property {number} prev
 * @property {number} count
 * @property {number} at
 * @property {string} from
 * @property {string} device
 * @property {number} n
 * @property {string} user
 * @property {string} action
 * @property {string | null} [role]
 * @property {boolean} [banned]
 * @property {number | null} [until]
 */

/**
 * @typedef {object} TitleEvent
 * @property {"title"} type
 * @property {string} conversation
 * @property {number} seq
 * @property {number} prev
 * @property {number} count
 * @property {number} at
 * @property {string} from
 * @property {string} device
 * @property {number} n
 * @property {string} title
 * @property {string | null} [reacting]
 * @property {string | null} [avatar]
 * @property {string | null} [posting]
 * @property {string | null} [adding]
 * @property {number | null} [slow_s]
 */

/**
 * @typedef {object} AckEvent
 * @property {"ack"} type
 * @property {string | number | null} [id]
 * @property {number} n
 * @property {string} conversation
 * @property {number} seq
 * @property {number} at
 * @property {boolean} duplicate
 */

/**
 * @typedef {object} ReceiptEvent
 * @property {"receipt"} type
 * @property {string} conversation
 * @property {string} user
 * @property {number} read
 */

/**
 * @typedef {object} TypingEvent
 * @property {"typing"} type
 * @property {string} conversation
 * @property {string} from
 */

/**
 * @typedef {object} PresenceEvent
 * @property {"presence"} type
 * @property {string | number | null} [id]
 * @property {Record<string, PresenceState>} users
 */

/**
 * @typedef {object} PresenceState
 * @property {boolean | null} online
 * @property {number | null} last_seen
 */

/**
 * @typedef {object} StateEvent
 * @property {"state"} type
 * @property {string | number | null} [id]
 * @property {string} [key]
 * @property {any} [value]
 * @property {number} version
 * @property {number} [prev]
 */

/**
 * @typedef {object} ProfileEvent
 * @property {"profile"} type
 * @property {string} user
 */

/**
 * @typedef {object} GapEvent
 * @property {"gap"} type
 * @property {string} conversation
 * @property {number} from
 * @property {number} to
 * @property {string} reason
 */

/**
 * @typedef {object} DrainEvent
 * @property {"drain"} type
 * @property {number} retry_after
 */

/**
 * @typedef {object} Ok
 * @property {"ok"} type
 * @property {string | number | null} [id]
 * @property {number} expires_at
 */

/**
 * @typedef {object} HistoryEvent
 * @property {"history"} type
 * @property {string | number | null} [id]
 * @property {string} conversation
 * @property {any[]} events
 * @property {boolean} more
 */

/**
 * @typedef {object} Pong
 * @property {"pong"} type
 * @property {string | number | null} [id]
 * @property {number} at
 */

/**
 * @typedef {object} ErrorEvent
 * @property {"error"} type
 * @property {string | number | null} [id]
 * @property {string} code
 * @property {string} message
 * @property {number | null} [retry_after]
 * @property {number | null} [n]
 * @property {string | null} [reason]
 * @property {number | null} [next]
 * @property {number | null} [version]
 */

/** @typedef {Hello | Auth | Send | Edit | Delete | React | Ack | Read | Typing | History | Presence | State | Ping} AnyCommand */

/** @typedef {Welcome | ConversationsEvent | MessageEvent | EditEvent | DeleteEvent | ReactEvent | MemberEvent | TitleEvent | AckEvent | ReceiptEvent | TypingEvent | PresenceEvent | StateEvent | ProfileEvent | GapEvent | DrainEvent | Ok | HistoryEvent | Pong | ErrorEvent} AnyEvent */
