/** What an application holds: it composes the parts, which have the rules. What all tabs share: README, *Tabs*. */

import { Connection } from "./connection.js";
import { Conversation, viewOf } from "./conversation.js";
import { pause } from "./closes.js";
import { Alone, Election } from "./election.js";
import { LinnetError } from "./errors.js";
import { Events } from "./events.js";
import { MessageHandle } from "./handle.js";
import { Handing } from "./handing.js";
import { Http } from "./http.js";
import { Outbox } from "./outbox.js";
import { Receiver } from "./receiver.js";
import { Sender } from "./sender.js";
import { People, State } from "./state.js";
import { PlaceLost, StoreLost, Superseded, random } from "./store.js";
import { Media } from "./media.js";
import { received } from "./values.js";

/** @import { Status, TokenReason } from "./connection.js" */
/** @import { ClientOptions, ConversationOwner, HandedEvent, Handler, Listeners, Store } from "./types.js" */

const DEFAULT_DEVICE = "js";
const AGAIN_MS = 1000;
const PRESENCE_USERS = 200; // of one command
const LABEL = /^[A-Za-z0-9._-]{1,55}$/;

export class Client {
  /** Open the store. `connect` follows; what is sent before it is queued. @param {ClientOptions} options */
  static async open(options) {
    if (!LABEL.test(options.device ?? DEFAULT_DEVICE)) throw new TypeError("`device` is not a label: expected 1-55 of A-Z a-z 0-9 . _ -");
    const store = await openStore(options);
    const client = new Client(options, store);
    await client._openStore();
    return client;
  }

  /** @internal @param {ClientOptions} options @param {Store} store */
  constructor(options, store) {
    this._options = options;
    /** @type {string} */
    this.user = options.user;
    /** The name of this device, which belongs to its store. @type {string} */
    this.device = "";
    /** The status of the leader's connection. @type {Status} */
    this.status = "idle";
    /** Why the client does not connect again by itself, such as `banned`; empty while it does. @type {string} */
    this.stopped = "";
    this._instance = random();
    this._token = "";
    this._settling = ""; // the device name of the next connection, if it is an old one
    this._persisted = false;
    /** @type {Map<keyof Listeners, Set<(...args: any[]) => void>>} */
    this._listeners = new Map();
    /** @type {Map<string, MessageHandle>} */
    this._handles = new Map();
    /** @type {Set<string>} users whose presence this tab watches */
    this._watched = new Set();
    /** @type {Handing | undefined} */
    this._handing = undefined;
    /** @type {Handler | undefined} */
    this._handler = undefined;
    this._http = new Http(options.api, async (reason) => (reason === "connect" && this._token) || this._renew(reason));
    /** The files of this user. */
    this.media = new Media(this._http);
    /** The keys and values of this user. */
    this.state = new State(this._http, (error) => this._failed(error));
    /** Contacts and blocks. */
    this.people = new People(this._http, this.state);
    /** @type {Election | Alone | undefined} */
    this._election = undefined;
    /** @type {Promise<void> | undefined} */
    this._leading = undefined;
    this._closed = false;
    this._reopenedAt = -Infinity;
    /** @type {Promise<void> | undefined} */
    this._reopening = undefined;
    /** @type {Store} */
    this._store;
    /** @type {Outbox} */
    this._outbox;
    /** @type {Events} */
    this._events;
    /** @type {Connection} */
    this._connection;
    /** @type {Receiver} */
    this._receiver;
    /** @type {Sender} */
    this._sender;
    this._parts(store);
    /** @type {ConversationOwner} */
    this._owner = {
      user: options.user,
      http: this._http,
      outbox: () => this._outbox,
      events: () => this._events,
      queue: (conversation, command) => this._queue(conversation, command),
      send: (command) => this._send(command),
      changed: (conversation) => this._changed([conversation]),
      read: (conversation) => this._sendReads([{ conversation }]),
    };
  }

  /** Whether what is sent outlasts this page or process. */
  get durable() {
    return this._store.durable;
  }

  /** Whether tabs share this store. */
  get _shares() {
    return this.durable && typeof document !== "undefined" && navigator.locks !== undefined;
  }

