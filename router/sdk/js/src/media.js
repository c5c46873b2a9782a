/** Files, named by the hashes of their bytes: uploads and links. */

import { LinnetError } from "./errors.js";
import { resumed } from "./upload.js";

/** @import { FileInfo } from "./wire.js" */

const AT_ONCE = 1 << 20; // bytes that go in one request, unless that is cut

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
