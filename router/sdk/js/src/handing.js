/** Events → the application's handler, one at a time, in the order of their arrival. Its rules: README. */

import { backoffMs, pause } from "./closes.js";

const PAGE = 32;
const STORE_MS = 1000;

/** @import { HandedEvent, HandingParts } from "./types.js" */

export class Handing {
  /** @param {HandingParts} parts */
  constructor({ events, handler, stored, failed }) {
    this._events = events;
    this._handler = handler;
    this._stored = stored;
    this._failed = failed;
    this._at = 0;
    this._running = false;
    this._again = false;
    this._stopped = false;
  }

  stop() {
    this._stopped = true;
  }

  /** There may be something to hand over. */
  async wake() {
    this._again = true;
    if (this._running) return;
    this._running = true;
    while (this._again && !this._stopped) {
      this._again = false;
      await this._hand().catch(this._failed);
    }
    this._running = false;
  }

  async _hand() {
    const entries = await this._events.unhanded(this._at, PAGE);
    this._again ||= entries.length === PAGE;
    let first = 0;
    let storedAt = performance.now();
    for (const [i, entry] of entries.entries()) {
      await this._one(entry.event);
      if (this._stopped) return;
      this._at = entry.arrival;
      if (i === entries.length - 1 || performance.now() - storedAt >= STORE_MS) {
        this._stored(await this._events.handed(entries.slice(first, i + 1)));
        first = i + 1;
        storedAt = performance.now();
      }
    }
  }

  /** @param {HandedEvent} event */
  async _one(event) {
    for (let failures = 0; !this._stopped; failures += 1) {
      try {
        await this._handler(event);
        return;
      } catch (error) {
        this._failed(error);
        await pause(backoffMs(failures));
      }
    }
  }
}