  /** Whether this tab holds the connection. */
  get leader() {
    return this._election?.leader ?? false;
  }

  /**
   * Connect, and hand each event to a function, once its promise for the one before has resolved. What it had is acked, and
   * comes no more.
   *
   * @param {Handler} handler
   */
  listen(handler) {
    if (!this._election) this._handler = handler;
    this.connect();
  }

  /** Connect, and stay connected; again after the client has stopped. */
  connect() {
    if (this._election) return this._share({ type: "connect" });
    this._events.handles = this._handler !== undefined;
    const events = {
      lead: () => this._lead(),
      follow: () => this._follow(),
      message: (/** @type {any} */ message) => this._message(message),
      wake: () => this._connection.wake(),
      state: () => this.status,
    };
    this._election = this._shares ? new Election(storeName(this._options), events) : new Alone(events);
    this._election.start();
    return undefined;
  }

  /**
   * Connect, and get the events one by one: an event counts as had when the next one is asked for.
   *
   * @returns {AsyncGenerator<HandedEvent, void, void>}
   */
  async *events() {
    /** @type {{ event: HandedEvent, had: (value?: any) => void }[]} */
    const waiting = [];
    let arrived = () => {};
    this.listen((event) => new Promise((had) => {
      waiting.push({ event, had });
      arrived();
    }));
    for (;;) {
      for (let next; (next = waiting.shift()); next.had()) yield next.event;
      await /** @type {Promise<void>} */ (new Promise((resolve) => (arrived = resolve)));
    }
  }

  /** Close the connection and the store. What is queued stays there. */
  async close() {
    this._closed = true;
    await this._reopening;
    this._follow();
    this._election?.stop();
    await this._store.close();
  }

  /** Wait for a status; reject if the client stops instead. @param {Status} status @returns {Promise<void>} */
  until(status) {
    return new Promise((resolve, reject) => {
      const look = () => {
        if (this.status === status) resolve();
        else if (this.stopped) reject(new LinnetError(this.stopped));
        else return;
        end();
      };
      const end = this.on("status", look);
      look();
    });
  }

  /** A conversation by its id, or the direct one with `@user`. @param {string} target */
  conversation(target) {
    return new Conversation(this._owner, target);
  }

  /** All conversations of the model. */
  async conversations() {
    return (await this._events.conversations()).map(viewOf);
  }

  /**
   * The stored cursor of each conversation: no later life of this store is handed an event up to there.
   *
   * @returns {Promise<Record<string, number>>}
   */
  async cursors() {
    return Object.fromEntries((await this._events.conversations()).map((row) => [row.conversation, this._handler ? row.handed : row.cursor]));
  }

  /**
   * The commands that are not acked, of all conversations or of one; those from before a reload, too.
   *
   * @param {string} [conversation]
   */
  async outbox(conversation) {
    const found = await this._outbox.pending(conversation);
    return found.filter(({ state }) => state !== "acked").map((status) => this._handles.get(status.id) ?? this._handle(Promise.resolve(status)));
  }

  /**
   * Make a group or channel with these members.
   *
   * @param {string} title
   * @param {string[]} members
   * @param {"group" | "channel"} [kind]
   */
  async createConversation(title, members, kind = "group") {
    const made = await this.call("POST", "/v1/conversations", { kind, title, members });
    return this.conversation(made.conversation);
  }

  /**
   * Who is online now.
   *
   * @param {string[]} users
   * @returns {Promise<Record<string, { online: boolean | null, last_seen: number | null }>>}
   */
  async presence(users) {
    const { users: found } = await this._http.call("GET", `/v1/presence?users=${users.map(encodeURIComponent).join(",")}`);
    return found;
  }

  /** Get `presence` whenever one of these users comes or goes. @param {string[]} users */
  watch(users) {
    for (const user of users) this._watched.add(user);
    this._watch(users);
  }

  /** @param {string[]} users */
  _watch(users) {
    for (let first = 0; first < users.length; first += PRESENCE_USERS) {
      this._send({ type: "presence", users: users.slice(first, first + PRESENCE_USERS), watch: true });
    }
  }

