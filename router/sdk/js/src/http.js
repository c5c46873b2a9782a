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
  async call(method, path, body) {
    const token = await this._token();
    const headers = { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...(body === undefined ? {} : { "Content-Type": "application/json" }) };
    let answer;
    try {
      answer = await fetch(this._api + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (error) {
      throw new LinnetError("unavailable", `${this._api} cannot be reached: ${/** @type {Error} */ (error).message}`);
    }
    const text = await answer.text();
    if (answer.ok) return text ? JSON.parse(text) : undefined;
    const retryAfter = answer.headers.get("Retry-After");
    const { code, message } = parsed(text);
    throw new LinnetError(code, message, retryAfter === null ? undefined : Date.now() + Number(retryAfter) * 1000);
  }
}

/** @param {string} text @returns {{ code: string, message: string }} */
function parsed(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return { code: "internal", message: "the answer is not one of Linnet's" };
  }
}
