/**
 * One user's client as the page uses it: the list with its previews, who is online, who types, what is not sent yet.
 *
 * All truth is in the SDK's store. This file keeps what the views show, reads a conversation again when the client says that
 * it looks different, and calls `onChange` at most once a frame.
 */

import { Client } from "./sdk/index.js";
import { accounts, tokenOf } from "./accounts.js";
import { link, observe, onLink, onProfile } from "./link.js";
import { forgetProfile, startProfiles } from "./profiles.js";
import { once } from "./ui.js";

/** @typedef {import("./sdk/index.js").ConversationView} View */
/** @typedef {import("./sdk/index.js").MessageView} Message */
/** @typedef {{ view: View, last: Message | undefined, found: number }} Entry */

const TYPING_MS = 4000;
const WATCHED_MOST = 900;
const DIAGNOSE_AFTER = 2; // attempts without a connection

observe();

export class Session {
  /** @param {string} user */
  static async open(user) {
    const client = await Client.open({ api: location.origin, user, token: (reason) => tokenOf(user, reason), device: "web" });
    return new Session(client);
  }

  /** @param {Client} client */
  constructor(client) {
    this.client = client;
    this.user = client.user;
    /** @type {Map<string, Entry>} */
    this.entries = new Map();
    /** @type {Map<string, { online: boolean | null, last_seen: number | null }>} */
    this.presence = new Map();
    /** @type {Map<string, Map<string, ReturnType<typeof setTimeout>>>} */
    this.typing = new Map();
    /** Messages whose files are on their way. @type {import("./uploads.js").Job[]} */
    this.uploads = [];
    /** Contacts and requests by user; undefined until they are read. @type {Awaited<ReturnType<Client["people"]["contacts"]>> | undefined} */
    this.contacts = undefined;
    this.unsent = 0;
    this.failed = 0;
    /** Whether the list has been read from the store. */
    this.loaded = false;
    /** What is wrong if there is no connection: a key of the texts, and a detail. @type {{ key: string, detail: string } | undefined} */
    this.trouble = undefined;
    this.wasLive = false;
    this._failures = 0;
    /** @type {Set<string>} */
    this._watched = new Set();
    /** @type {Set<() => void>} */
    this._listeners = new Set();
    /** @type {Set<(conversations: string[]) => void>} */
    this._changes = new Set();
    this._changed = once(() => this._listeners.forEach((listener) => listener()));
    this._readOutbox = once(() => void this._outbox());
    /** @type {Map<string, Promise<void>>} */
    this._reading = new Map();
    this.link = link;
    onLink(this._changed);
    onProfile(forgetProfile);
    startProfiles(client, this._changed);
  }

  start() {
    const { client } = this;
    client.on("change", (conversations) => this._look(conversations));
    client.on("status", (status, detail) => this._status(status, detail));
    client.on("typing", ({ conversation, from }) => this._types(conversation, from));
    client.on("presence", (users) => {
      for (const [user, presence] of Object.entries(users)) this.presence.set(user, presence);
      this._changed();
    });
    document.addEventListener("securitypolicyviolation", (event) => {
      if (event.effectiveDirective === "connect-src") this._trouble("trouble_policy", event.blockedURI);
    });
    client.state.watch("contact/", () => void this.loadContacts().catch(() => undefined)); // it is read when it is shown
    client.connect();
    void this._load();
  }

  /** @param {() => void} listener */
  onChange(listener) {
    this._listeners.add(listener);
    return () => void this._listeners.delete(listener);
  }

  /** Show again what this holds. */
  touch() {
    this._changed();
  }

  /** Call a function with the conversations that look different. @param {(conversations: string[]) => void} listener */
  onConversations(listener) {
    this._changes.add(listener);
    return () => void this._changes.delete(listener);
  }

  /** @param {string} id */
  entry(id) {
    return this.entries.get(id);
  }

  /** The list, the one that moved last first. */
  list() {
    const shown = [...this.entries.values()].filter(({ view, last }) => view.kind && (!view.gone || last));
    return shown.sort((a, b) => (b.last?.at ?? b.found) - (a.last?.at ?? a.found));
  }

  get unread() {
    return this.list().reduce((sum, { view }) => sum + (view.gone ? 0 : view.unread), 0);
  }

  /** How many people ask the user to be a contact. */
  get requests() {
    return Object.values(this.contacts ?? {}).filter(({ state }) => state === "incoming").length;
  }

  async loadContacts() {
    this.contacts = await this.client.people.contacts();
    this._changed();
  }

