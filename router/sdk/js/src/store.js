/** What a store is: tables of values under string keys, in two databases, with transactions. Its rules: README. */

/** @typedef {"outbox" | "events"} Database */

/** @type {Record<Database, string[]>} */
export const TABLES = {
  outbox: ["meta", "rows", "status", "results"],
  events: ["meta", "conversations", "messages", "ids", "log"],
};

/** The end of all keys that begin with a prefix. */
export const LAST = "\uffff";
const DIGITS = 16;
const SEPARATOR = "\u0001"; // in no id and no name; NUL would end a text of SQLite

/** @param {...(string | number)} parts */
export function key(...parts) {
  return parts.map((part) => (typeof part === "number" ? String(part).padStart(DIGITS, "0") : part)).join(SEPARATOR);
}

/** The prefix of the keys whose first parts are these. @param {...(string | number)} parts */
export function prefix(...parts) {
  return key(...parts) + SEPARATOR;
}

/** A name that nothing else has; `crypto.randomUUID` is only for secure contexts. */
export function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(32)), (byte) => (byte % 32).toString(32)).join("");
}

/** The row with the device name, of either database. @param {import("./types.js").Transaction} t */
export async function meta(t) {
  const found = await t.get("meta", "meta");
  if (!found) throw new StoreLost("the store has lost its device name");
  return found;
}

/** Become the leader: from now on transactions of an earlier one abort. @param {import("./types.js").Store} store @param {Database} database @returns {Promise<number>} */
export function raiseEpoch(store, database) {
  return store.transact(database, true, async (t) => {
    const found = await meta(t);
    await t.put("meta", "meta", { ...found, epoch: found.epoch + 1 });
    return found.epoch + 1;
  });
}

/** @param {import("./types.js").Transaction} t @param {number} epoch */
export async function check(t, epoch) {
  const found = await meta(t);
  if (found.epoch !== epoch) throw new Superseded();
  return found;
}

/** The content of the store is not what this client has written: it is lost, or it is another one. */
export class StoreLost extends Error {}

/** Another tab uses this store now (`place.js`). */
export class PlaceLost extends StoreLost {}

/** Another tab has become the leader: what this one was about to write no longer counts. */
export class Superseded extends Error {}
