/** A store in memory: on request, or where there is no other. It ends with the process, and says so in `durable`. */

import { LAST, TABLES } from "./store.js";

/** @returns {import("./types.js").Store} */
export function openMemory() {
  /** @type {Record<string, Map<string, any>>} */
  const tables = {};
  for (const [database, names] of Object.entries(TABLES)) for (const name of names) tables[`${database}.${name}`] = new Map();
  /** @type {Record<string, Promise<unknown>>} */
  const queues = { outbox: Promise.resolve(), events: Promise.resolve() };
  return {
    durable: false,
    transact(database, _write, work) {
      const result = queues[database]?.then(() => attempt(tables, database, work));
      queues[database] = /** @type {Promise<any>} */ (result).catch(() => undefined);
      return /** @type {Promise<any>} */ (result);
    },
    async close() {},
  };
}

/**
 * @template T
 * @param {Record<string, Map<string, any>>} tables
 * @param {string} database
 * @param {(t: import("./types.js").Transaction) => Promise<T>} work
 */
async function attempt(tables, database, work) {
  /** @type {Map<string, Map<string, any>>} what the transaction has changed: undefined is a removal */
  const changes = new Map();
  /** @param {string} table */
  const changed = (table) => {
    const found = changes.get(table) ?? new Map();
    changes.set(table, found);
    return found;
  };
  /** @param {string} table @returns {Map<string, any>} */
  const kept = (table) => /** @type {any} */ (tables[`${database}.${table}`]);
  /** @param {string} table @param {string} k */
  const read = (table, k) => (changed(table).has(k) ? changed(table).get(k) : kept(table).get(k));
  const result = await work({
    get: async (table, k) => structuredClone(read(table, k)),
    put: async (table, k, value) => void changed(table).set(k, structuredClone(value)),
    remove: async (table, k) => void changed(table).set(k, undefined),
    async range(table, start, { limit = Infinity, reverse = false, before = start + LAST, from = start } = {}) {
      const keys = [...new Set([...kept(table).keys(), ...changed(table).keys()])]
        .filter((k) => k >= from && k < before && read(table, k) !== undefined)
        .sort();
      if (reverse) keys.reverse();
      return keys.slice(0, limit).map((k) => [k, structuredClone(read(table, k))]);
    },
  });
  for (const [table, values] of changes) {
    for (const [k, value] of values) value === undefined ? kept(table).delete(k) : kept(table).set(k, value);
  }
  return result;
}
