/**
 * Files: uploading them, and links to them.
 *
 * A file is named by the hash of its bytes, so an upload that was cut can be made again. It is sent within a day.
 */

export class Media {
  /** @internal @param {import("./http.js").Http} http */
  constructor(http) {
    this._http = http;
  }

  /**
   * Upload a file. In a page `progress` is called with the bytes so far and the size.
   *
   * @param {Blob | Uint8Array<ArrayBuffer>} data
   * @param {import("./types.js").UploadOptions} [options]
   * @returns {Promise<import("./wire.js").FileInfo>}
   */
  upload(data, { name = /** @type {any} */ (data).name, mime, kind, duration, waveform, progress } = {}) {
    const query = new URLSearchParams();
    for (const [field, value] of Object.entries({ kind, duration, waveform })) if (value !== undefined) query.set(field, String(value));
    const headers = {
      "Content-Type": mime ?? (data instanceof Blob && data.type ? data.type : "application/octet-stream"),
      ...(name ? { "Linnet-Name": encodeURIComponent(name) } : {}),
    };
    return this._http.send("POST", `/v1/uploads?${query}`, data, headers, progress);
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
    return links;
  }
}
