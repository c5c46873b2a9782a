/**
 * The types of the package that are objects, in one module that nothing loads: comments count for what a browser is served.
 */

export {};

/**
 * @typedef {object} ClientOptions
 * @property {string} api Where the HTTP API is, such as `https://chat.example`.
 * @property {string} user
 * @property {string | ((reason: import("./connection.js").TokenReason) => string | Promise<string>)} token A token, or what returns one for a reason: it is called for each connection and before the token expires.
 * @property {string} [device] A label, such as `web` or `bot`; the client adds eight random characters.
 * @property {string | false} [store] In Node: the store's folder; without it everything is in memory. In a browser: false for memory.
 */

/**
 * What `on` can be asked for.
 *
 * @typedef {object} Listeners
 * @property {(conversations: string[]) => void} change These conversations look different now.
 * @property {(status: import("./connection.js").Status, detail: string) => void} status The connection's status has changed.
 * @property {(gap: import("./wire.js").GapEvent) => void} gap Events of a conversation are gone, also from the model. A handler gets it, too, in its place.
 * @property {(typing: { conversation: string, from: string }) => void} typing
 * @property {(users: Record<string, { online: boolean | null, last_seen: number | null }>) => void} presence
 * @property {(error: unknown) => void} error A handler or the store has failed; the client goes on.
 */

/**
 * @typedef {object} LoginOptions
 * @property {string} [device]
 * @property {string} [token] Of an earlier run.
 * @property {(token: string) => void} [save] Called with each new token.
 */

/**
 * @typedef {object} SendOptions
 * @property {string} [media] What the body is: `text` without it.
 * @property {number} [replyTo] The seq of another message.
 * @property {(string | import("./wire.js").SharedFile)[]} [files] Hashes of own uploads, or files that are seen elsewhere.
 */

/**
 * @typedef {object} Contact
 * @property {"contact" | "incoming" | "outgoing"} state
 * @property {string} [message]
 * @property {number} at
 * @property {number | null} [until]
 */

/**
 * What a list of conversations shows.
 *
 * @typedef {object} ConversationView
 * @property {string} id
 * @property {string} kind `direct`, `group` or `channel`; empty until the server has named it.
 * @property {string} title
 * @property {string | null} with The other user of a direct conversation.
 * @property {string | null} role The user's role in a group or channel.
 * @property {string | null | undefined} posting Who may send and edit in a group or channel: `all`, or `admins`, which includes owners.
 * @property {number | null | undefined} mutedUntil Until when (ms) the user is muted there; null for a mute without an end, undefined for none.
 * @property {number} unread
 * @property {number} read The user's read mark.
 * @property {Record<string, number>} reads The others' read marks, as far as they are known.
 * @property {string | null} gone Why the user does not have it any more.
 * @property {boolean} held Whether its part of the server does not answer now, so its events come later.
 */

/**
 * What a list of messages shows. A message of this device that is not acked yet is among them, with its state.
 *
 * @typedef {object} MessageView
 * @property {string | undefined} id Of an own command that is not acked: names its handle.
 * @property {number | undefined} seq Absent until the server has it.
 * @property {number} at
 * @property {string} from
 * @property {string} media
 * @property {any} body Null if it was deleted.
 * @property {number | null} replyTo
 * @property {{ sha256: string }[]} files As the server knows them; of a message that is not acked their hashes alone.
 * @property {boolean} edited
 * @property {boolean} deleted
 * @property {Record<string, string[]>} reactions Users by emoji.
 * @property {import("./handle.js").HandleState} state
 */

/**
 * What a conversation asks of its client.
 *
 * @typedef {object} ConversationOwner
 * @property {string} user
 * @property {import("./http.js").Http} http
 * @property {() => import("./outbox.js").Outbox} outbox Another one once the store was lost, as `events`.
 * @property {() => import("./events.js").Events} events
 * @property {(conversation: string, command: Record<string, unknown>) => import("./handle.js").MessageHandle} queue
 * @property {(command: Record<string, unknown>) => void} send Send a command that nothing waits for.
 * @property {(conversation: string) => void} changed The conversation looks different.
 * @property {(conversation: string) => Promise<void>} read Send its read mark, if there is a connection.
 */

