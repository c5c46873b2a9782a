// Rules of the JavaScript SDK that need no connection: `node --test units.js`, which test_units.py runs.

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

const source = (name) => import(new URL(`../../../router/sdk/js/src/${name}.js`, import.meta.url));
const { afterClose, backoffMs } = await source("closes");
const { Client } = await source("client");
const { Connection } = await source("connection");
const { Election } = await source("election");
const { Events } = await source("events");
const { MessageHandle } = await source("handle");
const { Http } = await source("http");
const { Media } = await source("media");
const { viewOf } = await source("conversation");
const { advance, changeMessage, listed, newConversation, takeBack } = await source("model");
const { Outbox } = await source("outbox");
const { Receiver } = await source("receiver");
const { Sender } = await source("sender");
const { StoreLost, Superseded, key, prefix } = await source("store");
const { openMemory } = await source("store_memory");
const { openSqlite } = await source("store_sqlite");
const { fromWire, toWire } = await source("values");

const stores = { memory: openMemory, sqlite: () => openSqlite(mkdtempSync(join(tmpdir(), "linnet-"))) };

for (const [name, open] of Object.entries(stores)) {
  test(`${name}: a transaction that throws changes nothing`, async () => {
    const store = open();
    await store.transact("outbox", true, (t) => t.put("rows", "a", { n: 1 }));
    const failing = store.transact("outbox", true, async (t) => {
      await t.put("rows", "a", { n: 2 });
      await t.put("rows", "b", { n: 3 });
      throw new Error("no");
    });
    await assert.rejects(failing, /no/);
    assert.deepEqual(await store.transact("outbox", false, (t) => t.range("rows", "")), [["a", { n: 1 }]]);
    await store.close();
  });

  test(`${name}: a range has the keys of its prefix in order, in both directions`, async () => {
    const store = open();
    await store.transact("events", true, async (t) => {
      for (const seq of [10, 9, 100, 2]) await t.put("messages", key("c", seq), seq);
      await t.put("messages", key("c2", 1), -1);
    });
    const range = (options) => store.transact("events", false, async (t) => (await t.range("messages", prefix("c"), options)).map(([, v]) => v));
    assert.deepEqual(await range(), [2, 9, 10, 100]);
    assert.deepEqual(await range({ reverse: true, limit: 2 }), [100, 10]);
    assert.deepEqual(await range({ before: key("c", 10) }), [2, 9]);
    assert.deepEqual(await range({ from: key("c", 10) }), [10, 100]);
    await store.close();
  });

  test(`${name}: two commands at once get two numbers, also when the clock goes back`, async () => {
    const store = open();
    let now = 2_000_000;
    const outbox = new Outbox(store, () => now);
    await outbox.open("web", () => false);
    const first = await outbox.put("c", { type: "send" });
    now = 1_000_000;
    const [second, third] = await Promise.all([outbox.put("c", { type: "send" }), outbox.put("c", { type: "send" })]);
    assert.equal(first.n, 2_000_000_000);
    assert.deepEqual([second.n, third.n], [first.n + 1, first.n + 2]);
    await store.close();
  });
}

const none = async () => [];

async function filled(count) {
  const outbox = new Outbox(openMemory());
  const device = await outbox.open("web", () => false);
  await outbox.raiseEpoch();
  for (let i = 0; i < count; i += 1) await outbox.put("c", { type: "send", body: i });
  const take = async () => {
    const { rows, done } = await outbox.take(device, "c", (row) => row.attempts === 0);
    return { rows, done, bodies: rows.map((row) => row.command.body) };
  };
  return { outbox, device, take };
}

test("the 33rd command waits until the first is answered, however many after it are", async () => {
  const { outbox, take } = await filled(40);
  const { rows, done } = await take();
  assert.equal(rows.length, 32);
  assert.equal(done, rows[0].n - 1);
  const ack = (row) => ({ row, result: { conversation: "c", seq: row.n, at: 1 } });
  await outbox.settle(rows.slice(1).map(ack));
  assert.deepEqual((await take()).bodies, []);
  await outbox.settle([ack(rows[0])]);
  const next = await take();
  assert.deepEqual(next.bodies, [32, 33, 34, 35, 36, 37, 38, 39]);
  assert.ok(next.done >= rows[31].n && next.done < next.rows[0].n);
});