  /**
   * A call of the HTTP API as this user.
   *
   * @param {string} method
   * @param {string} path
   * @param {unknown} [body]
   * @returns {Promise<any>}
   */
  call(method, path, body) {
    return this._http.call(method, path, body);
  }

  /**
   * Call a function whenever something happens; the answer ends that.
   *
   * @template {keyof Listeners} K
   * @param {K} name
   * @param {Listeners[K]} listener
   * @returns {() => void}
   */
  on(name, listener) {
    const listeners = this._listeners.get(name) ?? new Set();
    this._listeners.set(name, listeners.add(/** @type {any} */ (listener)));
    return () => listeners.delete(/** @type {any} */ (listener));
  }

  // -- parts

  /** @param {Store} store */
  _parts(store) {
    this._store = store;
    this._outbox = new Outbox(store);
    this._events = new Events(store, this.user);
    this._events.handles = this._handler !== undefined;
    this._connection = new Connection({
      http: this._http,
      token: (reason) => this._renew(reason),
      events: {
        state: (state, detail) => this._state(state, detail),
        frame: (event) => this._frame(event),
        hello: async () => ({ device: this._settling || this.device, instance: this._instance, cursors: this._settling ? {} : this._receiver.cursors() }),
        replaced: () => void this._rename(true),
      },
    });
    this._receiver = new Receiver({
      events: this._events,
      connection: this._connection,
      ready: () => this._ready(),
      listeners: {
        changed: (conversations) => this._changed([...conversations]),
        logged: () => void this._handing?.wake(),
        failed: (error) => this._failed(error),
      },
    });
    this._sender = new Sender({
      outbox: this._outbox,
      connection: this._connection,
      events: {
        moved: (ids) => this._share({ type: "moved", ids }),
        landed: (commands) => this._events.landed(commands),
        copied: () => void this._rename(false),
        otherDevice: () => void this._choose().then(() => this._connection.restart(), (error) => this._failed(error)),
        failed: (error) => this._failed(error),
      },
    });
  }

  async _openStore() {
    const work = async () => { // in one tab at a time: two that open a new store agree on its device name
      const known = await this._events.device();
      this.device = await this._outbox.open(this._options.device ?? DEFAULT_DEVICE, (device) => device !== known);
      await this._events.adopt(this.device);
    };
    if (this._shares) await navigator.locks.request(`${storeName(this._options)}:open`, work);
    else await work();
    await this._choose();
  }

  /** Which device name the next connection is for. */
  async _choose() {
    const { device } = await this._outbox.work();
    this.device = await this._outbox.device();
    this._settling = device === this.device ? "" : device;
  }

  /** @param {TokenReason} reason */
  async _renew(reason) {
    const { token } = this._options;
    this._token = typeof token === "string" ? token : await token(reason);
    return this._token;
  }

  // -- leading

  /** The connection is opened at once: only what is written waits for the store. */
  _lead() {
    this._leading = undefined;
    this._ready().catch((error) => this._failed(error));
    this._connection.start();
  }

  /** Resolves when transactions of an earlier leader abort. If the store could not be written, the next call tries again. */
  _ready() {
    const leading = (this._leading ??= this._raise());
    leading.catch(() => this._leading === leading && (this._leading = undefined));
    return leading;
  }

  async _raise() {
    await Promise.all([this._outbox.raiseEpoch(), this._events.raiseEpoch()]);
    this._handing?.stop();
    const handler = this._handler;
    if (!handler || !this.leader) return;
    this._handing = new Handing({
      events: this._events,
      handler: (event) => handler(received(event)),
      stored: (cursors) => this._receiver.stored(cursors),
      failed: (error) => this._failed(error),
    });
    void this._handing.wake();
  }

  _follow() {
    this._handing?.stop();
    this._connection.stop();
  }

  /** @param {Status} state @param {string} detail */
  _state(state, detail) {
    this._status(state, detail);
    if (state !== "live") {
      this._sender.down();
      this._receiver.reset();
    }
    if (this.leader) this._post({ type: "state", state, detail });
  }

  /** @param {Status} status @param {string} detail */
  _status(status, detail) {
    this.status = status;
    this.stopped = status === "stopped" ? detail : "";
    if (status === "live") this._watch([...this._watched]); // each tab for its own
    this._emit("status", status, detail);
  }