/**
 * @typedef {object} Row
 * @property {string} id Names the command for life; n and device may change while it was never written.
 * @property {number} n
 * @property {string} device
 * @property {string} conversation
 * @property {Record<string, any>} command The command as it goes over the wire, without n and done.
 * @property {number} attempts How often it was, or may have been, written.
 * @property {number} at When it was queued.
 * @property {boolean} [lookup] Its name was taken over: whether it was accepted is looked up in the history.
 * @property {boolean} [answered]
 * @property {Place} [landed] Its event, if that came before its answer.
 */

/**
 * What is known of a command.
 *
 * @typedef {object} Status
 * @property {string} id
 * @property {RowState} state
 * @property {number} n
 * @property {string} device
 * @property {string} conversation
 * @property {Record<string, any>} [command]
 * @property {number} at When it was queued; once it is acked, the server's time.
 * @property {number} [seq] Once it is acked.
 * @property {{ code: string, message: string, retryAt?: number }} [error] Once it has failed.
 */

/**
 * @typedef {object} ConversationRow
 * @property {string} conversation
 * @property {string} kind
 * @property {string} title
 * @property {string | null} with The other user of a direct conversation.
 * @property {string | null} role
 * @property {string | null | undefined} [posting] Who may send and edit.
 * @property {number | null | undefined} [mutedUntil] Until when (ms) the user is muted; null for a mute without an end.
 * @property {number} head The highest seq that the server has named.
 * @property {number} cursor Up to here the model has every event.
 * @property {number} handed Up to here the application's handler has every event.
 * @property {number} oldest Events up to here are not in the model; history has them, unless they have expired.
 * @property {number} count Messages so far.
 * @property {number} readCount Messages up to the user's read mark.
 * @property {number} read The user's read mark.
 * @property {number} readWanted The mark that the user has set on this device.
 * @property {Record<string, number>} reads The others' read marks.
 * @property {{ head: number, unread: number } | null} listed Unread messages as last listed, until `head` is here.
 * @property {string | null} gone Why the user does not have it any more: `deleted`, `removed`, `user_deleted`.
 * @property {boolean} [held] Whether its part of the server does not answer now.
 */

/**
 * @typedef {object} MessageRow
 * @property {string} conversation
 * @property {number} seq
 * @property {boolean} here False: only changes of it are here.
 * @property {number} at
 * @property {string} from
 * @property {string} device
 * @property {number} n
 * @property {number} count
 * @property {string} media
 * @property {any} body
 * @property {number | null} replyTo
 * @property {import("./wire.js").FileInfo[]} [files] Absent in rows of earlier versions.
 * @property {boolean} deleted
 * @property {{ seq: number, body: any }[]} edits The newest first.
 * @property {Record<string, Record<string, { seq: number, on: boolean }>>} reactions By emoji and user.
 */

/**
 * What a batch has led to.
 *
 * @typedef {object} Applied
 * @property {Set<string>} changed
 * @property {Map<string, number>} holes Conversations to ask the history of, and after which seq.
 * @property {Map<string, number>} cursors Of conversations that the server has a lower or no cursor of.
 * @property {boolean} logged Whether there is something to hand over.
 */

/**
 * A transaction. Its calls are awaited one after another, and nothing else is awaited between them: IndexedDB ends a
 * transaction that has no request.
 *
 * @typedef {object} Transaction
 * @property {(table: string, key: string) => Promise<any>} get
 * @property {(table: string, key: string, value: any) => Promise<void>} put
 * @property {(table: string, key: string) => Promise<void>} remove
 * @property {(table: string, prefix: string, options?: RangeOptions) => Promise<[string, any][]>} range
 */