for (const clock of ["goes on", "is put back"]) test(`refused commands go again one at a time, then more with each answer; the clock ${clock}`, async (t) => {
  const { outbox, device } = await filled(5);
  const sent = [];
  let arrived = () => undefined;
  const count = async (n) => {
    while (sent.length < n) await new Promise((resolve) => (arrived = resolve));
    return sent.splice(0).map(({ body }) => body);
  };
  const connection = { send: (command) => (sent.push({ ...command }), arrived(), true) };
  const fail = (error) => assert.fail(error);
  const events = { moved: () => undefined, landed: none, copied: fail, otherDevice: fail, failed: fail };
  const sender = new Sender({ outbox, connection, events });
  sender.up(device);
  while (sent.length < 5) await new Promise((resolve) => (arrived = resolve));
  const ns = sent.map(({ n }) => n);
  assert.deepEqual(await count(5), [0, 1, 2, 3, 4]);
  for (const n of ns) sender.answered({ type: "error", code: "rate_limited", message: "", retry_after: 0.02, n });
  if (clock === "is put back") t.mock.method(Date, "now", () => 1_000_000);
  await outbox.put("c", { type: "send", body: "new" });
  sender.wake("c");
  assert.deepEqual(await count(1), [0]);
  const ack = (i) => sender.answered({ type: "ack", n: ns[i], conversation: "c", seq: i, at: 1, duplicate: false });
  ack(0);
  assert.deepEqual(await count(2), [1, 2]);
  ack(1);
  ack(2);
  assert.deepEqual(await count(2), [3, 4]);
  ack(3);
  ack(4);
  assert.deepEqual(await count(1), ["new"]);
});

for (const first of ["event", "error"]) test(`a refused command whose earlier copy was accepted later is acked; the ${first} comes first`, async () => {
  const { outbox, device } = await filled(1);
  const sent = [];
  let moved = () => undefined;
  const fail = (error) => assert.fail(error);
  const events = { moved: () => moved(), landed: none, copied: fail, otherDevice: fail, failed: fail };
  const sender = new Sender({ outbox, connection: { send: (command) => sent.push(command) }, events });
  const until = async (state) => {
    while ((await outbox.pending("c"))[0].state !== state) await new Promise((resolve) => (moved = resolve));
  };
  sender.up(device);
  await until("sent");
  const { n } = sent[0];
  const steps = {
    error: () => sender.answered({ type: "error", code: "read_only", message: "", n }),
    event: () => [device, "other"].forEach((from) => sender.landed({ type: "message", conversation: "c", device: from, n, seq: 7, at: 1 })),
  };
  steps[first]();
  if (first === "error") await until("failed");
  steps[first === "error" ? "event" : "error"]();
  await until("acked");
  const [{ seq, error }] = await outbox.pending("c");
  assert.deepEqual([seq, error], [7, undefined]);
});

test("an event does not ack a command that another has taken the number of", async () => {
  const { outbox, device, take } = await filled(1);
  const [row] = (await take()).rows;
  await outbox.settle([{ row, result: { error: { code: "conflict", message: "" } } }]);
  assert.deepEqual(await outbox.settle([], [{ device, n: row.n, conversation: "c", seq: 7, at: 1 }]), []);
  assert.equal((await outbox.status(row.id)).state, "failed");
});

test("a handle that has failed is acked by a later ack", async () => {
  const status = { id: "1", n: 1, device: "d", conversation: "c", command: {}, at: 1 };
  const handle = new MessageHandle(Promise.resolve({ ...status, state: "failed", error: { code: "read_only", message: "" } }), {});
  await handle.stored;
  await assert.rejects(handle.acked, { code: "read_only" });
  handle._take({ ...status, state: "acked", seq: 7 });
  assert.equal((await handle.acked).seq, 7);
  assert.equal(handle.error, undefined);
});

async function opened(connected, store = false) {
  const client = await Client.open({ api: "http://127.0.0.1:9", user: "ann", token: "t", store });
  client.connect = connected;
  return client;
}

test("a client that is closed while it opens its store again does not connect", async () => {
  let connects = 0;
  const client = await opened(() => (connects += 1));
  const reopened = client._storeLost(new StoreLost("wiped"));
  await client.close();
  await reopened;
  assert.equal(connects, 0);
});

