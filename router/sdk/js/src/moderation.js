/** Moderation and reports: `@linnet/client/moderation.js`, which only a page that needs it loads. */

import { Http } from "./http.js";

/** @typedef {import("./types.js").Caller} Caller */
/** @typedef {import("./types.js").Restraint} Restraint */
/** @typedef {import("./types.js").Ban} Ban */
/** @typedef {import("./types.js").Rules} Rules */
/** @typedef {import("./types.js").Report} Report */
/** @typedef {import("./types.js").AuditEntry} AuditEntry */

/**
 * Calls of the HTTP API without a client, such as for a page that shows no messages.
 *
 * @param {string} api
 * @param {string | ((reason: import("./connection.js").TokenReason) => string | Promise<string>)} token
 * @returns {Caller}
 */
export function caller(api, token) {
  return new Http(api, async (reason) => (typeof token === "string" ? token : token(reason)));
}

/** What people who run a group or channel may do, and moderators everywhere, who need a token of the admin view. */
export class Moderation {
  /** @param {Caller} caller Such as a client. */
  constructor(caller) {
    this._caller = caller;
  }

  /** What a group or channel allows. @param {string} conversation @returns {Promise<Rules>} */
  async rules(conversation) {
    const { posting, adding, reacting, slow_s } = await this._caller.call("GET", pathOf(conversation));
    return { posting, adding, reacting, slow_s };
  }

  /** Change what a group or channel allows. @param {string} conversation @param {Partial<Rules>} change */
  async change(conversation, change) {
    await this._caller.call("PATCH", pathOf(conversation), change);
  }

  /** Let a user read, but not write. @param {string} conversation @param {string} user @param {Restraint} [restraint] */
  async mute(conversation, user, restraint = {}) {
    await this._caller.call("PUT", pathOf(conversation, "members", user, "mute"), restraint);
  }

  /** @param {string} conversation @param {string} user */
  async unmute(conversation, user) {
    await this._caller.call("DELETE", pathOf(conversation, "members", user, "mute"));
  }

  /** Remove a user, and keep them out. @param {string} conversation @param {string} user @param {Restraint} [restraint] */
  async ban(conversation, user, restraint = {}) {
    await this._caller.call("PUT", pathOf(conversation, "bans", user), restraint);
  }

  /** @param {string} conversation @param {string} user */
  async unban(conversation, user) {
    await this._caller.call("DELETE", pathOf(conversation, "bans", user));
  }

  /** All bans that are not over. @param {string} conversation @returns {Promise<Ban[]>} */
  async bans(conversation) {
    /** @type {Ban[]} */
    const found = [];
    for (let page = { more: true, cursor: 0 }; page.more; ) {
      const answer = await this._caller.call("GET", `${pathOf(conversation, "bans")}?cursor=${page.cursor}`);
      found.push(...answer.bans);
      page = answer;
    }
    return found;
  }

  /** End a user's sessions and calls in the whole deployment. For moderators. @param {string} user @param {Restraint} [restraint] */
  async suspend(user, restraint = {}) {
    await this._caller.call("PUT", `/v1/accounts/${encodeURIComponent(user)}/suspension`, restraint);
  }

  /** @param {string} user */
  async unsuspend(user) {
    await this._caller.call("DELETE", `/v1/accounts/${encodeURIComponent(user)}/suspension`);
  }

  /**
   * What was done, in its order, after an entry. For moderators. `missing`: how many of 512 parts are not
   * in it, because their server does not answer; if there are some, ask again later from the same place.
   *
   * @param {{ after?: string, limit?: number }} [options]
   * @returns {Promise<{ entries: AuditEntry[], more: boolean, missing: number }>}
   */
  audit({ after = "0", limit = 100 } = {}) {
    return this._caller.call("GET", `/v1/audit?after=${encodeURIComponent(after)}&limit=${limit}`);
  }
}

/** Reports of messages and users: anyone makes them, moderators with a token of the admin view read and close them. */
export class Reports {
  /** @param {Caller} caller Such as a client. */
  constructor(caller) {
    this._caller = caller;
  }

  /** Report a message; returns the report's id. @param {string} conversation @param {number} seq @param {string} reason @returns {Promise<string>} */
  message(conversation, seq, reason) {
    return this._make({ conversation, seq, reason });
  }

  /** Report a user; returns the report's id. @param {string} user @param {string} reason @returns {Promise<string>} */
  user(user, reason) {
    return this._make({ user, reason });
  }

  /** @param {object} report @returns {Promise<string>} */
  async _make(report) {
    return (await this._caller.call("POST", "/v1/reports", report)).id;
  }

  /**
   * Reports after one, in their order; of one state, or all. For moderators. `missing` as of the audit.
   *
   * @param {{ state?: "open" | "resolved" | "dismissed", after?: string, limit?: number }} [options]
   * @returns {Promise<{ reports: Report[], more: boolean, missing: number }>}
   */
  read({ state, after = "0", limit = 50 } = {}) {
    const of = state ? `state=${state}&` : "";
    return this._caller.call("GET", `/v1/reports?${of}after=${encodeURIComponent(after)}&limit=${limit}`);
  }

  /**
   * Close a report, or open it again. For moderators.
   *
   * @param {string} id
   * @param {"open" | "resolved" | "dismissed"} state
   * @param {string} [note]
   */
  async close(id, state, note) {
    await this._caller.call("PATCH", `/v1/reports/${encodeURIComponent(id)}`, { state, note });
  }
}

/** @param {string} conversation @param {...string} more */
function pathOf(conversation, ...more) {
  return `/v1/conversations/${[conversation, ...more].map(encodeURIComponent).join("/")}`;
}
