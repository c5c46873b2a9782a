// The driver as a Node process: commands are lines of JSON on standard input, reports and answers lines on standard output.

import { createInterface } from "node:readline";

import { start } from "./driver.js";

const write = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const commands = await start(process.argv[2], write);
for await (const line of createInterface({ input: process.stdin })) {
  const { id, command, args } = JSON.parse(line);
  Promise.resolve()
    .then(() => commands[command](args))
    .then(
      (result) => write({ type: "answer", id, result }),
      (error) => write({ type: "answer", id, error: `${error.code ?? ""} ${error.message}` }),
    );
}