test("a store that cannot be opened at once, for whatever reason, is opened later", async () => {
  let connects = 0;
  const client = await opened(() => (connects += 1));
  const { _openStore } = client;
  const errors = [];
  client.on("error", (error) => errors.push(error.message));
  client._openStore = async () => {
    client._openStore = _openStore;
    throw new Error("the disk does not answer");
  };
  await client._storeLost(new StoreLost("wiped"));
  assert.deepEqual([errors, connects], [["the disk does not answer"], 1]);
  await client.close();
});

test("a leader that could not write its store at first leads as soon as it can", async () => {
  const client = await opened(Client.prototype.connect);
  let full = true;
  const { transact } = client._store;
  client._store.transact = (database, write, work) => (full && write ? Promise.reject(new Error("the disk is full")) : transact(database, write, work));
  const failed = new Promise((resolve) => client.on("error", resolve));
  const welcome = { type: "welcome", device: client.device, conversations: [] };
  client.connect();
  client._frame(welcome);
  assert.equal((await failed).message, "the disk is full");
  full = false;
  const leads = new Promise((resolve) => (client._sender.up = resolve));
  client._frame(welcome); // of the next connection
  assert.equal(await leads, client.device);
  await client.close();
});

test("a message whose store is lost again and again is stored in the one that stays", async () => {
  const client = await opened(() => undefined);
  const { _parts } = client;
  let losses = 2;
  const lose = () => {
    const { put } = client._outbox;
    client._outbox.put = (...args) => (losses-- > 0 ? Promise.reject(new StoreLost("wiped")) : put.apply(client._outbox, args));
  };
  client._parts = (store) => {
    _parts.call(client, store);
    lose();
  };
  lose();
  const handle = client.conversation("@bob").send("hi");
  await handle.stored;
  assert.equal(handle.state, "queued");
  await client.close();
});

test("what was acked while the store could not be read is seen when it can", async () => {
  const client = await opened(() => undefined, mkdtempSync(join(tmpdir(), "linnet-")));
  const handles = ["one", "two"].map((body) => client.conversation("@bob").send(body));
  await Promise.all(handles.map(({ stored }) => stored));
  await client._outbox.raiseEpoch();
  const { rows } = await client._outbox.take(client.device, handles[0].conversation, () => true);
  await client._outbox.settle([{ row: rows[1], result: { conversation: rows[1].conversation, seq: 2, at: 1 } }]);
  await client._storeLost(new StoreLost("closed"));
  assert.deepEqual(handles.map(({ state }) => state), ["sent", "acked"]);
  await client.close();
});

test("what was settled while the store could not be read is not queued again when it can", async () => {
  const client = await opened(() => undefined, mkdtempSync(join(tmpdir(), "linnet-")));
  const handles = ["refused", "acked"].map((body) => client.conversation("@bob").send(body));
  await Promise.all(handles.map(({ stored }) => stored));
  await client._outbox.raiseEpoch();
  const { rows } = await client._outbox.take(client.device, handles[0].conversation, () => true);
  const results = [{ error: { code: "read_only", message: "" } }, { conversation: rows[1].conversation, seq: 2, at: 1 }];
  await client._outbox.settle(rows.map((row, i) => ({ row, result: results[i] })));
  assert.deepEqual(handles.map(({ state }) => state), ["queued", "queued"]); // this tab was not told
  await client._storeLost(new StoreLost("closed"));
  assert.deepEqual(handles.map(({ state }) => state), ["failed", "acked"]);
  assert.deepEqual((await client._outbox.work()).conversations, []);
  await assert.rejects(handles[0].acked, { code: "read_only" });
  await client.close();
});

/** A client with a command that was refused, and then received: it was accepted late, and this client has not seen that. */
async function refused() {
  const client = await opened(() => undefined);
  const handle = client.conversation("@bob").send("hi");
  await Promise.all([handle.stored, client._ready()]);
  const { rows } = await client._outbox.take(client.device, handle.conversation, () => true);
  await client._outbox.settle([{ row: rows[0], result: { error: { code: "read_only", message: "" } } }]);
  await client._refresh([handle.id]);
  await assert.rejects(handle.acked, { code: "read_only" });
  const event = { ...changes[0], conversation: handle.conversation, from: "ann", device: client.device, n: rows[0].n, seq: 7 };
  return { client, handle, event };
}

