/** Profiles and privacy: `@linnet/client/profiles.js`, which only a page that needs it loads. */

/** @typedef {import("./types.js").Caller} Caller */
/** @typedef {import("./types.js").Profile} Profile */
/** @typedef {import("./types.js").Me} Me */
/** @typedef {import("./types.js").ProfileChange} ProfileChange */

const USERS = 200; // of one call

export class Profiles {
  /** @param {Caller} caller Such as a client. */
  constructor(caller) {
    this._caller = caller;
  }

  /** The own profile, with privacy and roles. To follow changes: `client.state.watch("me", …)`. @returns {Promise<Me>} */
  me() {
    return this._caller.call("GET", "/v1/me");
  }

  /** Change the own profile or privacy. What is left out stays as it is; null clears it. @param {ProfileChange} change @returns {Promise<Me>} */
  change(change) {
    return this._caller.call("PATCH", "/v1/me", change);
  }

  /** The profile of a user. @param {string} user @returns {Promise<Profile>} */
  get(user) {
    return this._caller.call("GET", `/v1/users/${encodeURIComponent(user)}`);
  }

  /** Profiles by user; unknown users are left out. @param {string[]} users @returns {Promise<Record<string, Profile>>} */
  async of(users) {
    /** @type {Record<string, Profile>} */
    const found = {};
    for (let first = 0; first < users.length; first += USERS) {
      const some = users.slice(first, first + USERS).map(encodeURIComponent);
      const answer = await this._caller.call("GET", `/v1/users?users=${some.join(",")}`);
      for (const profile of answer.users) found[profile.user] = profile;
    }
    return found;
  }

  /**
   * Contacts, and members of common groups, whose id or name begins so: at most 20.
   *
   * @param {string} prefix
   * @returns {Promise<Profile[]>}
   */
  async find(prefix) {
    return (await this._caller.call("GET", `/v1/users?prefix=${encodeURIComponent(prefix)}`)).users;
  }
}
