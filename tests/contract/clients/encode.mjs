// Prints what each library makes of commands.json, in hex, and the numbers it reads in an event (argv[2], in hex).
import { readFileSync } from "node:fs";
import * as official from "@msgpack/msgpack";
import lite from "msgpack-lite";
import { Packr } from "msgpackr";
import notepack from "notepack.io";

const packr = new Packr({ useRecords: false, int64AsType: "number" });
const libraries = {
  "@msgpack/msgpack": { encode: official.encode, decode: official.decode },
  "msgpack-lite": { encode: lite.encode, decode: lite.decode },
  msgpackr: { encode: (value) => packr.pack(value), decode: (bytes) => packr.unpack(bytes) },
  "notepack.io": { encode: (value) => notepack.encode(value), decode: (bytes) => notepack.decode(bytes) },
};
const commands = JSON.parse(readFileSync(new URL("commands.json", import.meta.url), "utf8"));
const event = Buffer.from(process.argv[2], "hex");
const found = {};
for (const [name, { encode, decode }] of Object.entries(libraries)) {
  const { seq, prev, count, at, n } = decode(event);
  found[name] = {
    commands: commands.map((command) => Buffer.from(encode(command)).toString("hex")),
    read: { seq, prev, count, at, n },
  };
}
console.log(JSON.stringify(found));
