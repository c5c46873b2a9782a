// An application on the JavaScript SDK: the same commands and reports as `client_driver.py`, in Node and in a tab.
//
// `start(Client, report)` returns a function that takes a command. A report is handed on before the SDK goes on.

const POLL_MS = 200;
const SLOW_MS = 50;
const SHOWN = 30;
const PATIENCE_MS = 1500;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const refOf = (body) => String((typeof body === "object" && body !== null ? body.ref : body) ?? "").split("|")[0];

// Bodies cross the pipe as the wire has them: `{"$b64": …}` for bytes.
const fromLine = (value) => {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(fromLine);
  if (typeof value.$b64 === "string") return Uint8Array.from(atob(value.$b64), (character) => character.charCodeAt(0));
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, fromLine(item)]));
};
const toLine = (value) => {
  if (value instanceof Uint8Array) return { $b64: btoa(String.fromCharCode(...value)) };
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(toLine);
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, toLine(item)]));
};

export function start(Client, report, die) {
  const installations = new Map();
  const tokens = new Map();

  const tokenOf = (user) =>
    new Promise((resolve) => {
      const id = tokens.size;
      tokens.set(id, resolve);
      report({ type: "token", id, user });
    });

  class Installation {
    constructor({ installation, slow, watch }, client) {
      this.name = installation;
      this.slow = slow;
      this.client = client;
      this.device = client.device;
      this.watched = watch;
      this.online = {};
      this.kept = {};
      this.closed = false;
    }

    say(type, fields) {
      report({ type, installation: this.name, ...fields });
    }

    async open() {
      const { client } = this;
      this.say("opened", { device: client.device });
      client.on("error", (error) => this.say("bug", { text: String(error?.stack ?? error) }));
      client.on("status", (status, detail) => {
        this.say("status", { status, reason: status === "stopped" ? detail : "" });
        if (status === "stopped") setTimeout(() => !this.closed && client.connect(), Math.random() * PATIENCE_MS);
      });
      client.on("presence", (users) => {
        for (const [user, { online }] of Object.entries(users)) this.online[user] = online;
      });
      client.watch(this.watched);
      for (const handle of await client.outbox()) this.follow(refOf(handle.command?.body), handle);
      client.listen((event) => this.handle(event));
      void this.watch();
    }

    async close() {
      this.closed = true;
      await this.client.close();
      this.say("closed", {});
    }

    async handle(event) {
      this.named();
      const { conversation } = event;
      if (event.type === "gap") this.say("gap", { conversation, first: event.from, last: event.to, reason: event.reason });
      else this.say("handed", { event: toLine(event) });
      if (Math.random() < this.slow) await pause(Math.random() * SLOW_MS);
      if (event.type !== "message" || event.from === this.client.user || event.body?.ask !== true) return;
      const ref = `re ${event.seq} ${this.name} ${Math.random()}`;
      this.say("asked", { ref, conversation, body: ref });
      await this.follow(ref, this.client.conversation(conversation).send(ref)).acked.catch(() => undefined);
    }

    named() {
      if (this.client.device !== this.device) this.say("device", { device: (this.device = this.client.device) });
    }

    async watch() {
      while (!this.closed) {
        try {
          this.named();
          const now = await this.client.cursors();
          const changed = Object.entries(now).filter(([name, seq]) => this.kept[name] !== seq);
          if (changed.length) this.say("kept", { cursors: Object.fromEntries(changed) });
          this.kept = now;
        } catch {
          // the store is lost, or was closed: the client says so elsewhere
        }
        await pause(POLL_MS);
      }
    }

    act({ do: what, conversation: name, ref, body, seq, emoji, die: dies = false }) {
      const conversation = this.client.conversation(name);
      if (what === "send") this.follow(ref, conversation.send(fromLine(body)), dies);
      else if (what === "edit") this.follow(ref, conversation.edit(seq, fromLine(body)));
      else this.follow(ref, conversation.react(seq, emoji));
    }

    follow(ref, handle, dies = false) {
      const failed = (error) => this.say("failed", { ref, code: error.code ?? String(error) });
      handle.acked.then(() => this.say("acked", { ref, conversation: handle.conversation, seq: handle.seq }), failed);
      handle.stored.then(
        () => {
          this.say("stored", { ref });
          if (dies) die();
        },
        () => undefined, // `acked` says it
      );
      return handle;
    }

    async set({ key, value }) {
      const version = await this.client.state.set(key, value).catch(() => undefined); // nothing was promised
      if (version !== undefined) this.say("put", { key, version });
    }

    async show() {
      const state = await this.client.state.entries("app/").catch(() => undefined);
      if (state === undefined) return; // it is asked again
      const conversations = {};
      for (const { id, read } of await this.client.conversations()) {
        const messages = await this.client.conversation(id).messages({ limit: SHOWN });
        conversations[id] = { read, messages: messages.map(({ seq, body, state }) => [state === "acked" ? seq : null, toLine(body)]) };
      }
      const open = [];
      const failed = [];
      for (const handle of await this.client.outbox()) (handle.state === "failed" ? failed : open).push(refOf(handle.command?.body));
      this.say("shown", { conversations, open, failed, state: toLine(state), online: this.online });
    }
  }

  const commands = {
    async open(command) {
      const { api, user, store, device } = command;
      const client = await Client.open({ api, user, device, store: store ?? undefined, token: () => tokenOf(user) });
      const installation = new Installation(command, client);
      installations.set(command.installation, installation);
      await installation.open();
    },
    close: ({ installation }) => installations.get(installation)?.close(),
    show: ({ installation }) => installations.get(installation)?.show(),
    read: ({ installation, conversation }) => installations.get(installation)?.client.conversation(conversation).markRead(),
    set: (command) => installations.get(command.installation)?.set(command),
    send: (command) => installations.get(command.installation)?.act(command),
    edit: (command) => installations.get(command.installation)?.act(command),
    react: (command) => installations.get(command.installation)?.act(command),
    token: ({ id, token }) => tokens.get(id)(token),
  };

  return async (command) => {
    try {
      await commands[command.do](command);
    } catch (error) {
      if (error?.constructor.name === "StoreLost") return; // the client says so elsewhere
      report({ type: "bug", installation: command.installation, text: `${command.do}: ${error?.stack ?? error}` });
    }
  };
}