  /** Ask who is online, and be told of changes. @param {string[]} users */
  watch(users) {
    const fresh = users.filter((user) => user !== this.user && !this._watched.has(user));
    if (!fresh.length || this._watched.size + fresh.length > WATCHED_MOST) return;
    for (const user of fresh) this._watched.add(user);
    this.client.watch(fresh);
    for (let i = 0; i < fresh.length; i += 200) {
      this.client.presence(fresh.slice(i, i + 200)).then(
        (found) => {
          for (const [user, presence] of Object.entries(found)) this.presence.set(user, presence);
          this._changed();
        },
        () => undefined, // it comes with the connection
      );
    }
  }

  /** @param {string} conversation */
  typists(conversation) {
    return [...(this.typing.get(conversation)?.keys() ?? [])];
  }

  async close() {
    for (const job of this.uploads) job.end();
    await this.client.close();
  }

  async _load() {
    const views = await this.client.conversations();
    await Promise.all(views.map((view) => this._read(view.id)));
    this.loaded = true;
    this._readOutbox();
    this._changed();
  }

  /** @param {string[]} conversations */
  _look(conversations) {
    for (const id of conversations) if (id) void this._read(id);
    this._readOutbox();
    for (const listener of this._changes) listener(conversations);
  }

  /** Read a conversation; if that is under way, once more afterwards. @param {string} id */
  _read(id) {
    const before = this._reading.get(id) ?? Promise.resolve();
    const reading = before.then(async () => {
      if (this._reading.get(id) !== reading) return; // a later one follows
      const conversation = this.client.conversation(id);
      const [view, messages] = await Promise.all([conversation.view(), conversation.messages({ limit: 1 })]);
      this._take(view, messages.at(-1));
      if (this._reading.get(id) === reading) this._reading.delete(id);
    });
    this._reading.set(id, reading);
    return reading.catch(() => undefined); // the store is lost: the client says so
  }

  /** @param {View} view @param {Message | undefined} last */
  _take(view, last) {
    const found = this.entries.get(view.id)?.found ?? (this.loaded ? Date.now() : 0);
    const other = view.id.startsWith("d:") ? view.id.slice(2).split(":").find((user) => user !== this.user) ?? this.user : null;
    const shown = view.kind || !other ? view : { ...view, kind: last ? "direct" : "", with: other };
    this.entries.set(view.id, { view: shown, last, found });
    if (shown.with) this.watch([shown.with]);
    if (last) this.stopTyping(view.id, last.from);
    this._changed();
  }

  async _outbox() {
    const open = await this.client.outbox().catch(() => []);
    this.unsent = open.filter(({ state }) => state !== "failed").length;
    this.failed = open.filter(({ state }) => state === "failed").length;
    this._changed();
  }

  /** @param {string} conversation @param {string} from */
  _types(conversation, from) {
    if (from === this.user) return;
    const typists = this.typing.get(conversation) ?? new Map();
    this.typing.set(conversation, typists);
    clearTimeout(typists.get(from));
    typists.set(from, setTimeout(() => this.stopTyping(conversation, from), TYPING_MS));
    this._changed();
  }

  /** @param {string} conversation @param {string} from */
  stopTyping(conversation, from) {
    const typists = this.typing.get(conversation);
    if (!typists?.has(from)) return;
    clearTimeout(typists.get(from));
    typists.delete(from);
    this._changed();
  }

  /** @param {string} status @param {string} detail */
  _status(status, detail) {
    if (status === "live") {
      this.wasLive = true;
      this._failures = 0;
      this.trouble = undefined;
    }
    if (status === "waiting" && ++this._failures >= DIAGNOSE_AFTER && !this.wasLive) void this._diagnose(detail);
    this._changed();
  }

  /** There was never a connection: find out whether the API answers, and say what is probably set wrong. @param {string} detail */
  async _diagnose(detail) {
    try {
      const { gateways } = await this.client.call("GET", "/v1/gateways");
      if (!gateways.length) return this._trouble("trouble_none", "");
      const plain = location.protocol === "https:" && gateways.some((/** @type {string} */ url) => url.startsWith("ws:"));
      if (plain) return this._trouble("trouble_plain", gateways[0]);
      return this._trouble("trouble_origin", `${gateways[0]} · ${location.origin} · ${detail}`);
    } catch {
      return this._trouble("trouble_api", "");
    }
  }

  /** @param {string} key @param {string} detail */
  _trouble(key, detail) {
    if (this.client.status === "live") return;
    this.trouble = { key, detail };
    this._changed();
  }
}

/** The other accounts of this browser. @param {string} user */
export async function otherAccounts(user) {
  return (await accounts()).filter((account) => account.user !== user);
}
