/** A store in two IndexedDB databases, shared by all tabs of an origin. Its rules: README. */

import { pause } from "./closes.js";
import { LAST, StoreLost, TABLES } from "./store.js";

const TRIES = 50; // while a browser removes the data of an origin, it refuses what is opened
const AGAIN_MS = 100;
const ENDED = ["AbortError", "InvalidStateError"]; // by the browser: a transaction, or what was asked of it

/** @param {string} name @returns {Promise<import("./types.js").Store>} */
export async function openIndexedDb(name) {
  const databases = { outbox: await open(name, "outbox"), events: await open(name, "events") };
  return {
    durable: true,
    transact: (database, write, work) => attempt(databases[database], write, work),
    async close() {
      for (const database of Object.values(databases)) database.close();
    },
  };
}

/** @param {string} name @param {import("./store.js").Database} part @returns {Promise<IDBDatabase>} */
async function open(name, part) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await openOnce(name, part);
    } catch (error) {
      if (/** @type {Error} */ (error).name !== "AbortError" || tries === TRIES) throw error;
    }
    await pause(AGAIN_MS);
  }
}

/** @param {string} name @param {import("./store.js").Database} part @returns {Promise<IDBDatabase>} */
function openOnce(name, part) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(`${name}:${part}`, 1);
    request.onupgradeneeded = () => {
      for (const table of TABLES[part]) request.result.createObjectStore(table);
    };
    request.onsuccess = () => {
      const database = request.result;
      database.onversionchange = () => database.close(); // it is deleted: this client's next transaction notices
      resolve(database);
    };
    request.onerror = () => reject(request.error);
  });
}

/**
 * @template T
 * @param {IDBDatabase} database
 * @param {boolean} write
 * @param {(t: import("./types.js").Transaction) => Promise<T>} work
 * @returns {Promise<T>}
 */
function attempt(database, write, work) {
  return new Promise((resolve, reject) => {
    /** @type {IDBTransaction} */
    let transaction;
    try {
      const names = Array.from(database.objectStoreNames);
      transaction = database.transaction(names, write ? "readwrite" : "readonly", { durability: "strict" });
    } catch (error) {
      reject(new StoreLost(String(error)));
      return;
    }
    /** @type {T} */
    let result;
    /** @type {unknown} */
    let failure;
    transaction.oncomplete = () => resolve(result);
    transaction.onabort = () => reject(failure ?? new StoreLost(String(transaction.error)));
    work(requests(transaction))
      .then((value) => {
        result = value;
        transaction.commit();
      })
      .catch((error) => {
        failure = ENDED.includes(error.name) ? new StoreLost(String(error)) : error;
        try {
          transaction.abort();
        } catch {
          reject(failure); // it has ended already
        }
      });
  });
}

/** @param {IDBTransaction} transaction @returns {import("./types.js").Transaction} */
function requests(transaction) {
  return {
    get: (table, k) => answer(transaction.objectStore(table).get(k)),
    put: (table, k, value) => answer(transaction.objectStore(table).put(value, k)).then(() => undefined),
    remove: (table, k) => answer(transaction.objectStore(table).delete(k)),
    async range(table, start, { limit, reverse = false, before = start + LAST, from = start } = {}) {
      if (from >= before) return [];
      const range = IDBKeyRange.bound(from, before, false, true);
      const source = transaction.objectStore(table);
      if (!reverse) {
        const [keys, values] = await Promise.all([
          answer(source.getAllKeys(range, limit)),
          answer(source.getAll(range, limit)),
        ]);
        return keys.map((k, i) => [String(k), values[i]]);
      }
      return backwards(source.openCursor(range, "prev"), limit ?? Infinity);
    },
  };
}

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function answer(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @param {IDBRequest<IDBCursorWithValue | null>} request @param {number} limit @returns {Promise<[string, any][]>} */
function backwards(request, limit) {
  return new Promise((resolve, reject) => {
    /** @type {[string, any][]} */
    const found = [];
    request.onsuccess = () => {
      const cursor = request.result;
      if (cursor === null || found.length >= limit) return resolve(found);
      found.push([String(cursor.key), cursor.value]);
      return cursor.continue();
    };
    request.onerror = () => reject(request.error);
  });
}
