/** The leader's connection: one WebSocket at a time. Its states and rules: README. */

import { afterClose, backoffMs, pause } from "./closes.js";
import { LinnetError, after } from "./errors.js";

/** @typedef {"idle" | "preparing" | "connecting" | "live" | "waiting" | "stopped"} Status */
/** @typedef {"connect" | "expiring" | "token_expired" | "unauthorized"} TokenReason */

/** @import { ConnectionParts } from "./types.js" */

const SUBPROTOCOL = "linnet.v1.json";
const GREETING_MS = 15_000;
const PROBE_MS = 5_000;
const RENEW_AT = 0.8; // of the time that is left to a token
const RENEW_AGAIN_MS = 30_000;
const TIMER_MAX_MS = 2 ** 31 - 1;
const REFUSALS = 2;
const PAGE = 200;
const ASK_AGAIN_MS = 1000;

export class Connection {
  /** @param {ConnectionParts} parts */
  constructor({ http, token, events }) {
    this._http = http;
    this._token = token;
    this._events = events;
    /** @type {Status} */
    this.state = "idle";
    this._attempt = 0;
    this._failures = 0;
    this._refusals = 0;
    /** @type {TokenReason} */
    this._reason = "connect";
    /** @type {string[]} */
    this._gateways = [];
    /** @type {WebSocket | undefined} */
    this._socket = undefined;
    /** @type {Map<number, { resolve: (event: any) => void, reject: (error: Error) => void }>} */
    this._requests = new Map();
    this._lastId = 0;
    this._heardAt = 0;
    this._heartbeatMs = 0;
    /** @type {Set<ReturnType<typeof setTimeout>>} timers of the present attempt */
    this._timers = new Set();
    this._resumeAt = 0;
  }

  start() {
    if (this.state !== "idle" && this.state !== "stopped") return;
    this._failures = this._refusals = 0;
    this._connect();
  }

  /** Close the connection, if there is one. @param {Status} [state] @param {string} [detail] */
  stop(state = "idle", detail = "") {
    this._drop();
    this._enter(state, detail);
  }

  /** Connect anew, such as under another device name. */
  restart() {
    if (this.state !== "idle" && this.state !== "stopped") this._connect();
  }

  /** Give up this connection and try again later. @param {string} detail */
  fail(detail) {
    if (this.state !== "idle" && this.state !== "stopped") this._wait(detail);
  }

  /** The network or the page is back: try now, and find out whether a connection still lives. */
  wake() {
    if (this.state === "waiting" && this._timers.size && performance.now() >= this._resumeAt) {
      this._connect();
    } else if (this.state === "live") {
      const asked = performance.now();
      this.send({ type: "ping" });
      this._later(PROBE_MS, () => {
        if (this._heardAt < asked) this._lost(1006, "");
      });
    }
  }

  /** Whether the command was handed to the socket. @param {Record<string, unknown>} command */
  send(command) {
    if (this._socket?.readyState !== WebSocket.OPEN) return false;
    this._socket.send(JSON.stringify(command));
    return true;
  }

  /** Send a command and wait for its direct answer. @param {Record<string, unknown>} command @returns {Promise<any>} */
  request(command) {
    return new Promise((resolve, reject) => {
      const id = ++this._lastId;
      if (this.state === "live" && this.send({ ...command, id })) this._requests.set(id, { resolve, reject });
      else reject(new LinnetError("unavailable", "there is no connection"));
    });
  }

  /** A page of history, asked for until this connection ends; it is empty if the conversation is gone. @param {{ conversation: string, before?: number, after?: number }} of */
  async history(of) {
    const attempt = this._attempt;
    while (attempt === this._attempt) {
      try {
        return await this.request({ type: "history", limit: PAGE, ...of });
      } catch (error) {
        const { code, retryAt = 0 } = /** @type {LinnetError} */ (error);
        if (code === "not_found") return { events: [], more: false };
        await pause(Math.max(ASK_AGAIN_MS, retryAt - Date.now()));
      }
    }
    throw new LinnetError("unavailable", "the connection ended");
  }

  /** @param {Status} state @param {string} [detail] */
  _enter(state, detail = "") {
    this.state = state;
    this._events.state(state, detail);
  }

  _connect() {
    this._drop();
    const attempt = this._attempt;
    this._enter("preparing");
    this._open(attempt).catch((error) => {
      if (attempt !== this._attempt) return;
      if (error?.code === "unauthorized") this._lost(4500, "");
      else if (error?.code === "token_expired") this._lost(4501, "");
      else this._wait(String(error?.message ?? error));
    });
  }

