// Clients on the JavaScript SDK in one process, to be measured: `node sdk_client.mjs SDK STORES API GATEWAY USER TOKEN …`.
//
// As `sdk_client.py`. GATEWAY is what the API says, so it is not needed here.

import { createInterface } from "node:readline";

const [, , sdk, stores, api, , ...usersAndTokens] = process.argv;
const { Client } = await import(sdk);

let given = 0;
let wake = () => {};
const clients = [];
for (let i = 0; i < usersAndTokens.length; i += 2) {
  const [user, token] = usersAndTokens.slice(i, i + 2);
  const client = await Client.open({ api, user, token, store: stores === "-" ? false : `${stores}/${user}` });
  client.listen((event) => {
    if (event.type !== "gap") given += 1;
    wake();
  });
  clients.push(client);
}
await Promise.all(clients.map((client) => client.until("live")));
console.log("ready");
let wanted = 0;
for await (const line of createInterface({ input: process.stdin })) {
  wanted += Number(line);
  while (given < wanted) await new Promise((resolve) => (wake = resolve));
  console.log("given");
}
process.exit(0);
