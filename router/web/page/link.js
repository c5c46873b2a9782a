/**
 * What the page shows of its connection beside the client's status: which gateway, and how long a round trip takes.
 *
 * The client opens its sockets with the browser's `WebSocket`; this one notes the address and measures a ping of its own, whose
 * answer the client ignores. Only the tab that leads has a socket.
 */

import { once } from "./ui.js";

const EVERY_MS = 10_000;
const PING = "linnet-page";

/** @type {{ gateway: string, ms: number | undefined }} */
export const link = { gateway: "", ms: undefined };

/** @type {Set<() => void>} */
const listeners = new Set();
const changed = once(() => listeners.forEach((listener) => listener()));

/** @type {(user: string) => void} */
let changedProfile = () => {};

/** @param {() => void} listener */
export function onLink(listener) {
  listeners.add(listener);
}

/** Call a function with each user whose profile has changed. @param {(user: string) => void} listener */
export function onProfile(listener) {
  changedProfile = listener;
}

class Observed extends WebSocket {
  /** @param {string | URL} url @param {string | string[]} [protocols] */
  constructor(url, protocols) {
    super(url, protocols);
    let sentAt = 0;
    /** @type {ReturnType<typeof setInterval> | undefined} */
    let timer;
    const ping = () => {
      if (this.readyState !== WebSocket.OPEN) return;
      sentAt = performance.now();
      this.send(JSON.stringify({ type: "ping", id: PING }));
    };
    this.addEventListener("message", ({ data }) => {
      if (typeof data !== "string" || data.length > 400) return;
      if (data.startsWith('{"type":"welcome"')) ping();
      if (data.startsWith('{"type":"profile"')) changedProfile(JSON.parse(data).user);
      if (data.includes(`"${PING}"`)) {
        link.ms = Math.round(performance.now() - sentAt);
        changed();
      }
    });
    this.addEventListener("open", () => {
      link.gateway = nameOf(new URL(url));
      link.ms = undefined;
      timer = setInterval(ping, EVERY_MS);
      setTimeout(ping, 300);
      changed();
    });
    this.addEventListener("close", () => clearInterval(timer));
  }
}

/** `make up` gives its gateways the ports behind the page's; any other gateway is called by its host. @param {URL} url */
function nameOf(url) {
  const number = Number(url.port) - Number(location.port);
  const near = ["127.0.0.1", "localhost", "[::1]", location.hostname].includes(url.hostname);
  return near && location.port && number > 0 && number < 20 ? `gateway-${number}` : url.host;
}

export function observe() {
  globalThis.WebSocket = Observed;
}