for (const who of ["the next connection", "a retry"]) test(`a refused command whose event was stored, but not seen, is acked by ${who}`, async () => {
  const { client, handle, event } = await refused();
  await client._events.apply([event]);
  const acked = new Promise((resolve) => handle.onChange(resolve));
  if (who === "a retry") {
    client._outbox.epoch = 0; // of a tab that does not lead
    assert.equal(await handle.retry(), false);
  } else client._sender.up(client.device);
  await acked;
  assert.deepEqual([handle.state, handle.seq, await client._outbox.work().then(({ conversations }) => conversations)], ["acked", 7, []]);
  await client.close();
});

test("a command that was refused under a name that was given up is acked by its event", async () => {
  for (const settling of [false, true]) {
    const { client, handle, event } = await refused();
    await client._outbox.rename("web", client.device, false);
    await client._choose();
    if (settling) client._settling = event.device;
    client._sender.up(settling ? event.device : client.device);
    client._frame(event);
    await new Promise((resolve) => handle.onChange(resolve));
    assert.deepEqual([handle.state, handle.seq], ["acked", 7]);
    await client.close();
  }
});

test("an own event costs no transaction while no command is refused", async () => {
  const { outbox, device } = await filled(0);
  const fail = (error) => assert.fail(error);
  let looked;
  const looks = new Promise((resolve) => (looked = resolve));
  const landed = async () => (looked(), []);
  const sender = new Sender({ outbox, connection: {}, events: { moved: fail, landed, copied: fail, otherDevice: fail, failed: fail } });
  sender.up(device);
  await looks;
  outbox.settle = fail;
  sender.landed({ ...changes[0], device, n: 1 });
  await new Promise((resolve) => setImmediate(resolve));
});

test("a tab of the last release leaves what it watches to the next leader", async () => {
  const client = await opened(() => undefined);
  const posted = [];
  client._election = { leader: false, post: (message) => posted.push(message), stop: () => undefined };
  client._message({ type: "watch", users: ["bob"] });
  client._message({ type: "state", state: "live" });
  assert.deepEqual(posted.map(({ command }) => command?.users), [["bob"]]);
  await client.close();
});

test("a clock that is set neither ends a live connection nor hides a dead one", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  let now = 0;
  let ahead = 1e12;
  t.mock.method(performance, "now", () => now);
  t.mock.method(Date, "now", () => now + ahead);
  const pass = (ms) => {
    now += ms;
    t.mock.timers.tick(ms);
  };
  const live = (answer) => {
    const events = { state: () => undefined, frame: () => undefined };
    const connection = new Connection({ http: {}, token: async () => "t", events });
    const send = () => answer && connection._received({ type: "pong" });
    connection._socket = { readyState: WebSocket.OPEN, send, close: () => undefined };
    connection._received({ type: "welcome", heartbeat_s: 30, expires_at: Date.now() + 1e12 });
    return connection;
  };
  const [alive, dead] = [live(true), live(false)];
  ahead += 86_400_000;
  pass(30_000);
  pass(5000);
  assert.deepEqual([alive.state, dead.state], ["live", "waiting"]); // a sleep would look the same: they were asked
  const silent = live(false);
  ahead -= 2 * 86_400_000;
  pass(30_000);
  pass(30_000);
  assert.deepEqual([alive.state, silent.state], ["live", "waiting"]);
});

