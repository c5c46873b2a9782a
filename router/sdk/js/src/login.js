/** A token source: keeps the token of a login, renews it, and logs in again if it has a password. */

import { LinnetError } from "./errors.js";
import { Http } from "./http.js";

/**
 * What `token` of a client may be, for accounts of the deployment itself.
 *
 * @param {string} api
 * @param {string} user
 * @param {string} [password] Without it the token is renewed until that is refused.
 * @param {import("./types.js").LoginOptions} [options]
 * @returns {(reason: import("./connection.js").TokenReason) => Promise<string>}
 */
export function login(api, user, password, { device = "default", token = "", save = () => undefined } = {}) {
  const http = new Http(api, async () => token);
  /** @param {string} path @param {unknown} [body] */
  const ask = async (path, body) => {
    token = (await http.call("POST", path, body)).token;
    save(token);
    return token;
  };
  return async (reason) => {
    if (token && reason === "connect") return token;
    if (token && reason === "expiring") {
      try {
        return await ask("/v1/tokens/renew");
      } catch (error) {
        if (password === undefined || (error instanceof LinnetError && error.retryAt)) throw error;
      }
    }
    if (password === undefined) throw new LinnetError("unauthorized", "log in again");
    return ask("/v1/login", { user, password, device });
  };
}
