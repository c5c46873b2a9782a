/** What follows the end of a connection, as the protocol's list of close codes says. */

/** @import { Next } from "./types.js" */

const FIRST_MS = 300;
const LONGEST_MS = 30_000;

/** @type {Record<number, Next>} */
const NEXT = {
  4409: { action: "replaced" },
  4500: { action: "token", reason: "unauthorized" },
  4501: { action: "token", reason: "token_expired" },
  4502: { action: "stop", reason: "banned" },
  4503: { action: "stop", reason: "bad_protocol" },
  4504: { action: "stop", reason: "ended" },
};

/** @param {number} code @param {string} reason @returns {Next} */
export function afterClose(code, reason) {
  const next = NEXT[code];
  if (next) return next;
  const seconds = /^retry_after=([0-9.]+)/.exec(reason)?.[1];
  return seconds === undefined ? { action: "retry" } : { action: "retry", afterMs: Number(seconds) * 1000 };
}

/** Full jitter: a random time up to twice as long as before, between 0.3 and 30 s. @param {number} failures */
export function backoffMs(failures, random = Math.random) {
  const most = Math.min(LONGEST_MS, FIRST_MS * 2 ** (failures + 1));
  return FIRST_MS + random() * (most - FIRST_MS);
}

/** @param {number} ms */
export function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
