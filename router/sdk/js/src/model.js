/** The model of a conversation and of a message, and what each event makes of them. Pure. Its rules: README. */

const EDITS_KEPT = 20;

/** @import { ConversationRow, MessageRow, LoggedEvent } from "./types.js" */

/**
 * A direct conversation is known by its id, `d:<user>:<user>`; all others are listed before their first event.
 *
 * @param {string} conversation
 * @param {number} cursor
 * @param {string} user
 * @returns {ConversationRow}
 */
export function newConversation(conversation, cursor, user) {
  const [kind, ...users] = conversation.split(":");
  const direct = kind === "d" && users.length === 2;
  return {
    conversation, kind: direct ? "direct" : "", title: "", with: direct ? (users.find((one) => one !== user) ?? user) : null, role: null,
    head: cursor, cursor, handed: cursor, oldest: cursor, count: 0, readCount: 0, read: 0, readWanted: 0, reads: {}, listed: null, gone: null,
  };
}

/** @param {string} conversation @param {number} seq @returns {MessageRow} */
function newMessage(conversation, seq) {
  return {
    conversation, seq, here: false, at: 0, from: "", device: "", n: 0, count: 0, media: "", body: null, replyTo: null,
    deleted: false, edits: [], reactions: {},
  };
}

/** The seq of the message that an event is about; 0 if it is about none. @param {LoggedEvent} event */
export function messageOf(event) {
  if (event.type === "message") return event.seq;
  return "target" in event ? event.target : 0;
}

/** @param {MessageRow | undefined} known @param {LoggedEvent} event @returns {MessageRow} */
export function changeMessage(known, event) {
  const message = known ?? newMessage(event.conversation, messageOf(event));
  switch (event.type) {
    case "message": {
      const { at, from, device, n, count, media, body, reply_to: replyTo = null, files = [] } = event;
      return { ...message, here: true, at, from, device, n, count, media, body: message.deleted ? null : body, replyTo, files };
    }
    case "edit": {
      const edits = [...message.edits.filter(({ seq }) => seq !== event.seq), { seq: event.seq, body: event.body }];
      edits.sort((a, b) => b.seq - a.seq);
      return { ...message, edits: message.deleted ? [] : edits.slice(0, EDITS_KEPT) };
    }
    case "delete":
      return { ...message, deleted: true, body: null, edits: [], reactions: {} };
    case "react": {
      const users = message.reactions[event.emoji] ?? {};
      if (message.deleted || (users[event.from]?.seq ?? 0) >= event.seq) return message;
      const changed = { ...users, [event.from]: { seq: event.seq, on: !event.remove } };
      return { ...message, reactions: { ...message.reactions, [event.emoji]: changed } };
    }
    default:
      return message;
  }
}

/** The seq of the newest change of a message; 0 if it has none that is kept. @param {MessageRow} message */
export function changedAt(message) {
  const reacted = Object.values(message.reactions).flatMap((users) => Object.values(users).map(({ seq }) => seq));
  return Math.max(0, ...message.edits.map(({ seq }) => seq), ...reacted);
}

/**
 * A failover took back the events between: what is left of a message; undefined if nothing is.
 *
 * @param {MessageRow} message
 * @param {number} from
 * @param {number} to
 */
export function takeBack(message, from, to) {
  /** @param {number} seq */
  const void_ = (seq) => seq >= from && seq <= to;
  if (void_(message.seq)) return undefined;
  /** @type {MessageRow["reactions"]} */
  const reactions = {};
  for (const [emoji, users] of Object.entries(message.reactions)) {
    reactions[emoji] = Object.fromEntries(Object.entries(users).filter(([, { seq }]) => !void_(seq)));
  }
  return { ...message, edits: message.edits.filter(({ seq }) => !void_(seq)), reactions };
}

/**
 * The next event of a conversation's log.
 *
 * @param {ConversationRow} row
 * @param {LoggedEvent} event
 * @param {string} user
 * @returns {ConversationRow}
 */
export function advance(row, event, user) {
  let next = { ...row, cursor: event.seq, head: Math.max(row.head, event.seq), count: event.count };
  if (event.type === "title") {
    next.title = event.title;
    next.posting = event.posting ?? next.posting;
  }
  if (event.type === "member" && event.user === user) {
    next.role = event.action === "remove" ? null : (event.role ?? next.role);
    if (event.action.endsWith("mute")) next.mutedUntil = event.until;
  }
  if (event.type === "message" && event.from === user && !event.server) {
    next.read = Math.max(next.read, event.seq);
    next.readCount = event.count;
  }
  if (event.type === "message" && event.from === row.with && !event.server) {
    next.reads = { ...row.reads, [event.from]: event.seq }; // an author has read what is above it
  }
  if (next.listed && next.cursor >= next.listed.head) {
    if (next.cursor === next.listed.head) next.readCount = Math.max(next.readCount, event.count - next.listed.unread);
    next.listed = null;
  }
  return next;
}

/**
 * What a list says of a conversation. It never takes back what the model knows.
 *
 * @param {ConversationRow | undefined} known
 * @param {import("./wire.js").ConversationState} entry
 * @param {string} user
 * @returns {ConversationRow}
 */
export function listed(known, entry, user) {
  const row = known ?? newConversation(entry.conversation, entry.cursor ?? 0, user);
  if (entry.gone) return { ...row, kind: entry.kind || row.kind, gone: entry.reason ?? "removed" };
  const head = entry.head ?? row.head;
  const unread = entry.unread ?? 0;
  const next = {
    ...row,
    kind: entry.kind, title: entry.title ?? row.title, with: entry.with ?? null, role: entry.role ?? null, gone: null, held: false,
    posting: entry.posting, mutedUntil: entry.muted_until,
    head: Math.max(row.head, head), read: Math.max(row.read, entry.read ?? 0),
  };
  if (next.cursor === head && next.count > 0) next.readCount = Math.max(next.readCount, next.count - unread);
  else if (next.cursor <= head) next.listed = { head, unread };
  return next;
}

/**
 * @param {ConversationRow} row
 * @param {string} reader
 * @param {number} seq
 * @param {string} user
 * @param {number} count Messages up to that seq.
 * @returns {ConversationRow}
 */
export function readTo(row, reader, seq, user, count) {
  if (reader !== user) return { ...row, reads: { ...row.reads, [reader]: Math.max(row.reads[reader] ?? 0, seq) } };
  if (seq <= row.read) return row;
  return { ...row, read: seq, readCount: Math.max(row.readCount, count), listed: seq >= (row.listed?.head ?? 0) ? null : row.listed };
}

/** @param {ConversationRow} row */
export function unreadOf(row) {
  return row.listed ? row.listed.unread : Math.max(0, row.count - row.readCount);
}