  /** @param {any} event */
  _frame(event) {
    switch (event.type) {
      case "ack":
      case "error":
        return this._sender.answered(event);
      case "typing":
      case "presence":
      case "state":
        return this._share({ type: "news", event });
      case "welcome":
        this._share({ type: "news", event: { type: "state", version: event.state ?? 0 } });
        this._ready().then(() => this._sender.up(event.device)).catch((error) => this._failed(error));
    }
    if (event.from === this.user) this._sender.landed(event);
    if (this._settling) return; // what else comes under a given-up name is received under the present one
    if (event.conversation || event.conversations) this._receiver.push(event);
    if (event.conversations) void this._sendReads(event.conversations);
    if (event.type === "gap") this._emit("gap", event);
  }

  /** Read marks that the server does not have. @param {{ conversation: string, read?: number }[]} entries */
  async _sendReads(entries) {
    try {
      for (const { conversation, read = 0 } of entries) {
        const { readWanted: seq = 0 } = (await this._events.conversation(conversation)) ?? {};
        if (seq > read) this._send({ type: "read", conversation, seq });
      }
    } catch (error) {
      this._failed(error);
    }
  }

  /** @param {boolean} replaced */
  async _rename(replaced) {
    if (!this.leader) return;
    const old = (replaced && this._settling) || this.device;
    try {
      await this._ready();
      await this._outbox.checkEpoch(); // a tab that lost its lock was replaced by its successor
      const device = await this._outbox.rename(this._options.device ?? DEFAULT_DEVICE, old, replaced);
      await this._events.adopt(device, true);
      await this._choose();
      this._post({ type: "device" });
      this._connection.restart();
    } catch (error) {
      this._failed(error);
    }
  }

  /** @param {unknown} error */
  _failed(error) {
    if (this._closed || error instanceof Superseded) return; // the election says so, too
    if (error instanceof StoreLost) {
      void this._storeLost(error);
      return;
    }
    if (error instanceof LinnetError && error.code === "unavailable") return; // the connection ended meanwhile
    this._connection.fail(String(error));
    this._emit("error", error);
  }

  /** README, *Where there is no store*. @param {StoreLost} lost */
  _storeLost(lost) {
    return (this._reopening ??= this._reopen(lost).finally(() => (this._reopening = undefined)));
  }

  /** @param {StoreLost} lost */
  async _reopen(lost) {
    this._follow();
    this._election?.stop();
    this._election = undefined;
    try {
      if (performance.now() - this._reopenedAt < AGAIN_MS) await pause(AGAIN_MS);
      this._reopenedAt = performance.now();
      await this._store.close();
      const store = await openStore(this._options); // every put has ended
      const open = lost instanceof PlaceLost ? [] : [...this._handles.values()].flatMap((handle) => handle.row ?? []);
      this._parts(store);
      await this._openStore();
      await this._outbox.restore(open);
      await this._choose();
      await this._refresh([...this._handles.keys()]); // what was answered while the store could not be read
      this._emit("change", []);
      if (!this._closed) this.connect();
    } catch (error) {
      if (!(error instanceof StoreLost)) this._emit("error", error);
      if (!this._closed) await this._reopen(lost);
    }
  }

  // -- queueing

  /** @param {string} conversation @param {Record<string, unknown>} command */
  _queue(conversation, command) {
    const stored = this._put(conversation, command);
    if (!this._persisted && this.durable && typeof document !== "undefined") {
      this._persisted = true; // the browser is asked, once, to keep the store when its disk is full
      navigator.storage?.persist?.().catch(() => undefined); // it may refuse
    }
    return this._handle(stored);
  }

  /** @param {string} conversation @param {Record<string, unknown>} command @returns {Promise<import("./types.js").Status>} */
  _put(conversation, command) {
    return this._outbox.put(conversation, command).catch(async (error) => {
      if (this._closed || !(error instanceof StoreLost)) throw error;
      await this._storeLost(error);
      return this._put(conversation, command);
    });
  }

