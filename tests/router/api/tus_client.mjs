// node tus_client.mjs <node_modules> <API> <authorization> <file>: upload a file with tus-js-client, and print the JSON of its last
// answer.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [, , modules, api, authorization, path] = process.argv;
const { Upload } = createRequire(`${modules}/`)("tus-js-client");

const upload = new Upload(readFileSync(path), {
  endpoint: `${api}/v1/uploads/tus`,
  headers: { Authorization: authorization },
  metadata: { filename: "a ä.bin", filetype: "application/zip" },
  retryDelays: Array(500).fill(50),
  onError: (error) => {
    console.error(String(error));
    process.exit(1);
  },
  onSuccess: ({ lastResponse }) => {
    process.stdout.write(Buffer.from(lastResponse.getHeader("Linnet-Upload"), "base64"));
    process.exit(0);
  },
});
upload.start();
