/**
 * Frames → the model, in batches, in the order in which they came; and what follows from each batch: questions for holes, and
 * acks of cursors that are stored.
 */

const BATCH = 200;
const ACK_EVENTS = 32;
const ACK_MS = 1000;
const ACK_MOST = 800; // cursors in one frame, which has 128 KiB

/** @import { Item, ReceiverParts } from "./types.js" */

export class Receiver {
  /** @param {ReceiverParts} parts */
  constructor({ events, connection, ready, listeners }) {
    this._ready = ready;
    this._events = events;
    this._connection = connection;
    this._listeners = listeners;
    /** @type {Item[]} */
    this._items = [];
    this._running = false;
    this._opened = false; // something came on this connection
    /** @type {Map<string, number>} stored cursors that were not acked on a connection that proved to live */
    this._unacked = new Map();
    this._fresh = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this._timer = undefined;
  }

  /** Cursors for `hello`, the newest first. */
  cursors() {
    return Object.fromEntries([...this._unacked].slice(-ACK_MOST).reverse());
  }

  /** The connection ended: what waits for a hole comes again on the next one. */
  reset() {
    if (this._opened) this.push({ type: "reset" });
    this._opened = false;
  }

  /** @param {Item} item */
  push(item) {
    this._opened = true;
    this._items.push(item);
    if (this._running) return;
    this._running = true;
    this._run().then(
      () => {
        this._running = false;
      },
      (error) => {
        this._running = false;
        this._items = []; // the connection is given up: they come again
        this._listeners.failed(error);
      },
    );
  }

  async _run() {
    await this._ready();
    while (this._items.length) {
      const { changed, holes, cursors, logged } = await this._events.apply(this._items.splice(0, BATCH));
      if (changed.size) this._listeners.changed(changed);
      if (logged) this._listeners.logged();
      this.stored(cursors);
      for (const [conversation, after] of holes) void this._ask(conversation, after);
    }
  }

  /** These cursors are stored: ack them, every second or 32 events. @param {Map<string, number>} cursors */
  stored(cursors) {
    for (const [conversation, seq] of cursors) {
      this._unacked.delete(conversation);
      this._unacked.set(conversation, seq);
      this._fresh += 1;
    }
    if (this._fresh >= ACK_EVENTS) this._ack();
    else if (this._fresh && this._timer === undefined) this._timer = setTimeout(() => this._ack(), ACK_MS);
  }

  _ack() {
    clearTimeout(this._timer);
    this._timer = undefined;
    this._fresh = 0;
    const cursors = new Map([...this._unacked].slice(0, ACK_MOST));
    if (!cursors.size || this._connection.state !== "live") return;
    this._connection.send({ type: "ack", cursors: Object.fromEntries(cursors) });
    // An ack has no answer: the one of a `ping` behind it says that it has arrived.
    this._connection.request({ type: "ping" }).then(
      () => {
        for (const [conversation, seq] of cursors) if (this._unacked.get(conversation) === seq) this._unacked.delete(conversation);
        if (this._unacked.size) this.stored(new Map());
      },
      () => undefined, // the connection ended: `hello` has them
    );
  }

  /** @param {string} conversation @param {number} after */
  async _ask(conversation, after) {
    const page = await this._connection.history({ conversation, after }).catch(() => undefined);
    if (page) this.push({ ...page, type: "page", conversation }); // else the next connection begins where this one ended
  }
}
