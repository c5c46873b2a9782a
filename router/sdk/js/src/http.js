/** Calls of the HTTP API, as the user of the token. */

import { LinnetError } from "./errors.js";

export class Http {
  /** @param {string} api @param {() => Promise<string>} token */
  constructor(api, token) {
    this._api = api.replace(/\/+$/, "");
    this._token = token;
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {unknown} [body]
   * @returns {Promise<any>}
   */
  call(method, path, body) {
    const json = body !== undefined;
    return this.send(method, path, json ? JSON.stringify(body) : undefined, json ? { "Content-Type": "application/json" } : {});
  }

  /**
   * Send a body as it is.
   *
   * @param {string} method
   * @param {string} path
   * @param {any} body
   * @param {Record<string, string>} headers
   * @param {import("./types.js").UploadOptions["progress"]} [progress]
   * @returns {Promise<any>}
   */
  async send(method, path, body, headers, progress) {
    const token = await this._token();
    if (token) headers = { ...headers, Authorization: `Bearer ${token}` };
    const url = this._api + path;
    let answer;
    try {
      answer = await (progress && globalThis.XMLHttpRequest ? counted(method, url, body, headers, progress) : fetched(method, url, body, headers));
    } catch (error) {
      throw new LinnetError("unavailable", `${this._api} cannot be reached: ${/** @type {Error} */ (error).message}`);
    }
    const { ok, text, retryAfter } = answer;
    if (ok) return text ? JSON.parse(text) : undefined;
    const { code, message } = parsed(text);
    throw new LinnetError(code, message, retryAfter === null ? undefined : Date.now() + Number(retryAfter) * 1000);
  }
}

/** @param {string} method @param {string} url @param {any} body @param {Record<string, string>} headers */
async function fetched(method, url, body, headers) {
  const answer = await fetch(url, { method, headers, body });
  return { ok: answer.ok, text: await answer.text(), retryAfter: answer.headers.get("Retry-After") };
}

/** `fetch` does not tell how much was sent. @type {(...args: [...Parameters<typeof fetched>, NonNullable<import("./types.js").UploadOptions["progress"]>]) => ReturnType<typeof fetched>} */
function counted(method, url, body, headers, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => progress(loaded, total);
    request.onload = () => resolve({ ok: request.status < 300, text: request.responseText, retryAfter: request.getResponseHeader("Retry-After") });
    request.onerror = () => reject(new Error("the upload broke off"));
    request.send(body);
  });
}

/** @param {string} text @returns {{ code: string, message: string }} */
function parsed(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return { code: "internal", message: "the answer is not one of Linnet's" };
  }
}
