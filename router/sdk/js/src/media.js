/** Files, named by the hashes of their bytes: uploads and links. The rules of large uploads, by tus: README, *Media*. */

import { backoffMs } from "./closes.js";
import { LinnetError } from "./errors.js";
import { base64, bytes } from "./values.js";

/** @import { FileInfo } from "./wire.js" */

const AT_ONCE = 1 << 20; // bytes that go in one request, unless that is cut
const CHUNK = 8 << 20; // bytes of one request
const PATIENCE_MS = 900_000; // without progress: a scan may take ten minutes
const PASSING = ["unavailable", "rate_limited", "locked", "conflict"];
const TUS = { "Tus-Resumable": "1.0.0" };

export class Media {
  /** @internal @param {import("./http.js").Http} http */
  constructor(http) {
    this._http = http;
  }

  /**
   * Upload a file. An upload that is cut goes on where it was; without any progress for 15 minutes it fails.
   *
   * @param {Blob | Uint8Array<ArrayBuffer>} data
   * @param {import("./types.js").UploadOptions} [options]
   * @returns {Promise<FileInfo>}
   */
  upload(data, options = {}) {
    const { signal } = options;
    const made = this._upload(data, options);
    if (!signal) return made;
    return new Promise((resolve, reject) => {
      const abort = () => reject(new LinnetError("cancelled"));
      if (signal.aborted) abort();
      signal.addEventListener("abort", abort);
      void made.then(resolve, reject).then(() => signal.removeEventListener("abort", abort));
    });
  }

  /** @param {Blob | Uint8Array<ArrayBuffer>} data @param {import("./types.js").UploadOptions} options @returns {Promise<FileInfo>} */
  async _upload(data, options) {
    const { mime, kind, duration, waveform, progress, signal } = options;
    const { name = /** @type {any} */ (data).name } = options;
    const blob = data instanceof Blob ? data : new Blob([data]);
    const type = mime || blob.type || "application/octet-stream";
    const query = Object.fromEntries(Object.entries({ kind, duration, waveform }).filter(([, value]) => value !== undefined));
    if (blob.size <= AT_ONCE && !options.upload && !options.begun) {
      const headers = { "Content-Type": type, ...(name ? { "Linnet-Name": encodeURIComponent(name) } : {}) };
      try {
        const sent = { signal, progress: (/** @type {number} */ done) => progress?.(done, blob.size) };
        return (await this._http.send("POST", `/v1/uploads?${new URLSearchParams(/** @type {any} */ (query))}`, blob, headers, sent)).content;
      } catch (error) {
        if (/** @type {LinnetError} */ (error).code !== "unavailable") throw error;
      }
    }
    return resumed(this._http, blob, { ...query, type, ...(name ? { name } : {}) }, options);
  }

  /**
   * Links by file, which need no token and end within an hour. `conversation`: where the files were seen; without it they are
   * own uploads. What may not be seen is left out.
   *
   * @param {string[]} files
   * @param {string} [conversation]
   * @returns {Promise<Record<string, { url: string, previews: Record<string, string> }>>}
   */
  async links(files, conversation) {
    const { links } = await this._http.call("POST", "/v1/uploads/links", { files, in: conversation });
    for (const link of Object.values(links)) {
      link.url = this._http.urlOf(link.url);
      for (const edge of Object.keys(link.previews)) link.previews[edge] = this._http.urlOf(link.previews[edge]);
    }
    return links;
  }
}

/**
 * @param {import("./http.js").Http} http
 * @param {Blob} data
 * @param {Record<string, unknown>} described
 * @param {import("./types.js").UploadOptions} options
 * @returns {Promise<FileInfo>}
 */
async function resumed(http, data, described, { progress = () => undefined, signal, upload = "", begun }) {
  const known = Object.entries(described).map(([name, value]) => `${name} ${base64(new TextEncoder().encode(String(value)))}`);
  let earlier = upload !== "";
  /** @type {number | undefined} */
  let offset; // undefined: the server is asked
  let failures = 0;
  let most = 0;
  let movedAt = performance.now();
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
        movedAt = performance.now();
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
      if (signal?.aborted || !PASSING.includes(code) || performance.now() + pauseMs > movedAt + PATIENCE_MS) throw error;
      offset = undefined;
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, pauseMs);
        signal?.addEventListener("abort", () => resolve(clearTimeout(timer)), { once: true });
      });
    }
  }
}