test("a token is renewed before it ends, a gateway that drains is left, and a token that is refused twice stops", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const sockets = [];
  class Socket {
    static OPEN = 1;
    readyState = Socket.OPEN;
    sent = [];
    constructor() {
      sockets.push(this);
    }
    send(text) {
      this.sent.push(JSON.parse(text));
    }
    close() {
      this.readyState = 3;
    }
  }
  const { WebSocket } = globalThis;
  globalThis.WebSocket = Socket;
  t.after(() => (globalThis.WebSocket = WebSocket));
  const reasons = [];
  const states = [];
  const connection = new Connection({
    http: { call: async () => ({ gateways: ["ws://one", "ws://two"] }) },
    token: async (reason) => `token ${reasons.push(reason)}`,
    events: { state: (...state) => states.push(state), frame: () => undefined, hello: async () => ({}), replaced: () => undefined },
  });
  const pass = async (ms) => {
    t.mock.timers.tick(ms);
    await new Promise(setImmediate);
  };
  connection.start();
  await pass(0);
  const [first] = sockets;
  const say = (event) => first.onmessage({ data: JSON.stringify(event) });
  first.onopen();
  say({ type: "welcome", heartbeat_s: 1e6, expires_at: Date.now() + 1e6 });
  await pass(790_000);
  assert.deepEqual(reasons, ["connect"]);
  await pass(20_000);
  assert.deepEqual(reasons, ["connect", "expiring"]);
  const { id, ...auth } = first.sent.at(-1);
  assert.deepEqual(auth, { type: "auth", token: "token 2" });
  say({ type: "ok", id, expires_at: Date.now() + 1e9 });
  say({ type: "drain", retry_after: 2 });
  await pass(1999);
  assert.equal(connection.state, "live");
  await pass(1);
  assert.deepEqual([connection.state, first.readyState, sockets.length], ["connecting", 3, 2]);
  sockets[1].onclose({ code: 4501, reason: "" });
  await pass(30_000);
  assert.deepEqual(reasons.slice(2), ["connect", "token_expired"]);
  sockets[2].onclose({ code: 4501, reason: "" });
  assert.deepEqual(states.at(-1), ["stopped", "token_expired"]);
});

test("a tab watches as many users as it likes, and again whenever a leader is connected", async () => {
  const client = await opened(() => undefined);
  const posted = [];
  client._election = { leader: false, post: (message) => posted.push(message), stop: () => undefined };
  const users = Array.from({ length: 201 }, (_, i) => `u${i}`);
  const asked = () => posted.splice(0).map(({ command }) => command?.users.length);
  client.watch(users);
  assert.deepEqual(asked(), [200, 1]);
  client._message({ type: "state", state: "live" }); // of a tab that was opened later, and leads now
  assert.deepEqual(asked(), [200, 1]);
  await client.close();
});

test("an election that was stopped while it took the lock does not keep it", async (t) => {
  const listens = { hidden: false, addEventListener: () => undefined, removeEventListener: () => undefined };
  Object.assign(globalThis, { document: listens, addEventListener: () => undefined, removeEventListener: () => undefined });
  t.after(() => delete globalThis.document);
  const locks = { request: (_name, _options, hold) => new Promise((resolve) => (locks.give = () => resolve(hold()))) };
  Object.defineProperty(navigator, "locks", { value: locks, configurable: true });
  t.after(() => delete navigator.locks);
  const election = new Election("linnet", { lead: () => assert.fail("it leads"), follow: () => undefined, wake: () => undefined, message: () => undefined, state: () => "idle" });
  election.start();
  election._steal();
  election.stop();
  assert.equal(await locks.give(), undefined);
  assert.equal(election.leader, false);
});

test("a leader of an earlier epoch can neither take nor settle", async () => {
  const { outbox, device } = await filled(1);
  const successor = new Outbox(outbox._store);
  await successor.raiseEpoch();
  await assert.rejects(outbox.take(device, "c", () => true), Superseded);
  await assert.rejects(outbox.settle([{}]), Superseded);
  assert.equal((await successor.take(device, "c", () => true)).rows.length, 1);
});

test("only what was never written can be cancelled", async () => {
  const { outbox, device } = await filled(2);
  const [first, second] = await outbox.pending("c");
  assert.ok(await outbox.cancel(first.id));
  await outbox.take(device, "c", () => true);
  assert.ok(!(await outbox.cancel(second.id)));
});

test("a name that was taken over: new rows move, written ones are looked up", async () => {
  const { outbox, device, take } = await filled(1);
  const { rows } = await take();
  await outbox.put("c", { type: "send", body: "new" });
  const renamed = await outbox.rename("web", device, true);
  const work = await outbox.work();
  assert.equal(work.device, renamed);
  assert.deepEqual(work.lookups.map(({ n }) => n), [rows[0].n]);
  const { rows: moved } = await outbox.take(renamed, "c", () => true);
  assert.deepEqual(moved.map(({ command }) => command.body), ["new"]);
});

test("a name that was given up is settled before the new one", async () => {
  const { outbox, device } = await filled(1);
  const renamed = await outbox.rename("web", device, false);
  assert.equal((await outbox.work()).device, device);
  assert.equal(await outbox.rename("web", device, false), renamed); // said twice
});

