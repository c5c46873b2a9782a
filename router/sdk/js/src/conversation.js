/** One conversation, as an application uses it. */

import { newConversation, unreadOf } from "./model.js";
import { fromWire, received, toWire } from "./values.js";

const NEWEST = 50;

/** @import { ConversationView, MessageView, ConversationOwner, SendOptions } from "./types.js" */

export class Conversation {
  /**
   * @internal
   * @param {ConversationOwner} owner
   * @param {string} target
   */
  constructor(owner, target) {
    this._owner = owner;
    this._target = target;
    /** @type {string} */
    this.id = target.startsWith("@") ? `d:${[owner.user, target.slice(1)].sort().join(":")}` : target;
  }

  /**
   * Send a message. Returns at once; `await handle.stored` for the promise that it will not be lost.
   *
   * @param {any} body
   * @param {SendOptions} [options]
   */
  send(body, { media = "text", replyTo, files } = {}) {
    const more = { ...(replyTo === undefined ? {} : { reply_to: replyTo }), ...(files?.length ? { files } : {}) };
    return this._owner.queue(this.id, { type: "send", to: this._target, body: toWire(body), media, ...more });
  }

  /** @param {number} seq @param {any} body */
  edit(seq, body) {
    return this._owner.queue(this.id, { type: "edit", conversation: this.id, seq, body: toWire(body) });
  }

  /** @param {number} seq */
  delete(seq) {
    return this._owner.queue(this.id, { type: "delete", conversation: this.id, seq });
  }

  /** @param {number} seq @param {string} emoji @param {{ remove?: boolean }} [options] */
  react(seq, emoji, { remove = false } = {}) {
    return this._owner.queue(this.id, { type: "react", conversation: this.id, seq, emoji, remove });
  }

  /** Mark as read up to a seq, or all that is here; it is kept and sent when there is a connection. @param {number} [seq] */
  async markRead(seq) {
    const events = this._owner.events();
    await events.wantRead(this.id, seq ?? (await events.conversation(this.id))?.cursor ?? 0);
    this._owner.changed(this.id);
    await this._owner.read(this.id);
  }

  /** Say that the user is typing, if there is a connection. */
  typing() {
    this._owner.send({ type: "typing", to: this._target });
  }

  /** @returns {Promise<ConversationView>} */
  async view() {
    return viewOf((await this._owner.events().conversation(this.id)) ?? newConversation(this.id, 0, this._owner.user));
  }

  /**
   * The newest messages before a seq, ascending; at the end those that are not acked yet.
   *
   * @param {{ limit?: number, before?: number }} [options]
   * @returns {Promise<MessageView[]>}
   */
  async messages({ limit = NEWEST, before = Infinity } = {}) {
    const { user } = this._owner;
    const events = this._owner.events();
    // The outbox first: what is acked and received after this line is dropped as received, instead of missed by both.
    const own = before === Infinity ? await this._owner.outbox().pending(this.id) : [];
    const rows = await events.messages(this.id, before, limit);
    const { cursor = 0 } = (await events.conversation(this.id)) ?? {};
    const here = new Set(rows.map((row) => `${row.from} ${row.device} ${row.n}`));
    const pending = own.filter(
      ({ command, device, n, seq = Infinity }) => command?.type === "send" && !here.has(`${user} ${device} ${n}`) && seq > cursor,
    );
    return [...rows.map(messageOf), ...pending.map((status) => pendingOf(status, user))];
  }

  /**
   * Events from the server, ascending: the last ones, those before a seq, or those after one.
   *
   * @param {{ before?: number, after?: number, limit?: number }} [options]
   * @returns {Promise<import("./types.js").LoggedEvent[]>}
   */
  async history(options = {}) {
    return (await this._page(options)).events.map(received);
  }

  /** @param {{ before?: number, after?: number, limit?: number }} options */
  _page({ before, after, limit = NEWEST }) {
    const range = before !== undefined ? `before=${before}&` : after !== undefined ? `after=${after}&` : "";
    return this._owner.http.call("GET", `/v1/conversations/${encodeURIComponent(this.id)}/events?${range}limit=${limit}`);
  }

  /**
   * Read older messages from the server into the model; false if there are none.
   *
   * @param {number} [limit]
   * @returns {Promise<boolean>}
   */
  async loadOlder(limit = NEWEST) {
    const events = this._owner.events();
    const row = await events.conversation(this.id);
    if (!row || row.oldest === 0) return false;
    const page = await this._page({ before: row.oldest + 1, limit });
    await events.older(this.id, page.events, page.more);
    this._owner.changed(this.id);
    return page.events.length > 0;
  }

  /** Read the others' read marks anew: when the conversation is opened, and whenever the client is live again. */
  async loadReads() {
    const { reads } = await this._owner.http.call("GET", `/v1/conversations/${encodeURIComponent(this.id)}/reads`);
    await this._owner.events().reads(this.id, reads);
    this._owner.changed(this.id);
  }
}

/** @param {import("./types.js").ConversationRow} row @returns {ConversationView} */
export function viewOf(row) {
  const { conversation: id, kind, title, role, posting, mutedUntil, read, reads, gone, held = false } = row;
  return { id, kind, title, with: row.with, role, posting, mutedUntil, unread: unreadOf(row), read, reads, gone, held };
}

/** @param {import("./types.js").MessageRow} row @returns {MessageView} */
function messageOf(row) {
  const { seq, at, from, media, replyTo, files = [], deleted, edits } = row;
  /** @type {Record<string, string[]>} */
  const reactions = {};
  for (const [emoji, users] of Object.entries(row.reactions)) {
    const on = Object.keys(users).filter((user) => users[user]?.on);
    if (on.length) reactions[emoji] = on;
  }
  const body = deleted ? null : fromWire(edits[0] ? edits[0].body : row.body);
  return { id: undefined, seq, at, from, media, body, replyTo, files: deleted ? [] : files, edited: edits.length > 0, deleted, reactions, state: "acked" };
}

/** @param {import("./types.js").Status} status @param {string} from @returns {MessageView} */
function pendingOf({ id, seq, at, command = {}, state }, from) {
  const body = fromWire(command.body);
  const replyTo = command.reply_to ?? null;
  const files = (command.files ?? []).map((/** @type {any} */ file) => ({ sha256: file.sha256 ?? file }));
  return { id, seq, at, from, media: command.media, body, replyTo, files, edited: false, deleted: false, reactions: {}, state };
}
