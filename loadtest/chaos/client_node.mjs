// `node client_node.mjs URL-OF-THE-SDK`: the JavaScript driver as a process; commands on standard input, reports on standard output.

import { writeSync } from "node:fs";
import { createInterface } from "node:readline";

const { Client } = await import(process.argv[2]);
const { start } = await import("./client_driver.mjs");

const write = (report) => {
  const line = Buffer.from(`${JSON.stringify(report)}\n`);
  for (let at = 0; at < line.length; ) {
    try {
      at += writeSync(1, line, at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
};
process.on("unhandledRejection", (error) => write({ type: "bug", installation: "", text: String(error?.stack ?? error) }));
const run = start(Client, write, () => process.kill(process.pid, "SIGKILL"));
for await (const line of createInterface({ input: process.stdin })) void run(JSON.parse(line));