  /** @param {number} attempt */
  async _open(attempt) {
    const reason = this._reason;
    const token = await this._token(reason);
    if (attempt !== this._attempt) return;
    this._reason = "connect";
    if (this._gateways.length === 0) {
      const { gateways } = await this._http.call("GET", "/v1/gateways");
      this._gateways = shuffled(gateways);
    }
    const url = this._gateways.shift();
    if (attempt !== this._attempt) return;
    if (url === undefined) throw new LinnetError("unavailable", "no gateway is running");
    const hello = await this._events.hello();
    if (attempt !== this._attempt) return;
    this._enter("connecting");
    const socket = new WebSocket(url, [SUBPROTOCOL]);
    this._socket = socket;
    this._later(GREETING_MS, () => this.state !== "live" && this._lost(1006, ""));
    socket.onopen = () => {
      if (attempt !== this._attempt) return;
      this.send({ type: "hello", token, ...hello });
    };
    socket.onmessage = ({ data }) => {
      if (attempt === this._attempt) this._received(JSON.parse(data));
    };
    socket.onclose = ({ code, reason: why }) => {
      if (attempt === this._attempt) this._lost(code, why);
    };
    socket.onerror = () => undefined; // a close follows
  }

  /** @param {any} event */
  _received(event) {
    this._heardAt = performance.now();
    const request = typeof event.id === "number" ? this._requests.get(event.id) : undefined;
    if (request) {
      this._requests.delete(event.id);
      if (event.type === "error") request.reject(new LinnetError(event.code, event.message, after(event.retry_after)));
      else request.resolve(event);
      return;
    }
    if (event.type === "welcome") this._welcomed(event);
    if (event.type === "drain") this._later(event.retry_after * 1000, () => this._leave());
    this._events.frame(event);
  }

  /** @param {import("./wire.js").Welcome} welcome */
  _welcomed(welcome) {
    this._failures = this._refusals = 0;
    this._heartbeatMs = welcome.heartbeat_s * 1000;
    this._listen();
    this._renewBefore(welcome.expires_at);
    this._enter("live");
  }

  _listen() {
    const ahead = Date.now() - performance.now();
    this._later(this._heartbeatMs, () => {
      const silentMs = performance.now() - this._heardAt;
      if (silentMs >= 2 * this._heartbeatMs) return this._lost(1006, "");
      if (Date.now() - performance.now() - ahead >= this._heartbeatMs) this.wake(); // the machine slept, or its clock was set
      else if (silentMs >= this._heartbeatMs / 2) this.send({ type: "ping" });
      return this._listen();
    });
  }

  /** @param {number} expiresAt */
  _renewBefore(expiresAt) {
    const leftMs = Math.max(RENEW_AGAIN_MS, (expiresAt - Date.now()) * RENEW_AT);
    if (leftMs < TIMER_MAX_MS) this._later(leftMs, () => void this._renew(this._attempt));
  }

  /** @param {number} attempt */
  async _renew(attempt) {
    try {
      const token = await this._token("expiring");
      if (attempt !== this._attempt) return;
      const { expires_at: expiresAt } = await this.request({ type: "auth", token });
      this._renewBefore(expiresAt);
    } catch {
      if (attempt === this._attempt && this.state === "live") this._renewBefore(0); // again in a while
    }
  }

  /** The gateway drains: connect to another one. */
  _leave() {
    this._gateways = [];
    this.restart();
  }

  /** @param {number} code @param {string} reason */
  _lost(code, reason) {
    const next = afterClose(code, reason);
    if (next.action === "stop") return this.stop("stopped", next.reason);
    if (next.action === "token") {
      this._reason = next.reason;
      if (++this._refusals >= REFUSALS) return this.stop("stopped", next.reason);
    }
    const detail = reason || `closed with ${code}`;
    if (next.action !== "replaced") return this._wait(detail, next.afterMs);
    this.stop("waiting", detail); // no attempt by itself: it would replace the other session in turn
    return this._events.replaced();
  }

  /** @param {string} detail @param {number} [afterMs] */
  _wait(detail, afterMs = 0) {
    this.stop("waiting", detail);
    this._resumeAt = performance.now() + afterMs;
    this._later(Math.max(afterMs, backoffMs(this._failures++)), () => this._connect());
  }

  /** Forget the present attempt, and with it all that may still come from it. */
  _drop() {
    this._attempt += 1;
    for (const timer of this._timers) clearTimeout(timer);
    this._timers.clear();
    this._socket?.close();
    this._socket = undefined;
    for (const { reject } of this._requests.values()) reject(new LinnetError("unavailable", "the connection ended"));
    this._requests.clear();
  }

  /** @param {number} ms @param {() => void} work */
  _later(ms, work) {
    const timer = setTimeout(() => {
      this._timers.delete(timer);
      work();
    }, ms);
    this._timers.add(timer);
  }
}

/** The less loaded half in random order, then the others. @param {string[]} gateways */
function shuffled(gateways) {
  const half = Math.max(2, Math.ceil(gateways.length / 2));
  const ordered = gateways.map((url, i) => ({ url, order: i < half ? Math.random() : i }));
  return ordered.sort((a, b) => a.order - b.order).map(({ url }) => url);
}
