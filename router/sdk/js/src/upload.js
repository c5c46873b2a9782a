/** A file on its way by tus. Its rules: README, *Media*. */

import { backoffMs } from "./closes.js";
import { LinnetError } from "./errors.js";
import { base64, bytes } from "./values.js";

/** @import { FileInfo } from "./wire.js" */

const CHUNK = 8 << 20; // bytes of one request
const PATIENCE_MS = 900_000; // without progress: a scan may take ten minutes
const PASSING = ["unavailable", "rate_limited", "locked", "conflict"];
const TUS = { "Tus-Resumable": "1.0.0" };

/**
 * @param {import("./http.js").Http} http
 * @param {Blob} data
 * @param {Record<string, unknown>} described
 * @param {import("./types.js").UploadOptions} options
 * @returns {Promise<FileInfo>}
 */
export async function resumed(http, data, described, { progress = () => undefined, signal, upload = "", begun }) {
  const known = Object.entries(described).map(([name, value]) => `${name} ${base64(new TextEncoder().encode(String(value)))}`);
  let earlier = upload !== "";
  /** @type {number | undefined} */
  let offset; // undefined: the server is asked
  let failures = 0;
  let most = 0;
  let movedAt = Date.now();
  for (;;) {
    try {
      if (upload === "") {
        const headers = { ...TUS, "Upload-Length": String(data.size), "Upload-Metadata": known.join() };
        upload = String((await http.send("POST", "/v1/uploads/tus", undefined, headers, { signal })).header("Location"));
        offset = 0;
        begun?.(upload);
      }
      const at = offset ?? 0;
      const headers = { ...TUS, "Upload-Offset": String(at), "Content-Type": "application/offset+octet-stream" };
      const { header } = await (offset === undefined
        ? http.send("HEAD", upload, undefined, TUS, { signal })
        : http.send("PATCH", upload, data.slice(at, at + CHUNK), headers, { signal, progress: (done) => progress(at + done, data.size) }));
      const length = header("Upload-Length");
      if (length !== null && Number(length) !== data.size) throw new LinnetError("not_found", "it is another file's upload");
      const file = header("Linnet-Upload");
      if (file) return JSON.parse(new TextDecoder().decode(bytes(file)));
      offset = Number(header("Upload-Offset"));
      if (offset > most) {
        most = offset;
        failures = 0;
        movedAt = Date.now();
        progress(offset, data.size);
      }
    } catch (error) {
      const { code, retryAt = 0 } = /** @type {LinnetError} */ (error);
      if (code === "not_found" && earlier) {
        earlier = false; // it ended, a day after its last byte
        upload = "";
        continue;
      }
      const pauseMs = Math.max(retryAt - Date.now(), backoffMs(failures++));
      if (signal?.aborted || !PASSING.includes(code) || Date.now() + pauseMs > movedAt + PATIENCE_MS) throw error;
      offset = undefined;
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, pauseMs);
        signal?.addEventListener("abort", () => resolve(clearTimeout(timer)), { once: true });
      });
    }
  }
}