test("an old name that another process uses is looked up, and the present one stays", async () => {
  const { outbox, device, take } = await filled(1);
  await take();
  const renamed = await outbox.rename("web", device, false);
  assert.equal(await outbox.rename("web", device, true), renamed);
  const { device: next, lookups } = await outbox.work();
  assert.deepEqual([next, lookups.length], [renamed, 1]);
});

test("what another process may have sent is looked up until the server answers; it has failed if its conversation is gone", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { outbox, device, take } = await filled(1);
  await take();
  const renamed = await outbox.rename("web", device, true);
  const connection = new Connection({ http: {}, token: async () => "t", events: { state: () => undefined, frame: () => undefined } });
  const codes = ["unavailable", "rate_limited", "not_found"];
  const send = (text) => {
    const { id } = JSON.parse(text);
    const code = codes.shift();
    queueMicrotask(() => connection._received({ type: "error", id, code, message: "" }));
  };
  connection._socket = { readyState: WebSocket.OPEN, send, close: () => undefined };
  connection.state = "live";
  const fail = (error) => assert.fail(error);
  const moved = new Promise((resolve) => {
    const sender = new Sender({ outbox, connection, events: { moved: resolve, landed: none, copied: fail, otherDevice: fail, failed: fail } });
    sender.up(renamed);
  });
  while (codes.length) {
    await new Promise((resolve) => setImmediate(resolve));
    t.mock.timers.tick(1000);
  }
  const [id] = await moved;
  assert.equal((await outbox.status(id)).error.code, "conflict");
});

const base = { conversation: "c", prev: 0, count: 1, at: 1, device: "d", n: 1 };
const changes = [
  { ...base, type: "message", seq: 1, from: "bob", media: "text", body: "a" },
  { ...base, type: "edit", seq: 2, from: "bob", target: 1, body: "b" },
  { ...base, type: "edit", seq: 3, from: "bob", target: 1, body: "c" },
  { ...base, type: "react", seq: 4, from: "eve", target: 1, emoji: "+", remove: false },
  { ...base, type: "react", seq: 5, from: "eve", target: 1, emoji: "+", remove: true },
  { ...base, type: "react", seq: 6, from: "bob", target: 1, emoji: "+", remove: false },
];

function permutations(list) {
  if (list.length < 2) return [list];
  return list.flatMap((one, i) => permutations([...list.slice(0, i), ...list.slice(i + 1)]).map((rest) => [one, ...rest]));
}

test("a message is the same in whatever order its changes come, and however often", () => {
  const shown = ({ body, edits, reactions, here }) => JSON.stringify([body, edits, Object.entries(reactions["+"]).sort(), here]);
  const made = permutations(changes).map((order) => shown([...order, ...order].reduce(changeMessage, undefined)));
  assert.equal(new Set(made).size, 1);
});

test("a failover takes back an edit and a reaction, or the message", () => {
  const message = changes.reduce(changeMessage, undefined);
  const left = takeBack(message, 3, 6);
  assert.equal(left.edits[0].body, "b");
  assert.deepEqual(left.reactions, { "+": {} });
  assert.equal(takeBack(message, 1, 1), undefined);
});

test("the view has who may post, and the own mute, by lists and by events", () => {
  const entry = { conversation: "g", kind: "group", title: "T", role: "member", head: 3, read: 0, unread: 0, posting: "admins" };
  const seen = (row) => [viewOf(row).posting, viewOf(row).mutedUntil];
  assert.deepEqual(seen(newConversation("g", 0, "bob")), [undefined, undefined]);
  let row = listed(undefined, { ...entry, muted_until: null }, "bob");
  assert.deepEqual(seen(row), ["admins", null]);
  assert.deepEqual(seen(listed(row, entry, "bob")), ["admins", undefined]);
  const member = { ...base, type: "member", from: "ann", role: "member" };
  const told = [
    [{ ...member, user: "eve", action: "mute", until: 5 }, "admins", null],
    [{ ...member, user: "bob", action: "mute", until: 7 }, "admins", 7],
    [{ ...member, user: "bob", action: "role", role: "reader" }, "admins", 7],
    [{ ...base, type: "title", from: "ann", title: "U", slow_s: 5 }, "admins", 7],
    [{ ...base, type: "title", from: "ann", title: "U", posting: "all" }, "all", 7],
    [{ ...member, user: "bob", action: "unmute" }, "all", undefined],
  ];
  for (const [number, [event, posting, mutedUntil]] of told.entries()) {
    row = advance(row, { ...event, conversation: "g", seq: 4 + number }, "bob");
    assert.deepEqual(seen(row), [posting, mutedUntil]);
  }
  assert.equal(row.role, "member");
});

