// An application on the SDK that does what the test says, and reports what the SDK shows it. The same in Node and in a page.
//
// `start(source, report)` returns the commands as functions. What happens by itself goes to `report`: each event that the handler
// was given and had, each state of a handle and of the connection, each gap and error.

export async function start(source, report) {
  const { Client } = await import(source);
  let client;
  const talks = new Map(); // kept, as an application keeps them
  const talk = (to) => talks.get(to) ?? (talks.set(to, client.conversation(to)), talks.get(to));
  const handles = new Map();
  const gates = new Map(); // body -> what lets the handler return
  const opened = new Map(); // bodies that may pass before they came

  const follow = (name, handle) => {
    handles.set(name, handle);
    const say = () =>
      report({ type: "handle", name, state: handle.state, seq: handle.seq, code: handle.error?.code, id: handle.id, device: handle.row?.device });
    handle.onChange(say);
    handle.stored.then(() => report({ type: "stored", name, id: handle.id }), () => undefined);
    handle.acked.catch(() => undefined);
  };

  const handlers = {
    async record(event) {
      report({ type: "handed", event });
    },
    // Answers each message from within the handler, and waits for the ack there.
    async echo(event) {
      report({ type: "handed", event });
      if (event.type !== "message" || event.from === client.user) return;
      const handle = client.conversation(event.conversation).send(`echo ${event.body}`);
      follow(`echo ${event.body}`, handle);
      await handle.acked;
    },
    // Has each message only after `pass`.
    async gated(event) {
      report({ type: "given", event });
      if (event.type === "message" && !opened.has(event.body)) await new Promise((resolve) => gates.set(event.body, resolve));
      report({ type: "handed", event });
    },
  };

  return {
    async open({ api, user, token, device, store }) {
      talks.clear();
      client = await Client.open({ api, user, token: (reason) => (report({ type: "token", reason }), token), device, store });
      client.on("status", (status, detail) => report({ type: "status", status, detail, leader: client.leader }));
      client.on("gap", (gap) => report({ ...gap, type: "gap" }));
      client.on("error", (error) => report({ type: "error", error: String(error?.stack ?? error) }));
      client.on("presence", (users) => report({ type: "presence", users }));
      client.on("typing", (typing) => report({ ...typing, type: "typing" }));
      return { device: client.device, durable: client.durable };
    },
    async connect({ handler } = {}) {
      if (handler) client.listen(handlers[handler]);
      else client.connect();
    },
    async iterate({ count }) {
      const bodies = [];
      for await (const event of client.events()) {
        if (event.type === "message") bodies.push(event.body);
        report({ type: "given", event });
        if (bodies.length === count) break;
      }
      return bodies;
    },
    async upload({ bytes, size, stop, ...options }) {
      const told = [];
      const stopping = new AbortController();
      const progress = (done, size) => {
        told.push([done, size]);
        if (done >= stop) stopping.abort();
      };
      const data = bytes ? new Uint8Array(bytes) : Uint8Array.from({ length: size }, (_, i) => i % 251);
      const name = (upload) => report({ type: "begun", upload });
      const begun = stop === undefined ? undefined : name;
      try {
        return { file: await client.media.upload(data, { ...options, progress, begun, signal: stopping.signal }), told };
      } catch (error) {
        return { code: error.code, message: error.message, told };
      }
    },
    links: ({ files, conversation }) => client.media.links(files, conversation),
    async send({ to, body, files, name = body, wait = "stored" }) {
      const handle = talk(to).send(body, { files });
      follow(name, handle);
      if (wait) await handle[wait];
      return { id: handle.id, state: handle.state, seq: handle.seq };
    },
    async send_many({ to, bodies }) {
      const sent = bodies.map((body) => talk(to).send(body));
      for (const [i, handle] of sent.entries()) follow(bodies[i], handle);
      await Promise.all(sent.map((handle) => handle.stored));
    },
    async act({ to, action, args, wait = "acked" }) {
      const handle = talk(to)[action](...args);
      await handle[wait];
    },
    async acked({ name }) {
      const handle = await handles.get(name).acked;
      return { state: handle.state, seq: handle.seq };
    },
    retry: ({ name }) => handles.get(name).retry(),
    cancel: ({ name }) => handles.get(name).cancel(),
    pass({ body }) {
      opened.set(body, true);
      gates.get(body)?.();
    },
    async outbox({ to }) {
      const found = await client.outbox(talk(to).id);
      return found.map(({ id, state }) => ({ id, state }));
    },
    messages: ({ to, ...options }) => talk(to).messages(options),
    view: ({ to }) => talk(to).view(),
    mark_read: ({ to, seq }) => talk(to).markRead(seq),
    load_older: ({ to, limit }) => talk(to).loadOlder(limit),
    load_reads: ({ to }) => talk(to).loadReads(),
    watch: ({ users }) => client.watch(users),
    typing: ({ to }) => talk(to).typing(),
    // `client.state` and `client.people`, by the names of their methods.
    state: ({ action, args = [] }) => client.state[action](...args),
    people: ({ action, args = [] }) => client.people[action](...args),
    // The entry points beside the core. `token`: calls without the client.
    async extra({ module, part, action, args = [], api, token }) {
      const found = await import(new URL(`./${module}.js`, source));
      return new found[part](token ? found.caller(api, token) : client)[action](...args);
    },
    watch_state: ({ prefix }) => void client.state.watch(prefix, (key, value) => report({ type: "state", key, value })),
    status: () => ({ status: client.status, stopped: client.stopped, leader: client.leader, device: client.device, durable: client.durable }),
    close: () => client.close(),
  };
}