/**
 * @typedef {object} Store
 * @property {boolean} durable Whether its content outlasts the process.
 * @property {<T>(database: import("./store.js").Database, write: boolean, work: (t: Transaction) => Promise<T>) => Promise<T>} transact
 * @property {() => Promise<void>} close
 */

/**
 * @typedef {object} SenderEvents
 * @property {(ids: string[]) => void} moved These commands have a new state.
 * @property {(commands: Status[]) => Promise<MessageRow[]>} landed The messages of these commands that were received.
 * @property {() => void} copied Another client uses a copy of this store.
 * @property {() => void} otherDevice The connection's device name has nothing more to do.
 * @property {(error: unknown) => void} failed
 */

/**
 * @typedef {object} ReceiverEvents
 * @property {(conversations: Set<string>) => void} changed
 * @property {() => void} logged There are events to hand over.
 * @property {(error: unknown) => void} failed
 */

/**
 * What an upload is told of its file.
 *
 * @typedef {object} UploadOptions
 * @property {string} [name] A `File` has one.
 * @property {string} [mime] A `Blob` has one.
 * @property {"image" | "voice" | "video" | "file"} [kind] If it is not to be found out.
 * @property {number} [duration] Of voice and video, in ms.
 * @property {number[]} [waveform] Levels of 0 to 255.
 * @property {(done: number, size: number) => void} [progress]
 * @property {AbortSignal} [signal] Ends the upload with the error `cancelled`. What the server has stays there for a day.
 * @property {(upload: string) => void} [begun] Called with the name of the upload, such as to keep it through a reload.
 * @property {string} [upload] The name of an upload of the same bytes, to go on with it.
 */

/**
 * A frame as it came, the end of a connection, or the answer to a question for a hole.
 *
 * @typedef {LoggedEvent | import("./wire.js").Welcome | import("./wire.js").ConversationsEvent | import("./wire.js").ReceiptEvent
 *   | import("./wire.js").GapEvent | { type: "reset" }
 *   | { type: "page", conversation: string, events: LoggedEvent[], more: boolean }} Item
 */

/** @typedef {LoggedEvent | import("./wire.js").GapEvent} HandedEvent */

/** @typedef {(event: HandedEvent) => unknown} Handler */

/**
 * @typedef {import("./wire.js").MessageEvent | import("./wire.js").EditEvent | import("./wire.js").DeleteEvent | import("./wire.js").ReactEvent | import("./wire.js").MemberEvent | import("./wire.js").TitleEvent} LoggedEvent
 */

/** @typedef {{ conversation: string, device: string, n: number, seq: number, at: number }} Place Where a command is in its log. */

/**
 * @typedef {{ row: Row, result: { seq: number, at: number, conversation: string } | { error: NonNullable<Status["error"]> } }} Answer
 */

/** @typedef {"queued" | "sent" | "acked" | "failed" | "cancelled"} RowState */

/**
 * `before` and `from` are keys; `reverse` begins with the highest key.
 *
 * @typedef {{ limit?: number, reverse?: boolean, before?: string, from?: string }} RangeOptions
 */

/**
 * @typedef {{ action: "retry", afterMs?: number } | { action: "token", reason: "unauthorized" | "token_expired", afterMs?: undefined } | { action: "replaced" } | { action: "stop", reason: string }} Next
 */

/**
 * @typedef {object} ElectionEvents
 * @property {() => void} lead
 * @property {() => void} follow
 * @property {(message: any) => void} message What another tab has posted.
 * @property {() => void} wake The page has become visible, or the network is back.
 * @property {() => string} state The connection's state, for followers to show.
 */

/**
 * @typedef {object} ConnectionEvents
 * @property {(state: import("./connection.js").Status, detail: string) => void} state
 * @property {(frame: any) => void} frame Every event but answers to `request`.
 * @property {() => Promise<Record<string, unknown>>} hello The fields of `hello` beside the token.
 * @property {() => void} replaced Another session of this device was opened: `restart` follows under another name.
 */

