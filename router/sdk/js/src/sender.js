/** The leader's half of the outbox: rows → the connection → answers. Its rules: README. */

const RESEND_MOST_MS = 60_000;
const RESEND_MS = 1000;
const LOOKED_BACK_MS = 86_400_000;

/** @import { Row, Answer, Place, SenderParts } from "./types.js" */

export class Sender {
  /** @param {SenderParts} parts */
  constructor({ outbox, connection, events }) {
    this._outbox = outbox;
    this._connection = connection;
    this._events = events;
    /** The device name of the connection; empty while there is none. */
    this.device = "";
    /** @type {Map<number, Row>} written on this connection, not answered */
    this._open = new Map();
    /** @type {Map<number, Row>} answered with an error that passes */
    this._resting = new Map();
    /** @type {Map<string, { over: boolean, waitMs: number, allowed: number }>} conversations in which nothing new leaves */
    this._holding = new Map();
    /** @type {Set<string>} */
    this._dirty = new Set();
    /** @type {Answer[]} */
    this._answers = [];
    this._refusals = true; // whether there may be refused commands
    /** @type {Place[]} perhaps of these */
    this._landed = [];
    this._running = false;
  }

  /** A connection is live. @param {string} device */
  up(device) {
    this.device = device;
    this._look().catch(this._events.failed);
  }

  down() {
    this.device = "";
    this._open.clear();
    this._resting.clear();
    this._holding.clear();
    this._refusals = true;
  }

  async _look() {
    const work = await this._outbox.work();
    if (this.device === "") return;
    if (work.device !== this.device) return this._events.otherDevice();
    for (const conversation of work.conversations) this._dirty.add(conversation);
    void this._run();
    await this._lookBack();
    for (const row of work.lookups) await this._lookUp(row);
  }

  /** Refused commands may have landed unseen. */
  async _lookBack() {
    this._refusals = true;
    const refused = (await this._outbox.pending()).filter(({ state }) => state === "failed");
    this._refusals = refused.length > 0;
    this._landed.push(...(await this._events.landed(refused)));
    void this._run();
  }

  /** There is something to send in a conversation. @param {string} conversation */
  wake(conversation) {
    this._dirty.add(conversation);
    void this._run();
  }

  /** @param {import("./wire.js").AckEvent | import("./wire.js").ErrorEvent} event */
  answered(event) {
    const row = this._open.get(event.n ?? 0);
    if (!row) return; // it answers none of the rows
    if (event.type === "ack") {
      const { conversation, seq, at } = event;
      this._answers.push({ row, result: { conversation, seq, at } });
      if (event.duplicate && row.attempts === 1) this._events.copied();
    } else {
      this._refused(row, event);
    }
    void this._run();
  }

  /** An own event came, perhaps of a refused command. @param {Place} event */
  landed(event) {
    const row = this._open.get(event.n);
    if (row?.device === event.device) row.landed = event;
    else if (this._refusals) this._landed.push(event);
    void this._run();
  }

  /** @param {Row} row @param {import("./wire.js").ErrorEvent} error */
  _refused(row, error) {
    const retryMs = typeof error.retry_after === "number" ? error.retry_after * 1000 : undefined;
    const passes = error.code === "unavailable" || (error.code === "rate_limited" && (retryMs ?? Infinity) <= RESEND_MOST_MS);
    if (error.code === "unauthorized" || error.code === "token_expired") return; // of the connection, which is closed next
    if (passes) {
      this._rest(row, retryMs ?? RESEND_MS);
    } else if (error.code === "conflict" && (error.reason === "old" || error.reason === "answered")) {
      const again = row.attempts === 1 ? this._outbox.renumber(row, error.next ?? 0) : this._lookUp(row);
      again.then(() => this._forget(row)).catch(this._events.failed);
    } else {
      const retryAt = retryMs === undefined ? undefined : Date.now() + retryMs;
      this._answers.push({ row, result: { error: { code: error.code, message: error.message, ...(retryAt ? { retryAt } : {}) } } });
    }
  }

