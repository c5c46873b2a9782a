/** Calls of the HTTP API, as the user of the token. */

import { LinnetError, after } from "./errors.js";

const STALL_MS = 60_000; // of a body that is sent

/** @type {Record<number, string>} of an answer without a body, or of a load balancer */
const CODES = { 401: "unauthorized", 404: "not_found", 409: "conflict", 423: "locked", 429: "rate_limited" };

/** @typedef {{ signal?: AbortSignal, progress?: (done: number) => void }} Sending */

export class Http {
  /** @param {string} api @param {(reason: import("./connection.js").TokenReason) => Promise<string>} token */
  constructor(api, token) {
    this._api = api.replace(/\/+$/, "");
    this._token = token;
  }

  /** A path of the API as a URL; a URL stays as it is. @param {string} path */
  urlOf(path) {
    return path.startsWith("/") ? this._api + path : path;
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {unknown} [body]
   * @returns {Promise<any>}
   */
  async call(method, path, body) {
    return (await this.send(method, path, JSON.stringify(body), body === undefined ? {} : { "Content-Type": "application/json" })).content;
  }

  /**
   * Send a body as it is.
   *
   * @param {string} method
   * @param {string} path
   * @param {any} body
   * @param {Record<string, string>} headers
   * @param {Sending} [sending]
   */
  async send(method, path, body, headers, sending = {}) {
    const token = await this._token("connect");
    const answer = await this._ask(token, method, path, body, headers, sending);
    if (answer.status !== 401) return taken(answer);
    const { code } = errorOf(answer.status, answer.text);
    const other = await this._token(/** @type {any} */ (code)); // no other has renewed it, in a tab without the connection
    return taken(other === token ? answer : await this._ask(other, method, path, body, headers, sending));
  }

  /** @param {string} token @param {string} method @param {string} path @param {any} body @param {Record<string, string>} headers @param {Sending} sending */
  async _ask(token, method, path, body, headers, sending) {
    if (token) headers = { ...headers, Authorization: `Bearer ${token}` };
    const ask = body && sending.progress && globalThis.XMLHttpRequest ? counted : fetched;
    try {
      return await ask(method, this.urlOf(path), body, headers, sending);
    } catch (error) {
      throw new LinnetError("unavailable", `${this._api} cannot be reached: ${/** @type {Error} */ (error).message}`);
    }
  }
}

/** @param {Awaited<ReturnType<typeof fetched>>} answer */
function taken({ status, text, header }) {
  if (status < 300) return { header, content: text ? JSON.parse(text) : undefined };
  const { code, message } = errorOf(status, text);
  throw new LinnetError(code, message, after(header("Retry-After")));
}

/** @param {string} method @param {string} url @param {any} body @param {Record<string, string>} headers @param {Sending} sending */
async function fetched(method, url, body, headers, { signal }) {
  const answer = await fetch(url, { method, headers, body, signal });
  return { status: answer.status, text: await answer.text(), header: (/** @type {string} */ name) => answer.headers.get(name) };
}

/** `fetch` does not tell how much was sent. @type {typeof fetched} */
function counted(method, url, body, headers, { signal, progress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    const abort = () => request.abort();
    let stalled = setTimeout(abort, STALL_MS);
    request.upload.onprogress = ({ loaded }) => {
      clearTimeout(stalled);
      stalled = setTimeout(abort, STALL_MS);
      progress?.(loaded);
    };
    request.upload.onload = () => clearTimeout(stalled);
    request.onload = () => resolve({ status: request.status, text: request.responseText, header: (name) => request.getResponseHeader(name) });
    request.onerror = request.onabort = () => reject(new Error("the upload broke off"));
    request.onloadend = () => {
      clearTimeout(stalled);
      signal?.removeEventListener("abort", abort);
    };
    signal?.addEventListener("abort", abort);
    request.send(body);
    if (signal?.aborted) abort();
  });
}

/** @param {number} status @param {string} text @returns {{ code: string, message: string }} */
function errorOf(status, text) {
  try {
    const { code, message } = JSON.parse(text).error;
    if (code) return { code, message };
  } catch {
    // it is no answer of the API
  }
  return { code: CODES[status] ?? (status < 500 ? "internal" : "unavailable"), message: `the API answered ${status}` };
}
