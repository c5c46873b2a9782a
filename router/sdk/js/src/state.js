/** The user's state: keys with values that follow the user to every device, also contacts and blocks. Each tab keeps a copy, in memory. Its rules: README. */

import { pause } from "./closes.js";
import { fromWire, toWire } from "./values.js";

const LIMIT = 1000;
const AGAIN_MS = 2000;

export class State {
  /** @internal @param {import("./http.js").Http} http @param {(error: unknown) => void} failed */
  constructor(http, failed) {
    this._http = http;
    this._failed = failed;
    this.version = 0;
    /** @type {Map<string, { value: any, version: number }>} */
    this._entries = new Map();
    /** @type {Set<{ prefix: string, watcher: (key: string, value: any) => unknown }>} */
    this._watchers = new Set();
    this._used = this._read = false;
    this._whole = true; // what is asked for next is everything
    this._wanted = 0; // a version that exists
    this._following = false;
  }

  /** The value of a key; undefined if there is none. @param {string} key @returns {Promise<any>} */
  async get(key) {
    await this._begin();
    return this._entries.get(key)?.value;
  }

  /** All keys that begin with this, and their values. @param {string} [prefix] @returns {Promise<Record<string, any>>} */
  async entries(prefix = "") {
    await this._begin();
    const found = [...this._entries].filter(([key]) => key.startsWith(prefix)).map(([key, { value }]) => [key, value]);
    return Object.fromEntries(found.sort());
  }

  /** The version that a key has; 0 if it is absent. @param {string} key */
  async versionOf(key) {
    await this._begin();
    return this._entries.get(key)?.version ?? 0;
  }

  /**
   * Write a key; null removes it. `expect`: only if it has this version, else the error `conflict`. Returns the new version.
   *
   * @param {string} key
   * @param {any} value
   * @param {{ expect?: number }} [options]
   * @returns {Promise<number>}
   */
  async set(key, value, { expect } = {}) {
    const written = await this._http.call("PUT", `/v1/state/${encodeURIComponent(key)}`, { value: toWire(value), expect });
    await this._begin();
    if (this.version < written.version) await this._sync();
    return written.version;
  }

  /** @param {string} key @param {{ expect?: number }} [options] */
  remove(key, options) {
    return this.set(key, null, options);
  }

  /**
   * Call a function with key and value (null: removed) for each change below a prefix; the answer ends that.
   *
   * @param {string} prefix
   * @param {(key: string, value: any) => unknown} watcher
   * @returns {() => void}
   */
  watch(prefix, watcher) {
    const entry = { prefix, watcher };
    this._watchers.add(entry);
    this._used = true;
    if (!this._read) void this._follow();
    return () => this._watchers.delete(entry);
  }

  /** An event `state`, or the version of a `welcome`. @internal @param {any} event */
  told({ key, value, version, prev }) {
    const change = key !== undefined;
    if (!this._used || version === this.version || (change && version < this.version)) return;
    const before = change ? prev : version;
    if (change && before === this.version && this._read && !this._following) {
      this._apply([{ key, value, version }], version);
      return;
    }
    this._whole ||= before < this.version;
    this._wanted = Math.max(this._wanted, version);
    void this._follow();
  }

  /** A call has changed the state. @internal */
  async refresh() {
    if (this._read) await this._sync();
  }

  async _begin() {
    this._used = true;
    if (!this._read) await this._sync();
  }

  /** Read until the copy has what is known to exist; if the API does not answer, again after a while. */
  async _follow() {
    if (this._following) return;
    this._following = true;
    while (this._whole || this.version < this._wanted) {
      const before = this.version;
      try {
        await this._sync();
        if (this.version === before && !this._whole) break; // a failover has taken back what was to come
      } catch (error) {
        this._failed(error);
        await pause(AGAIN_MS);
      }
    }
    this._wanted = 0;
    this._following = false;
  }

  async _sync() {
    let whole = this._whole;
    this._whole = false;
    const after = whole ? 0 : this.version;
    /** @type {{ key: string, value: any, version: number }[]} */
    let found = [];
    let page = { entries: found, version: 0, more: true, reset: false, cursor: "" };
    try {
      while (page.more) {
        page = await this._http.call("GET", `/v1/state?after=${after}&limit=${LIMIT}&cursor=${encodeURIComponent(page.cursor)}`);
        if (page.reset) found = [];
        whole ||= page.reset;
        found.push(...page.entries);
      }
    } catch (error) {
      this._whole ||= whole;
      throw error;
    }
    this._read = true;
    if (!whole && page.version < this.version) return; // events were faster
    if (whole) {
      const kept = new Set(found.map(({ key }) => key));
      for (const key of this._entries.keys()) if (!kept.has(key)) found.push({ key, value: null, version: 0 });
    }
    this._apply(found, page.version);
  }

  /** @param {{ key: string, value: any, version: number }[]} entries @param {number} version */
  _apply(entries, version) {
    this.version = version;
    for (const entry of entries) {
      const known = this._entries.get(entry.key);
      const value = fromWire(entry.value);
      if (value === null) this._entries.delete(entry.key);
      else this._entries.set(entry.key, { value, version: entry.version });
      if (value === null ? !known : known?.version === entry.version) continue;
      for (const { prefix, watcher } of this._watchers) {
        if (entry.key.startsWith(prefix)) Promise.resolve().then(() => watcher(entry.key, value)).catch(this._failed);
      }
    }
  }
}

/** Contacts and blocks, which are in the state (`contact/…`, `block/…`), so every device agrees. */
export class People {
  /** @internal @param {import("./http.js").Http} http @param {State} state */
  constructor(http, state) {
    this._http = http;
    this._state = state;
  }

  /**
   * Contacts and requests by user. To follow changes: `client.state.watch("contact/", …)`.
   *
   * @returns {Promise<Record<string, import("./types.js").Contact>>}
   */
  async contacts() {
    const found = Object.entries(await this._state.entries("contact/"));
    const present = found.filter(([, { until }]) => !until || until > Date.now());
    return Object.fromEntries(present.map(([key, value]) => [key.slice("contact/".length), value]));
  }

  /** Ask a user to be a contact; accept if they have asked. @param {string} user @param {string} [message] */
  request(user, message) {
    return this._call("PUT", "contacts", user, "", { message });
  }

  /** @param {string} user */
  accept(user) {
    return this._call("POST", "contacts", user, "/accept");
  }

  /** End a contact, cancel the own request, or decline the user's. @param {string} user */
  remove(user) {
    return this._call("DELETE", "contacts", user);
  }

  /** Whom the user blocks. */
  async blocked() {
    return Object.keys(await this._state.entries("block/")).map((key) => key.slice("block/".length));
  }

  /** Block a user: nothing that they send in the direct conversation is accepted any more. @param {string} user */
  block(user) {
    return this._call("PUT", "blocks", user);
  }

  /** @param {string} user */
  unblock(user) {
    return this._call("DELETE", "blocks", user);
  }

  /** @param {string} method @param {string} list @param {string} user @param {string} [more] @param {unknown} [body] @returns {Promise<void>} */
  async _call(method, list, user, more = "", body) {
    await this._http.call(method, `/v1/${list}/${encodeURIComponent(user)}${more}`, body);
    await this._state.refresh();
  }
}
