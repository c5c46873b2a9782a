/**
 * Where there are no Web Locks (no secure context): which of four stores a tab uses. Each is a device of its own.
 *
 * 1. A store has a lease row: which tab uses it, and until when. It is renewed more often than a hidden tab's timers are throttled.
 * 2. A tab that is loaded again takes its place again, because it is known by its session storage.
 * 3. Each transaction of the outbox checks the lease: a tab that slept while another took its place has lost it (`PlaceLost`). What
 *    it had stored stays there, and the other tab sends it.
 */

import { PlaceLost, random } from "./store.js";

const PLACES = 4;
const LEASE_MS = 150_000;
const RENEW_MS = 20_000;
const TAB = "linnet:tab";

/**
 * @param {(name: string) => Promise<import("./types.js").Store>} open
 * @param {string} name
 * @returns {Promise<import("./types.js").Store>}
 */
export async function openPlace(open, name) {
  const tab = sessionStorage.getItem(TAB) ?? random();
  sessionStorage.setItem(TAB, tab);
  for (let place = 1; place <= PLACES; place += 1) {
    const store = await open(`${name}:${place}`);
    if (await lease(store, tab)) return leased(store, tab);
    await store.close();
  }
  throw new Error("all places are taken");
}

/** @param {import("./types.js").Store} store @param {string} tab @param {number} [ms] */
function lease(store, tab, ms = LEASE_MS) {
  return store.transact("outbox", true, async (t) => {
    const now = Date.now();
    const found = await t.get("meta", "lease");
    if (found && found.tab !== tab && found.until > now && found.until <= now + LEASE_MS) return false;
    await t.put("meta", "lease", { tab, until: now + ms });
    return true;
  });
}

/** @param {import("./types.js").Store} store @param {string} tab @returns {import("./types.js").Store} */
function leased(store, tab) {
  const renewing = setInterval(() => void transact("outbox", true, (t) => t.put("meta", "lease", { tab, until: Date.now() + LEASE_MS })).catch(() => undefined), RENEW_MS);
  const release = () => void lease(store, tab, 0).catch(() => undefined);
  addEventListener("pagehide", release);
  /** @type {import("./types.js").Store["transact"]} */
  const transact = (database, write, work) =>
    store.transact(database, write, async (t) => {
      if (database === "outbox" && (await t.get("meta", "lease"))?.tab !== tab) {
        sessionStorage.setItem(TAB, random());
        throw new PlaceLost("another tab uses this store");
      }
      return work(t);
    });
  return {
    durable: store.durable,
    transact,
    async close() {
      clearInterval(renewing);
      removeEventListener("pagehide", release);
      await lease(store, tab, 0).catch(() => undefined);
      await store.close();
    },
  };
}
