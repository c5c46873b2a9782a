/** The outbox: each command from `send` to its answer, and the numbers (`n`) that make a resend take effect once. Its rules: README. */

import { check, key, meta, prefix, raiseEpoch, random } from "./store.js";

export const WINDOW = 32;
const RESULTS_KEPT_MS = 600_000;

/** @import { RowState, Row, Status, Answer, Place, Transaction } from "./types.js" */

/** @param {string} label */
function newDeviceName(label) {
  return `${label}.${random().slice(0, 8)}`;
}

export class Outbox {
  /**
   * @param {import("./types.js").Store} store
   * @param {() => number} [now]
   */
  constructor(store, now = Date.now) {
    this._store = store;
    this._now = now;
    /** The epoch in which this client is the leader. */
    this.epoch = 0;
  }

  /**
   * The device name of this store; a new one if the store is new, or `lost` says that its other half is.
   *
   * @param {string} label
   * @param {(device: string) => boolean} lost
   * @returns {Promise<string>}
   */
  open(label, lost) {
    return this._store.transact("outbox", true, async (t) => {
      const meta = await t.get("meta", "meta");
      if (meta && !lost(meta.device)) return meta.device;
      const device = newDeviceName(label);
      await t.put("meta", "meta", { device, last: meta?.last ?? 0, epoch: meta?.epoch ?? 0 });
      return device;
    });
  }

  /** The device name that the store has now. */
  device() {
    return this._store.transact("outbox", false, async (t) => (await meta(t)).device);
  }

  async raiseEpoch() {
    this.epoch = await raiseEpoch(this._store, "outbox");
  }

  /** Queue a command; its row is durable when this resolves. @param {string} conversation @param {Record<string, any>} command */
  put(conversation, command) {
    return this._store.transact("outbox", true, async (t) => {
      const { device, n } = await this._next(t);
      return enqueue(t, { id: key(n), n, device, conversation, command, attempts: 0, at: this._now() });
    });
  }

  /** @param {Transaction} t */
  async _next(t, least = 0) {
    const found = await meta(t);
    const n = Math.max(found.last + 1, least, this._now() * 1000);
    await t.put("meta", "meta", { ...found, last: n });
    return { device: found.device, n };
  }

  /** What is known of a command; undefined if it was acked long ago, or dismissed. @param {string} id @returns {Promise<Status | undefined>} */
  status(id) {
    return this._store.transact("outbox", false, (t) => known(t, id));
  }

  /**
   * The commands (of a conversation) that are not acked, in order, and before them those that were acked lately.
   *
   * @param {string} [conversation]
   * @returns {Promise<Status[]>}
   */
  pending(conversation) {
    return this._store.transact("outbox", false, async (t) => {
      const rows = [...(await t.range("results", "")), ...(await t.range("status", ""))];
      return rows.map(([, status]) => status).filter((status) => !conversation || status.conversation === conversation);
    });
  }

  /**
   * The device whose rows are to be settled now: an old name as long as it has any that are not looked up, then the
   * present one; with its conversations that have something to send.
   */
  work() {
    return this._store.transact("outbox", false, async (t) => {
      const { device } = await meta(t);
      /** @type {Row[]} */
      const open = (await t.range("rows", "")).map(([, row]) => row).filter((row) => !row.answered);
      const old = open.find((row) => row.device !== device && !row.lookup);
      const chosen = old ? old.device : device;
      const conversations = open.filter((row) => row.device === chosen && !row.lookup).map((row) => row.conversation);
      return { device: chosen, conversations: [...new Set(conversations)], lookups: open.filter((row) => row.lookup) };
    });
  }

  /**
   * The rows of a conversation to write now, marked as written.
   *
   * @param {string} device
   * @param {string} conversation
   * @param {(row: Row) => boolean} wanted
   * @returns {Promise<{ rows: Row[], done: number }>}
   */
  take(device, conversation, wanted) {
    return this._store.transact("outbox", true, async (t) => {
      await check(t, this.epoch);
      const first = await t.range("rows", prefix(device, conversation), { limit: WINDOW });
      const rows = [];
      for (const [k, row] of first) {
        if (row.answered || row.lookup || !wanted(row)) continue;
        row.attempts += 1;
        await t.put("rows", k, row);
        if (row.attempts === 1) await t.put("status", row.id, { ...statusOf(row), state: "sent" });
        rows.push(row);
      }
      return { rows, done: first[0] ? first[0][1].n - 1 : 0 };
    });
  }

