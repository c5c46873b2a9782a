/** Contacts and blocks. What they are is in the user's state (`contact/…`, `block/…`), so every device agrees. */

export class People {
  /** @internal @param {import("./http.js").Http} http @param {import("./state.js").State} state */
  constructor(http, state) {
    this._http = http;
    this._state = state;
  }

  /**
   * Contacts and requests by user. To follow changes: `client.state.watch("contact/", …)`.
   *
   * @returns {Promise<Record<string, import("./types.js").Contact>>}
   */
  async contacts() {
    const found = Object.entries(await this._state.entries("contact/"));
    const present = found.filter(([, { until }]) => !until || until > Date.now());
    return Object.fromEntries(present.map(([key, value]) => [key.slice("contact/".length), value]));
  }

  /** Ask a user to be a contact; accept if they have asked. @param {string} user @param {string} [message] */
  request(user, message) {
    return this._call("PUT", "contacts", user, "", { message });
  }

  /** @param {string} user */
  accept(user) {
    return this._call("POST", "contacts", user, "/accept");
  }

  /** End a contact, cancel the own request, or decline the user's. @param {string} user */
  remove(user) {
    return this._call("DELETE", "contacts", user);
  }

  /** Whom the user blocks. */
  async blocked() {
    return Object.keys(await this._state.entries("block/")).map((key) => key.slice("block/".length));
  }

  /** Block a user: nothing that they send in the direct conversation is accepted any more. @param {string} user */
  block(user) {
    return this._call("PUT", "blocks", user);
  }

  /** @param {string} user */
  unblock(user) {
    return this._call("DELETE", "blocks", user);
  }

  /** @param {string} method @param {string} list @param {string} user @param {string} [more] @param {unknown} [body] @returns {Promise<void>} */
  async _call(method, list, user, more = "", body) {
    await this._http.call(method, `/v1/${list}/${encodeURIComponent(user)}${more}`, body);
    await this._state.refresh();
  }
}
