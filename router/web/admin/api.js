/**
 * The calls of the admin view, with a token that is in this object alone: a reload asks for the password again.
 * Nothing is stored, and the server key has no place here.
 */

/** What the API refused, in its words. */
export class Refused extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  #token = "";
  user = "";
  expires = 0;
  /** @type {string[]} */ roles = [];
  /** Called when the token is over. */
  ended = () => {};

  get admin() {
    return this.roles.includes("admin");
  }

  /** @param {string} user @param {string} password */
  async logIn(user, password) {
    const answer = await this.call("POST", "/login", { user, password, device: "admin-view", scope: "admin" });
    this.#token = answer.token;
    this.expires = answer.expires_at;
    this.user = answer.user;
    this.roles = (await this.call("GET", "/me")).roles;
  }

  async logOut() {
    await this.call("POST", "/logout", {}).catch(() => undefined);
    this.#token = this.user = "";
  }

  /** @param {string} method @param {string} path @param {any} [body] @param {Record<string, string>} [more] @returns {Promise<any>} */
  async call(method, path, body, more = {}) {
    /** @type {Record<string, string>} */
    const headers = { ...more };
    if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const answer = await fetch(`/v1${path}`, { method, headers, body: body === undefined ? null : JSON.stringify(body), cache: "no-store" });
    const text = await answer.text();
    const read = text && answer.headers.get("content-type")?.startsWith("application/json") ? JSON.parse(text) : undefined;
    if (answer.ok) return read;
    if (answer.status === 401 && this.#token) {
      this.#token = this.user = "";
      this.ended();
    }
    throw new Refused(answer.status, read?.error.message ?? `the server answered ${answer.status}`);
  }
}

/** The text of a query, without what is empty. @param {Record<string, string | number | undefined>} values */
export function query(values) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value !== undefined && value !== "") found.set(name, String(value));
  return found.size ? `?${found}` : "";
}
