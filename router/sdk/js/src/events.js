/** What was received: events, lists, receipts and gaps, applied to the model together with the cursor. Its rules: README. */

import { LAST, check, key, prefix, raiseEpoch } from "./store.js";
import { advance, changedAt, changeMessage, listed, messageOf, newConversation, readTo, takeBack } from "./model.js";

const KEPT = 1000; // messages of a conversation
const KEPT_MOST = 1200;

/** @import { LoggedEvent, ConversationRow, MessageRow, HandedEvent, Item, Applied } from "./types.js" */

/** @typedef {{ device: string, epoch: number, arrival: number }} Meta */

export class Events {
  /**
   * @param {import("./types.js").Store} store
   * @param {string} user
   */
  constructor(store, user) {
    this._store = store;
    this._user = user;
    /** Whether the application has a handler. */
    this.handles = false;
    this.epoch = 0;
    /** @type {Map<string, LoggedEvent[]>} what came after a hole */
    this._held = new Map();
  }

  /** The device name that this half of the store was written under. @returns {Promise<string | undefined>} */
  device() {
    return this._store.transact("events", false, async (t) => (await t.get("meta", "meta"))?.device);
  }

  /**
   * Take a device name. What another name left is of another store, and is removed, unless the store itself took a new name.
   *
   * @param {string} device
   * @param {boolean} [keep]
   */
  adopt(device, keep = false) {
    return this._store.transact("events", true, async (t) => {
      const meta = await t.get("meta", "meta");
      if (meta?.device === device) return;
      if (keep && meta) return t.put("meta", "meta", { ...meta, device });
      for (const table of ["conversations", "messages", "ids", "log"]) {
        for (const [k] of await t.range(table, "")) await t.remove(table, k);
      }
      await t.put("meta", "meta", { device, epoch: meta?.epoch ?? 0, arrival: meta?.arrival ?? 0 });
    });
  }

  async raiseEpoch() {
    this.epoch = await raiseEpoch(this._store, "events");
  }

  /** @param {Item[]} items @returns {Promise<Applied>} */
  async apply(items) {
    const held = new Map([...this._held].map(([conversation, events]) => [conversation, [...events]]));
    const applied = await this._store.transact("events", true, async (t) => {
      const batch = new Batch(t, await check(t, this.epoch), held, this._user, this.handles);
      for (const item of items) await batch.take(item);
      return batch.end();
    });
    this._held = held;
    return applied;
  }

  /**
   * The next events for the handler.
   *
   * @param {number} after
   * @param {number} limit
   * @returns {Promise<{ arrival: number, event: HandedEvent }[]>}
   */
  unhanded(after, limit) {
    return this._store.transact("events", false, async (t) => {
      return (await t.range("log", "", { from: key(after + 1), limit })).map(([, value]) => value);
    });
  }

  /**
   * The handler has these: store that, after which their cursors may be acked.
   *
   * @param {{ arrival: number, event: HandedEvent }[]} entries
   * @returns {Promise<Map<string, number>>}
   */
  handed(entries) {
    return this._store.transact("events", true, async (t) => {
      await check(t, this.epoch);
      /** @type {Map<string, number>} */
      const cursors = new Map();
      for (const { arrival, event } of entries) {
        await t.remove("log", key(arrival));
        const seq = event.type === "gap" ? event.to : event.seq;
        cursors.set(event.conversation, Math.max(seq, cursors.get(event.conversation) ?? 0));
      }
      for (const [conversation, seq] of cursors) {
        const row = await t.get("conversations", conversation);
        if (row) await t.put("conversations", conversation, { ...row, handed: Math.max(row.handed, seq) });
      }
      return cursors;
    });
  }

  /** @returns {Promise<ConversationRow[]>} */
  conversations() {
    return this._store.transact("events", false, async (t) => (await t.range("conversations", "")).map(([, row]) => row));
  }

  /** @param {string} conversation @returns {Promise<ConversationRow | undefined>} */
  conversation(conversation) {
    return this._store.transact("events", false, (t) => t.get("conversations", conversation));
  }

  /**
   * The newest messages before a seq, ascending.
   *
   * @param {string} conversation
   * @param {number} before
   * @param {number} limit
   * @returns {Promise<MessageRow[]>}
   */
  messages(conversation, before, limit) {
    return this._store.transact("events", false, async (t) => {
      /** @type {MessageRow[]} */
      const found = [];
      let end = Number.isFinite(before) ? key(conversation, before) : prefix(conversation) + LAST;
      for (let wanted = limit; wanted > 0; wanted = limit - found.length) {
        const rows = await t.range("messages", prefix(conversation), { reverse: true, before: end, limit: wanted });
        found.push(...rows.map(([, row]) => row).filter((row) => row.here));
        if (rows.length < wanted) break;
        end = String(rows.at(-1)?.[0]);
      }
      return found.reverse();
    });
  }