test("events behind a hole wait for its page, and come once", async () => {
  const events = new Events(openMemory(), "alice");
  events.handles = true;
  await events.adopt("web.1");
  await events.raiseEpoch();
  const message = (seq, prev = seq - 1) => ({ ...changes[0], seq, prev, n: seq, count: seq, body: seq });
  const first = await events.apply([message(1), message(4), message(5)]);
  assert.deepEqual([...first.holes], [["c", 1]]);
  // 2 was deleted meanwhile: the page has no event before 3, and none that 3 names as the one before it.
  await events.apply([{ type: "page", conversation: "c", events: [message(3)], more: false }, message(6), message(5)]);
  const handed = (await events.unhanded(0, 100)).map(({ event }) => event.seq);
  assert.deepEqual(handed, [1, 3, 4, 5, 6]);
});

test("as many cursors as leave room for a token go into one frame", () => {
  const sent = [];
  const connection = { state: "live", send: (command) => sent.push(command), request: () => new Promise(() => undefined) };
  const receiver = new Receiver({ connection, ready: async () => undefined, listeners: {} });
  const name = (i) => `d:${"a".repeat(64)}:${String(i).padStart(64, "b")}`;
  receiver.stored(new Map(Array.from({ length: 2000 }, (_, i) => [name(i), Number.MAX_SAFE_INTEGER])));
  for (const cursors of [sent[0].cursors, receiver.cursors()]) {
    assert.ok(JSON.stringify(cursors).length < 131_072 - 8192);
    assert.ok(Object.keys(cursors).length > 500);
  }
});

test("a hole is filled by the server's answer", async () => {
  const events = new Events(openMemory(), "alice");
  await events.adopt("web.1");
  await events.raiseEpoch();
  const message = (seq) => ({ ...changes[0], seq, prev: seq - 1, n: seq, count: seq, body: seq });
  const history = async ({ conversation, after }) => ({ type: "history", id: 1, conversation, events: [message(after + 1)], more: false });
  let filled = () => undefined;
  const listeners = { changed: () => filled(), logged: () => undefined, failed: (error) => assert.fail(error) };
  const receiver = new Receiver({ events, connection: { state: "live", history, send: () => true, request: async () => undefined }, ready: async () => undefined, listeners });
  for (const seq of [1, 3]) receiver.push(message(seq));
  while ((await events.conversation("c"))?.cursor !== 3) await new Promise((resolve) => (filled = resolve));
  assert.deepEqual((await events.messages("c", Infinity, 10)).map(({ seq }) => seq), [1, 2, 3]);
});

test("an entry of a part that does not answer changes nothing else", async () => {
  const events = new Events(openMemory(), "alice");
  await events.adopt("web.1");
  await events.raiseEpoch();
  const entry = { conversation: "g", kind: "group", title: "T", role: "member", head: 0, cursor: 0, read: 0, unread: 0, posting: "all" };
  const listed = (entry) => ({ type: "conversations", conversations: [entry], more: false });
  await events.apply([listed({ ...entry, conversation: "other", held: true })]);
  assert.equal(await events.conversation("other"), undefined); // another entry follows, with the cursor
  await events.apply([listed(entry), { ...changes[0], conversation: "g", seq: 1, prev: 0, n: 1, count: 1 }]);
  const before = viewOf(await events.conversation("g"));
  for (const held of [true, false]) {
    await events.apply([listed({ conversation: "g", kind: "group", title: "T", held })]);
    assert.deepEqual(viewOf(await events.conversation("g")), { ...before, held });
  }
  await events.apply([listed({ conversation: "g", kind: "group", title: "T", held: true }), listed(entry)]);
  assert.equal(viewOf(await events.conversation("g")).held, false);
});