  /** @param {Promise<import("./types.js").Status>} stored */
  _handle(stored) {
    const handle = new MessageHandle(stored, {
      retry: async (id) => {
        const known = await this._outbox.status(id);
        if (known) this._share({ type: "moved", ids: await this._outbox.settle([], await this._events.landed([known])) });
        const status = await this._outbox.retry(id);
        if (status) this._share({ type: "queued", conversation: status.conversation });
        return status;
      },
      cancel: async (id) => {
        const cancelled = await this._outbox.cancel(id);
        if (cancelled) {
          this._handles.delete(id);
          this._changed([handle.conversation ?? ""]);
        }
        return cancelled;
      },
    });
    stored.then(
      ({ id, conversation }) => {
        this._handles.set(id, handle);
        this._share({ type: "queued", conversation });
      },
      () => undefined, // `handle.stored` says it
    );
    return handle;
  }

  /** Send a command that nothing waits for. @param {Record<string, unknown>} command */
  _send(command) {
    this._share({ type: "send", command });
  }

  // -- other tabs

  /** @param {any} message */
  _post(message) {
    this._election?.post(message);
  }

  /** Tell all tabs, this one, too. @param {any} message */
  _share(message) {
    this._post(message);
    this._message(message);
  }

  /** @param {any} message */
  _message(message) {
    switch (message.type) {
      case "here":
      case "state":
        if (!this.leader && this.status !== message.state) this._status(message.state, message.detail ?? "");
        return;
      case "changed":
        this._emit("change", message.conversations);
        return;
      case "queued":
        this._emit("change", [message.conversation]);
        if (this.leader) this._sender.wake(message.conversation);
        return;
      case "moved":
        void this._refresh(message.ids);
        return;
      case "device":
        this._choose().catch((error) => this._failed(error));
        return;
      case "news":
        this._news(message.event);
        return;
      case "connect":
        if (this.leader) this._connection.start();
        return;
      case "send":
        if (this.leader) this._connection.send(message.command);
        return;
      case "watch": // by tabs of the last release
        for (const user of message.users) this._watched.add(user);
    }
  }

  /** @param {any} event */
  _news(event) {
    if (event.type === "state") this.state.told(event);
    else if (event.type === "typing") this._emit("typing", { conversation: event.conversation, from: event.from });
    else this._emit("presence", event.users);
  }

  /** @param {string[]} conversations */
  _changed(conversations) {
    this._share({ type: "changed", conversations });
  }

  /** Read the states of commands again, for the handles of this tab. @param {string[]} ids */
  async _refresh(ids) {
    for (const id of ids) {
      const handle = this._handles.get(id);
      const status = handle && (await this._outbox.status(id).catch(() => undefined));
      if (!handle || !status) continue;
      handle._take(status);
      if (status.state === "acked") this._handles.delete(id);
      this._emit("change", [status.conversation]);
    }
  }

  /** Listeners run after what is under way, and what they throw ends with them. @param {keyof Listeners} name @param {...any} args */
  _emit(name, ...args) {
    for (const listener of this._listeners.get(name) ?? []) {
      setTimeout(() => {
        try {
          listener(...args);
        } catch (error) {
          if (name !== "error") this._emit("error", error);
        }
      }, 0);
    }
  }
}

/** @param {ClientOptions} options */
function storeName({ api, user }) {
  return `linnet:${new URL(api).origin}:${user}`;
}

/** @param {ClientOptions} options @returns {Promise<Store>} */
async function openStore(options) {
  const openMemory = async () => (await import("./store_memory.js")).openMemory();
  if (options.store === false) return openMemory();
  if (typeof document === "undefined") {
    if (!options.store) return openMemory();
    const { openSqlite } = await import("./store_sqlite.js");
    return openSqlite(options.store);
  }
  if (!globalThis.indexedDB) return openMemory();
  const { openIndexedDb } = await import("./store_indexeddb.js");
  const name = storeName(options);
  // Without Web Locks (no secure context) each tab is a device of its own.
  const opening = navigator.locks ? openIndexedDb(name) : import("./place.js").then(({ openPlace }) => openPlace(openIndexedDb, name));
  return opening.catch(() => openMemory()); // private modes refuse it, four other tabs have the places: `durable` says so
}
