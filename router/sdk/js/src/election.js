/** Which tab of a browser holds the connection. Its rules: README. */

const ASK_MS = 1000;
const ANSWER_MS = 1500;
const SPREAD_MS = 200; // two visible tabs do not steal at the same moment

/** @import { ElectionEvents } from "./types.js" */

export class Election {
  /** @param {string} name @param {ElectionEvents} events */
  constructor(name, events) {
    this._name = name;
    this._events = events;
    this.leader = false;
    this._channel = new BroadcastChannel(name);
    this._channel.onmessage = ({ data }) => this._message(data);
    /** @type {AbortController | undefined} */
    this._waiting = undefined;
    /** @type {() => void} */
    this._release = () => undefined;
    this._answeredAt = 0;
    /** @type {ReturnType<typeof setInterval> | undefined} */
    this._asking = undefined;
    this._onVisibility = () => this._visibility();
    this._onOnline = () => events.wake();
    this._stopped = false;
  }

  start() {
    document.addEventListener("visibilitychange", this._onVisibility);
    addEventListener("online", this._onOnline);
    this._queue();
    this._visibility();
  }

  stop() {
    this._stopped = true;
    document.removeEventListener("visibilitychange", this._onVisibility);
    removeEventListener("online", this._onOnline);
    clearInterval(this._asking);
    this._waiting?.abort();
    this._release();
    this._channel.close();
  }

  /** @param {any} message */
  post(message) {
    if (!this._stopped) this._channel.postMessage(message);
  }

  _queue(steal = false) {
    this._waiting?.abort();
    const waiting = new AbortController();
    this._waiting = waiting;
    const options = steal ? { steal } : { signal: waiting.signal };
    navigator.locks.request(this._name, options, () => this._hold()).catch(() => {
      if (this.leader && this._waiting === waiting) this._robbed();
    });
  }

  /** @returns {Promise<void>} */
  async _hold() {
    if (this._stopped) return; // a theft that was under way
    this.leader = true;
    this._events.lead();
    return new Promise((resolve) => {
      this._release = resolve;
    });
  }

  _robbed() {
    this.leader = false;
    this._release();
    if (this._stopped) return;
    this._answeredAt = performance.now();
    this._events.follow();
    this._queue();
  }

  _visibility() {
    clearInterval(this._asking);
    if (this.leader) this._here();
    if (document.hidden) return;
    this._answeredAt = performance.now();
    this._asking = setInterval(() => this._ask(), ASK_MS);
    this._ask();
    this._events.wake();
  }

  _ask() {
    if (this.leader) return;
    if (performance.now() - this._answeredAt > ANSWER_MS) return this._steal();
    this.post({ type: "ask" });
  }

  _steal() {
    if (this.leader || document.hidden || this._stopped) return;
    this._answeredAt = performance.now();
    this._queue(true);
  }

  _here() {
    this.post({ type: "here", hidden: document.hidden, state: this._events.state() });
  }

  /** @param {any} message */
  _message(message) {
    if (message.type === "ask") {
      if (this.leader) this._here();
    } else {
      if (message.type === "here") this._answered(message);
      this._events.message(message);
    }
  }

  /** @param {{ hidden: boolean }} message */
  _answered({ hidden }) {
    this._answeredAt = performance.now();
    if (!hidden || document.hidden || this.leader) return;
    const heardAt = this._answeredAt;
    setTimeout(() => {
      if (this._answeredAt === heardAt) this._steal(); // else a visible leader has answered meanwhile
    }, Math.random() * SPREAD_MS);
  }
}

/** Where there is one process, and no page: it leads. */
export class Alone {
  /** @param {ElectionEvents} events */
  constructor(events) {
    this._events = events;
    this.leader = false;
  }

  start() {
    this.leader = true;
    this._events.lead();
  }

  stop() {
    this.leader = false;
  }

  post() {}
}
