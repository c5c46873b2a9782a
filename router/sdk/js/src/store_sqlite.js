/**
 * A store in two SQLite files of a folder, for Node.
 *
 * One process has the folder at a time: a second one that opens it is refused, because a device name belongs to one process.
 * A transaction is durable when it has ended (`synchronous=FULL`). Before and after each the path must still name the open file:
 * one that was removed ends with the process, so the store is lost.
 */

import { mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";

import { LAST, StoreLost, TABLES } from "./store.js";

/** @param {string} folder @returns {import("./types.js").Store} */
export function openSqlite(folder) {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const databases = { outbox: open(folder, "outbox"), events: open(folder, "events") };
  /** @type {Record<string, Promise<unknown>>} */
  const queues = { outbox: Promise.resolve(), events: Promise.resolve() };
  return {
    durable: true,
    transact(database, write, work) {
      const result = queues[database]?.then(() => attempt(databases[database], write, work));
      queues[database] = /** @type {Promise<any>} */ (result).catch(() => undefined);
      return /** @type {Promise<any>} */ (result);
    },
    async close() {
      await Promise.all(Object.values(queues));
      for (const { file } of Object.values(databases)) file.close();
    },
  };
}

/** @typedef {{ file: DatabaseSync, path: string, inode: bigint, statements: Map<string, import("node:sqlite").StatementSync> }} Opened */

/** @param {string} folder @param {import("./store.js").Database} name @returns {Opened} */
function open(folder, name) {
  const path = join(folder, `${name}.sqlite`);
  const file = new DatabaseSync(path);
  try {
    file.exec("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL");
    for (const table of TABLES[name]) {
      file.exec(`CREATE TABLE IF NOT EXISTS "${table}" (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID`);
    }
    file.exec("BEGIN EXCLUSIVE; COMMIT");
  } catch (error) {
    file.close();
    throw new Error(`${path} is in use by another process, or is damaged: ${/** @type {Error} */ (error).message}`);
  }
  return { file, path, inode: inodeOf(path), statements: new Map() };
}

/** @param {string} path */
function inodeOf(path) {
  return statSync(path, { bigint: true, throwIfNoEntry: false })?.ino ?? 0n;
}

/** @param {Opened} opened */
function look({ path, inode }) {
  if (inodeOf(path) !== inode) throw new StoreLost(`${path} was removed`);
}

/**
 * @template T
 * @param {Opened} opened
 * @param {boolean} write
 * @param {(t: import("./types.js").Transaction) => Promise<T>} work
 */
async function attempt(opened, write, work) {
  const { file, statements } = opened;
  look(opened);
  /** @param {string} sql */
  const prepared = (sql) => {
    const statement = statements.get(sql) ?? file.prepare(sql);
    statements.set(sql, statement);
    return statement;
  };
  file.exec(write ? "BEGIN IMMEDIATE" : "BEGIN");
  try {
    const result = await work({
      async get(table, k) {
        const row = prepared(`SELECT value FROM "${table}" WHERE key = ?`).get(k);
        return row && JSON.parse(String(row.value));
      },
      async put(table, k, value) {
        prepared(`INSERT OR REPLACE INTO "${table}" VALUES (?, ?)`).run(k, JSON.stringify(value));
      },
      async remove(table, k) {
        prepared(`DELETE FROM "${table}" WHERE key = ?`).run(k);
      },
      async range(table, start, { limit = -1, reverse = false, before = start + LAST, from = start } = {}) {
        const order = reverse ? "DESC" : "ASC";
        const sql = `SELECT key, value FROM "${table}" WHERE key >= ? AND key < ? ORDER BY key ${order} LIMIT ?`;
        const rows = prepared(sql).all(from, before, limit);
        return rows.map((row) => [String(row.key), JSON.parse(String(row.value))]);
      },
    });
    file.exec("COMMIT");
    look(opened);
    return result;
  } catch (error) {
    if (file.isTransaction) file.exec("ROLLBACK");
    throw error;
  }
}
