// A bridge: what is posted to it becomes a message of a group. Run it on Node 22.13 or newer:
//
//     HOOK_PASSWORD=… HOOK_SECRET=… node router/sdk/examples/webhook.mjs http://127.0.0.1:8000 hook g:… hook-store 8090
//
// `POST /` with `Authorization: Bearer <HOOK_SECRET>` and `{"text": "…"}` is answered with 202 once the message is stored:
// from then on it is sent, whatever happens to this process, the network or the deployment. 503 means: post it again.

import { createHash, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

import { Client, login } from "../js/src/index.js";

const MOST_BYTES = 16_384;

const [api, user, group, store, port] = process.argv.slice(2);
const { HOOK_PASSWORD: password, HOOK_SECRET: secret } = process.env;
if (!port || !password || !secret) {
  console.error("usage: HOOK_PASSWORD=… HOOK_SECRET=… node webhook.mjs API USER GROUP STORE PORT");
  process.exit(2);
}

const digest = (text) => createHash("sha256").update(text).digest();
const allowed = (header) => timingSafeEqual(digest(header ?? ""), digest(`Bearer ${secret}`));

async function textOf(request) {
  const parts = [];
  let size = 0;
  for await (const part of request) {
    size += part.length;
    if (size > MOST_BYTES) throw Object.assign(new Error("the body is too large"), { status: 413 });
    parts.push(part);
  }
  try {
    const { text } = JSON.parse(Buffer.concat(parts).toString());
    if (typeof text === "string" && text) return text;
  } catch {
    // answered below
  }
  throw Object.assign(new Error('expected {"text": "…"}'), { status: 400 });
}

async function take(request) {
  if (request.method !== "POST") return [405, "expected POST"];
  if (!allowed(request.headers.authorization)) return [401, "expected the secret"];
  try {
    const message = client.conversation(group).send(await textOf(request));
    message.acked.catch((error) => console.error(`not delivered: ${error.code}`));
    await message.stored;
    return [202, "stored"];
  } catch (error) {
    return [error.status ?? 503, error.message];
  }
}

const client = await Client.open({ api, user, store, device: "hook", token: login(api, user, password) });
client.on("status", (status, detail) => console.error(`${status} ${detail}`.trim()));
client.connect();

const server = createServer(async (request, response) => {
  const [status, text] = await take(request);
  response.writeHead(status, { "Content-Type": "text/plain", Connection: "close" }).end(`${text}\n`);
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
for (const signal of ["SIGTERM", "SIGINT"]) {
  process.once(signal, () => {
    server.close();
    client.close().finally(() => process.exit(0));
  });
}