  /** The messages of commands that were received. @param {import("./types.js").Status[]} commands */
  landed(commands) {
    return this._store.transact("events", false, async (t) => {
      const found = [];
      for (const { conversation, device, n } of commands) {
        const seq = await t.get("ids", key(conversation, this._user, device, n));
        if (seq) found.push(await t.get("messages", key(conversation, seq)));
      }
      return found;
    });
  }

  /** A page of older history. @param {string} conversation @param {LoggedEvent[]} events @param {boolean} more */
  older(conversation, events, more) {
    return this._store.transact("events", true, async (t) => {
      const row = await t.get("conversations", conversation);
      if (!row) return;
      for (const event of events) if (event.seq <= row.oldest) await storeMessage(t, event);
      const oldest = more ? (events[0]?.seq ?? 1) - 1 : 0;
      await t.put("conversations", conversation, { ...row, oldest: Math.min(row.oldest, oldest) });
    });
  }

  /** The user has read up to here: kept until the server has said so, too. @param {string} conversation @param {number} seq */
  wantRead(conversation, seq) {
    return this.reads(conversation, { [this._user]: seq }, seq);
  }

  /** Read marks as the server has them. @param {string} conversation @param {Record<string, number>} reads */
  reads(conversation, reads, wanted = 0) {
    return this._store.transact("events", true, async (t) => {
      let row = await t.get("conversations", conversation);
      if (!row) return;
      for (const [user, seq] of Object.entries(reads)) row = await marked(t, row, user, seq, this._user);
      await t.put("conversations", conversation, { ...row, readWanted: Math.max(row.readWanted, wanted) });
    });
  }
}

/** One transaction of `apply`. */
class Batch {
  /**
   * @param {import("./types.js").Transaction} t
   * @param {Meta} meta
   * @param {Map<string, LoggedEvent[]>} held
   * @param {string} user
   * @param {boolean} handles
   */
  constructor(t, meta, held, user, handles) {
    this._t = t;
    this._meta = meta;
    this._arrival = meta.arrival;
    this._held = held;
    this._user = user;
    this._handles = handles;
    /** @type {Map<string, ConversationRow>} */
    this._rows = new Map();
    /** @type {Applied} */
    this._applied = { changed: new Set(), holes: new Map(), cursors: new Map(), logged: false };
  }

  /** @param {Item} item */
  async take(item) {
    switch (item.type) {
      case "page":
        return this._page(item);
      case "welcome":
      case "conversations":
        for (const entry of item.conversations) await this._listed(entry);
        return undefined;
      case "receipt":
        return this._receipt(item);
      case "gap":
        return this._gap(item);
      case "reset": // the connection ended: what was held comes again on the next one
        this._held.clear();
        this._applied.holes.clear();
        return undefined;
      default: // of a later version, if it has no seq
        return item.seq ? this._event(item, false) : undefined;
    }
  }

  async end() {
    for (const [conversation, row] of this._rows) await this._t.put("conversations", conversation, row);
    if (this._arrival !== this._meta.arrival) await this._t.put("meta", "meta", { ...this._meta, arrival: this._arrival });
    return this._applied;
  }

  /** @param {string} conversation @returns {Promise<ConversationRow | undefined>} */
  async _row(conversation) {
    return this._rows.get(conversation) ?? this._t.get("conversations", conversation);
  }

  /** @param {ConversationRow} row */
  _keep(row) {
    this._rows.set(row.conversation, row);
    this._applied.changed.add(row.conversation);
  }

  /**
   * @param {LoggedEvent} event
   * @param {boolean} follows Whether what is between the cursor and it is known to be gone.
   */
  async _event(event, follows) {
    const row = (await this._row(event.conversation)) ?? newConversation(event.conversation, event.prev, this._user);
    if (event.seq <= row.cursor) return;
    const held = this._held.get(event.conversation);
    if (held && !follows) {
      held.push(event);
    } else if (event.prev > row.cursor && !follows) {
      this._held.set(event.conversation, [event]);
      this._applied.holes.set(event.conversation, row.cursor);
    } else {
      await this._next(row, event);
    }
  }

  /** @param {ConversationRow} row @param {LoggedEvent} event */
  async _next(row, event) {
    const next = advance(row, event, this._user);
    this._keep(next);
    if (!this._handles) this._applied.cursors.set(event.conversation, event.seq);
    if (event.type === "message" && event.n > 0) {
      const id = key(event.conversation, event.from, event.device, event.n);
      const same = await this._t.get("ids", id);
      if (same !== undefined && same !== event.seq) return; // it came with another seq
      await this._t.put("ids", id, event.seq);
    }
    await storeMessage(this._t, event);
    if (event.type === "message" && event.count % (KEPT_MOST - KEPT) === 0) await this._trim(next);
    await this._log(event);
  }