  /**
   * End rows that are answered. `landed`: own events that may be of refused commands. Returns the commands of those that are.
   *
   * @param {Answer[]} answers
   * @param {Place[]} [landed]
   * @returns {Promise<string[]>}
   */
  settle(answers, landed = []) {
    return this._store.transact("outbox", true, async (t) => {
      if (answers.length) await check(t, this.epoch);
      const series = new Set();
      for (const { row, result } of answers) {
        const at = rowKey(row);
        const kept = await t.get("rows", at);
        if (!kept || kept.answered) continue;
        await t.put("rows", at, { n: row.n, answered: true });
        series.add(prefix(row.device, row.conversation));
        if ("error" in result) {
          await t.put("status", row.id, { ...statusOf(row), state: "failed", error: result.error });
        } else {
          await this._acked(t, row, result);
        }
      }
      const late = [];
      for (const [id, status] of landed.length ? await t.range("status", "") : []) {
        if (status.state !== "failed" || status.error.code === "conflict") continue; // then its n may be of another command
        const event = landed.find(({ device, n }) => n === status.n && device === status.device);
        if (event) await this._acked(t, status, event);
        if (event) late.push(id);
      }
      for (const start of series) await clearAnswered(t, start);
      const until = this._now() - RESULTS_KEPT_MS;
      for (const [id, { settled }] of await t.range("results", "", { limit: WINDOW })) {
        if (settled < until) await t.remove("results", id);
      }
      return late;
    });
  }

  /** @param {Transaction} t @param {Row | Status} row @param {{ conversation: string, seq: number, at: number }} place */
  async _acked(t, row, { conversation, seq, at }) {
    await t.remove("status", row.id);
    await t.put("results", row.id, { ...statusOf(row), conversation, seq, at, state: "acked", settled: this._now() });
  }

  /** A row that was never accepted gets another n. @param {Row} row @param {number} least */
  renumber(row, least) {
    return this._store.transact("outbox", true, async (t) => {
      await check(t, this.epoch);
      if (!(await t.get("rows", rowKey(row)))) return;
      await t.remove("rows", rowKey(row));
      const { device, n } = await this._next(t, least);
      await enqueue(t, { ...row, device, n, attempts: 0 });
    });
  }

  /**
   * Give up a device name, which may be an old one. If another process uses it (`replaced`), nothing can be settled under it: rows
   * that were never written move to the new name, the others are looked up. Otherwise they are settled under the old name first.
   *
   * @param {string} label
   * @param {string} old
   * @param {boolean} replaced
   */
  rename(label, old, replaced) {
    return this._store.transact("outbox", true, async (t) => {
      const found = await meta(t);
      const device = old === found.device ? newDeviceName(label) : found.device;
      await t.put("meta", "meta", { ...found, device });
      if (replaced) {
        for (const [k, row] of await t.range("rows", prefix(old))) {
          if (row.attempts > 0) {
            await t.put("rows", k, { ...row, lookup: true });
          } else {
            await t.remove("rows", k);
            if (!row.answered) await enqueue(t, { ...row, ...(await this._next(t)) });
          }
        }
      }
      return device;
    });
  }

  /** Rows of a store that was lost while they were open, to be settled under their old name. @param {Row[]} rows */
  restore(rows) {
    return this._store.transact("outbox", true, async (t) => {
      for (const row of rows) if (!(await t.get("rows", rowKey(row))) && !(await known(t, row.id))) await enqueue(t, row);
    });
  }

  /** The row of a command that has failed goes into the queue again, under a new n. @param {string} id */
  retry(id) {
    return this._store.transact("outbox", true, async (t) => {
      /** @type {Status | undefined} */
      const status = await t.get("status", id);
      if (status?.state !== "failed" || !status.command) return undefined;
      const { device, n } = await this._next(t);
      const { conversation, command } = status;
      return enqueue(t, { id, n, device, conversation, command, attempts: 0, at: this._now() });
    });
  }

  /** Remove a command that was never written, or that has failed; false if it was written. @param {string} id */
  cancel(id) {
    return this._store.transact("outbox", true, async (t) => {
      /** @type {Status | undefined} */
      const status = await t.get("status", id);
      if (status?.state !== "queued" && status?.state !== "failed") return false;
      const at = rowKey(status);
      const row = await t.get("rows", at);
      if (status.state === "queued" && row.attempts > 0) return false;
      if (row && !row.answered) await t.remove("rows", at);
      await t.remove("status", id);
      return true;
    });
  }

  /** Whether this client is still the leader: `Superseded` if it is not. */
  checkEpoch() {
    return this._store.transact("outbox", false, (t) => check(t, this.epoch));
  }
}

/** @param {{ device: string, conversation: string, n: number }} row */
function rowKey(row) {
  return key(row.device, row.conversation, row.n);
}

/** @param {Row | Status} row @returns {Status} */
function statusOf({ id, n, device, conversation, command, at }) {
  return { id, state: "queued", n, device, conversation, command, at };
}

/** @param {Transaction} t @param {string} id @returns {Promise<Status | undefined>} */
async function known(t, id) {
  return (await t.get("status", id)) ?? t.get("results", id);
}

/** @param {Transaction} t @param {Row} row */
async function enqueue(t, row) {
  const status = { ...statusOf(row), state: /** @type {RowState} */ (row.attempts ? "sent" : "queued") };
  await t.put("rows", rowKey(row), row);
  await t.put("status", row.id, status);
  return status;
}

/** @param {Transaction} t @param {string} start */
async function clearAnswered(t, start) {
  for (;;) {
    const first = await t.range("rows", start, { limit: WINDOW });
    for (const [k, row] of first) {
      if (!row.answered) return;
      await t.remove("rows", k);
    }
    if (first.length < WINDOW) return;
  }
}