  /** @param {Row} row @param {number} ms */
  _rest(row, ms) {
    this._open.delete(row.n);
    this._resting.set(row.n, row);
    const { conversation } = row;
    const held = this._holding.get(conversation); // if it is over, that wait was too short
    const waitMs = held?.over ? Math.min(RESEND_MOST_MS, Math.max(ms, 2 * held.waitMs)) : Math.max(ms, held?.waitMs ?? 0);
    const next = { over: false, waitMs, allowed: 1 };
    this._holding.set(conversation, next);
    setTimeout(() => { // not by the clock, which may be put back meanwhile
      next.over = true;
      if (this._holding.get(conversation) === next) this.wake(conversation);
    }, waitMs);
  }

  /** @param {Row} row */
  _forget(row) {
    this._open.delete(row.n);
    const { conversation } = row;
    const open = [...this._open.values(), ...this._resting.values()].some((other) => other.conversation === conversation);
    const held = this._holding.get(conversation);
    if (!open) this._holding.delete(conversation);
    else if (held) held.allowed *= 2;
    this.wake(conversation);
  }

  async _run() {
    if (this._running) return;
    this._running = true;
    try {
      for (;;) {
        if (this._answers.length || (this.device && this._landed.length)) await this._settle(this._answers.splice(0), this._landed.splice(0));
        else if (this.device && this._dirty.size) await this._write();
        else break;
      }
    } catch (error) {
      this._events.failed(error);
    }
    this._running = false;
  }

  /** @param {Answer[]} answers @param {Place[]} landed */
  async _settle(answers, landed) {
    const late = await this._outbox.settle(answers, landed);
    for (const { row, result } of answers) {
      if (row.landed && "error" in result) this._landed.push(row.landed);
      this._forget(row);
    }
    this._events.moved([...answers.map(({ row }) => row.id), ...late]);
    if (answers.some(({ result }) => "error" in result)) this._lookBack().catch(this._events.failed);
    if (this.device && (await this._outbox.device()) !== this.device) await this._look();
  }

  async _write() {
    const [conversation = ""] = this._dirty;
    this._dirty.delete(conversation);
    const device = this.device;
    const { rows, done } = await this._outbox.take(device, conversation, this._allowed(conversation));
    if (this.device !== device) return;
    for (const row of rows) {
      this._resting.delete(row.n);
      this._open.set(row.n, row);
      if (!this._connection.send({ ...row.command, n: row.n, done })) return;
    }
    if (rows.length) this._events.moved(rows.map(({ id }) => id));
  }

  /** Which rows of a conversation may leave now, asked in their order. @param {string} conversation */
  _allowed(conversation) {
    const held = this._holding.get(conversation);
    let left = Infinity;
    if (held) {
      const open = [...this._open.values()].filter((row) => row.conversation === conversation).length;
      left = held.over ? held.allowed - open : 0;
    }
    return (/** @type {Row} */ row) => {
      if (this._open.has(row.n) || (held && row.attempts === 0)) return false;
      return left-- > 0;
    };
  }

  /** Whether a row was accepted under its device and n, by the history. @param {Row} row */
  async _lookUp(row) {
    let before;
    for (let more = true; more; ) {
      const page = await this._connection.history({ conversation: row.conversation, before });
      const found = page.events.find((/** @type {any} */ event) => event.device === row.device && event.n === row.n);
      if (found) {
        this._answers.push({ row, result: { conversation: row.conversation, seq: found.seq, at: found.at } });
        break;
      }
      before = page.events[0]?.seq;
      more = page.more && before !== undefined && page.events[0].at > row.at - LOOKED_BACK_MS;
      if (!more) this._answers.push({ row, result: { error: { code: "conflict", message: "its number was refused, and it is not in the history" } } });
    }
    void this._run();
  }
}