  /** Keep an event for the handler, if there is one. @param {HandedEvent} event */
  async _log(event) {
    if (!this._handles) return;
    this._arrival += 1;
    await this._t.put("log", key(this._arrival), { arrival: this._arrival, event });
    this._applied.logged = true;
  }

  /** @param {{ conversation: string, events: LoggedEvent[], more: boolean }} page */
  async _page({ conversation, events, more }) {
    for (const event of events) await this._event(event, true);
    const row = await this._row(conversation);
    if (more && row) {
      this._applied.holes.set(conversation, row.cursor);
      return;
    }
    const held = this._held.get(conversation) ?? [];
    this._held.delete(conversation);
    let follows = true; // the page has all that is left of what came before the first held event
    for (const event of held) {
      if (row && event.seq <= ((await this._row(conversation))?.cursor ?? 0)) continue;
      await this._event(event, follows);
      follows = false;
    }
  }

  /** @param {import("./wire.js").ConversationState} entry */
  async _listed(entry) {
    const known = await this._row(entry.conversation);
    if (entry.held !== undefined) { // it says nothing else
      if (known) this._keep({ ...known, held: entry.held });
      return;
    }
    const row = listed(known, entry, this._user);
    this._keep(row);
    const cursor = entry.cursor ?? 0;
    const own = this._handles ? row.handed : row.cursor;
    if (entry.gone || own > cursor) this._applied.cursors.set(entry.conversation, own);
    if (!entry.gone && row.cursor < cursor && !this._held.has(entry.conversation)) {
      this._held.set(entry.conversation, []); // acked, but not in this store: a store that was restored
      this._applied.holes.set(entry.conversation, row.cursor);
    }
  }

  /** @param {import("./wire.js").ReceiptEvent} event */
  async _receipt({ conversation, user, read }) {
    const row = await this._row(conversation);
    if (row) this._keep(await marked(this._t, row, user, read, this._user));
  }

  /** @param {import("./wire.js").GapEvent} event */
  async _gap(event) {
    const { conversation, from, to, reason } = event;
    const row = await this._row(conversation);
    if (!row) return;
    if (to > row.cursor || reason === "failover") await this._log(event);
    this._keep({ ...row, cursor: Math.max(row.cursor, to), oldest: reason === "expired" ? Math.max(row.oldest, to) : row.oldest });
    if (!this._handles) this._applied.cursors.set(conversation, Math.max(row.cursor, to));
    const before = reason === "expired" ? { before: key(conversation, to + 1) } : {};
    for (const [k, message] of await this._t.range("messages", prefix(conversation), before)) {
      const left = reason === "expired" ? undefined : takeBack(message, from, to);
      if (left) await this._t.put("messages", k, left);
      else await removeMessage(this._t, message);
    }
  }

  /** @param {ConversationRow} row */
  async _trim(row) {
    const kept = await this._t.range("messages", prefix(row.conversation), { reverse: true, limit: KEPT_MOST + KEPT });
    const old = kept.slice(KEPT);
    const newest = old[0]?.[1].seq;
    if (newest === undefined) return;
    this._keep({ ...row, oldest: Math.max(row.oldest, newest) });
    for (const [k, message] of old) {
      // Changes above `oldest` do not come again with the message's page of history.
      if (changedAt(message) > newest) await this._t.put("messages", k, { ...message, here: false, body: null });
      else await removeMessage(this._t, message);
    }
  }
}

/** @param {import("./types.js").Transaction} t @param {LoggedEvent} event */
async function storeMessage(t, event) {
  const seq = messageOf(event);
  if (seq === 0) return;
  const k = key(event.conversation, seq);
  await t.put("messages", k, changeMessage(await t.get("messages", k), event));
}

/** @param {import("./types.js").Transaction} t @param {MessageRow} message */
async function removeMessage(t, message) {
  await t.remove("messages", key(message.conversation, message.seq));
  if (message.n > 0) await t.remove("ids", key(message.conversation, message.from, message.device, message.n));
}

/** @param {import("./types.js").Transaction} t @param {ConversationRow} row @param {string} reader @param {number} seq @param {string} user */
async function marked(t, row, reader, seq, user) {
  const { conversation } = row;
  const newest = await t.range("messages", prefix(conversation), { reverse: true, before: key(conversation, seq + 1), limit: 1 });
  return readTo(row, reader, seq, user, newest[0]?.[1].count ?? 0);
}