test("a message with another seq and the same number is dropped", async () => {
  const events = new Events(openMemory(), "alice");
  await events.adopt("web.1");
  await events.raiseEpoch();
  const twice = [1, 2].map((seq) => ({ ...changes[0], seq, prev: seq - 1 }));
  await events.apply(twice);
  assert.deepEqual((await events.messages("c", Infinity, 10)).map(({ seq }) => seq), [1]);
  assert.equal((await events.conversation("c")).cursor, 2);
});

test("each close code leads to what the protocol says", () => {
  assert.deepEqual(afterClose(4008, "retry_after=2.5"), { action: "retry", afterMs: 2500 });
  for (const code of [1000, 1001, 1006, 1012, 4000, 4001, 4002, 4003]) assert.equal(afterClose(code, "").action, "retry");
  assert.deepEqual(afterClose(4501, "").action, "token");
  assert.deepEqual(afterClose(4409, "").action, "replaced");
  for (const code of [4502, 4503, 4504]) assert.equal(afterClose(code, "").action, "stop");
});

test("pauses are between 0.3 and 30 s", () => {
  for (const failures of [0, 1, 5, 100]) {
    assert.equal(backoffMs(failures, () => 0), 300);
    assert.ok(backoffMs(failures, () => 1) <= 30_000);
  }
  assert.equal(backoffMs(100, () => 1), 30_000);
});

test("bytes survive the way over JSON; what a body may not contain is refused", () => {
  const body = { list: [new Uint8Array([0, 255])], text: "x", none: null };
  assert.deepEqual(fromWire(JSON.parse(JSON.stringify(toWire(body)))), body);
  for (const value of [undefined, Number.NaN, 2 ** 60, 1n, () => 1]) assert.throws(() => toWire({ value }), TypeError);
});

test("a call whose token has ended is made again with another token, once", async () => {
  const server = createServer((request, response) => {
    const good = request.headers.authorization === "Bearer new";
    response.writeHead(good ? 200 : 401).end(JSON.stringify(good ? { done: true } : { error: { code: "token_expired", message: "" } }));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const reasons = [];
  const made = (tokens) => new Http(`http://127.0.0.1:${server.address().port}`, async (reason) => (reasons.push(reason), tokens[reason] ?? "old"));
  assert.deepEqual(await made({ token_expired: "new" }).call("GET", "/"), { done: true });
  await assert.rejects(made({}).call("GET", "/"), { code: "token_expired" });
  await assert.rejects(made({ token_expired: "other" }).call("GET", "/"), { code: "token_expired" });
  assert.deepEqual(reasons, ["connect", "token_expired", "connect", "token_expired", "connect", "token_expired"]);
  server.closeAllConnections();
  server.close();
});

test("the JSON of a load balancer is an answer that may pass, too", async () => {
  const server = createServer((request, response) => response.writeHead(503).end(decodeURIComponent(request.url.slice(1))));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const http = new Http(`http://127.0.0.1:${server.address().port}`, async () => "token");
  for (const text of ['{"message":"no upstream"}', '{"error":"no upstream"}', "null", "<html>"]) {
    await assert.rejects(http.call("GET", `/${encodeURIComponent(text)}`), { code: "unavailable" }, text);
  }
  server.closeAllConnections();
  server.close();
});

test("an upload can be cancelled in every phase", async () => {
  const sockets = [];
  const server = createServer((request, response) => {
    sockets.push(request.url);
    if (request.method === "POST" && request.url === "/v1/uploads/tus" && mode === "busy") {
      response.writeHead(503, { "Retry-After": "600" }).end("{}"); // it waits
    } // else there is no answer
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  let mode = "silent";
  const api = `http://127.0.0.1:${server.address().port}`;
  const never = new Promise(() => undefined);
  const cancelled = async (tokens, size, reached) => {
    const stopping = new AbortController();
    const upload = new Media(new Http(api, tokens)).upload(new Uint8Array(size), { signal: stopping.signal });
    while (!reached()) await new Promise((resolve) => setImmediate(resolve));
    stopping.abort();
    await assert.rejects(upload, { code: "cancelled" });
  };
  await cancelled(() => never, 10, () => true); // waits for a token
  await cancelled(async () => "token", 10, () => sockets.length === 1); // at once
  await cancelled(async () => "token", 2 << 20, () => sockets.length === 2); // its beginning
  mode = "busy";
  await cancelled(async () => "token", 2 << 20, () => sockets.length === 3);
  server.closeAllConnections();
  server.close();
});