/**
 * @typedef {object} SenderParts
 * @property {import("./outbox.js").Outbox} outbox
 * @property {import("./connection.js").Connection} connection
 * @property {SenderEvents} events
 */

/**
 * @typedef {object} ReceiverParts
 * @property {import("./events.js").Events} events
 * @property {import("./connection.js").Connection} connection
 * @property {() => Promise<void>} ready Resolves when this client may write.
 * @property {ReceiverEvents} listeners
 */

/**
 * @typedef {object} ConnectionParts
 * @property {import("./http.js").Http} http
 * @property {(reason: import("./connection.js").TokenReason) => Promise<string>} token
 * @property {ConnectionEvents} events
 */

/**
 * @typedef {object} HandingParts
 * @property {import("./events.js").Events} events
 * @property {Handler} handler
 * @property {(cursors: Map<string, number>) => void} stored These are stored: they may be acked.
 * @property {(error: unknown) => void} failed
 */

/**
 * @typedef {object} HandleActions
 * @property {(id: string) => Promise<Status | undefined>} retry
 * @property {(id: string) => Promise<boolean>} cancel
 */

/**
 * What profiles and moderation need: a client, or `caller` of `moderation.js`.
 *
 * @typedef {object} Caller
 * @property {(method: string, path: string, body?: unknown) => Promise<any>} call
 */

/**
 * A user's profile as others see it.
 *
 * @typedef {object} Profile
 * @property {string} user
 * @property {string} name
 * @property {string | null} about
 * @property {string | null} avatar The hash of a picture: `client.media.links([avatar], "@" + user)`.
 * @property {{ text: string, until: number | null } | null} status
 * @property {any} extra
 */

/**
 * Who may write to the user, add them to groups and see their presence; whether requests reach them, and whether others get their receipts.
 *
 * @typedef {object} Privacy
 * @property {"everyone" | "contacts"} messages
 * @property {"everyone" | "contacts"} groups
 * @property {"everyone" | "contacts"} presence
 * @property {"everyone" | "nobody"} requests
 * @property {"everyone" | "nobody"} receipts
 */

/** @typedef {Profile & { privacy: Privacy, roles: string[] }} Me */

/**
 * @typedef {object} ProfileChange
 * @property {string | null} [name]
 * @property {string | null} [about]
 * @property {string | null} [avatar] The hash of a picture that was uploaded within a day.
 * @property {{ text: string, until?: number | null } | null} [status]
 * @property {any} [extra]
 * @property {Partial<Privacy>} [privacy]
 */

/**
 * @typedef {object} Restraint
 * @property {number | null} [until] Its end, in milliseconds since the epoch; it has none without it.
 * @property {string} [reason] For the audit; the user does not see it.
 */

/**
 * @typedef {object} Ban
 * @property {string} user
 * @property {number | null} until
 * @property {number} at
 * @property {string | null} by Null: the server, or a moderator whom the caller may not see.
 * @property {string} reason
 */

/**
 * What a group or channel allows.
 *
 * @typedef {object} Rules
 * @property {"all" | "admins"} posting Who may send and edit.
 * @property {"all" | "admins"} adding Who may add members and readers.
 * @property {"all" | "members"} reacting Whether readers may react.
 * @property {number} slow_s The seconds between two messages of a member; 0 for none.
 */

/**
 * @typedef {object} Report
 * @property {string} id
 * @property {number} at
 * @property {string} reporter
 * @property {string | null} conversation
 * @property {number | null} seq
 * @property {string} user The author of the message, or the user who is reported.
 * @property {string} reason
 * @property {"open" | "resolved" | "dismissed"} state
 * @property {string | null} note
 * @property {any} event A copy of the message.
 */

/**
 * @typedef {object} AuditEntry
 * @property {string} id
 * @property {number} at
 * @property {string | null} actor Null: the server.
 * @property {string} action
 * @property {{ user?: string, conversation?: string, seq?: number, report?: string }} target
 * @property {string | null} reason
 */
