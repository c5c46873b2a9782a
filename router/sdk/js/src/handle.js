/** What `send`, `edit`, `delete` and `react` return: one command, from its first moment to its end. */

import { LinnetError } from "./errors.js";

/** @typedef {"saving" | RowState} HandleState */

/** @import { HandleActions, Row, RowState, Status } from "./types.js" */

/**
 * A command on its way: *saving → queued → sent → acked | failed*, or *cancelled* before it was sent.
 *
 * The promise that it will not be lost begins when `stored` has resolved.
 */
export class MessageHandle {
  /**
   * @internal
   * @param {Promise<Status>} stored
   * @param {HandleActions} actions
   */
  constructor(stored, actions) {
    this._actions = actions;
    /** @type {Status | undefined} */
    this._status = undefined;
    /** @type {Set<(handle: MessageHandle) => void>} */
    this._listeners = new Set();
    /** Names the command on this device. @type {string | undefined} */
    this.id = undefined;
    /** The conversation's id. @type {string | undefined} */
    this.conversation = undefined;
    /** The state now. @type {HandleState} */
    this.state = "saving";
    /** The event's place in its conversation, once it is acked. @type {number | undefined} */
    this.seq = undefined;
    /** The server's time, once it is acked. @type {number | undefined} */
    this.at = undefined;
    /** Why it has failed. @type {LinnetError | undefined} */
    this.error = undefined;
    /** Resolves when the command is in the outbox; rejects if it cannot be written there. @type {Promise<void>} */
    this.stored = stored.then((status) => this._take(status));
    this.stored.catch((error) => this._fail(new LinnetError("unavailable", `the outbox cannot be written: ${error.message}`)));
    /** Resolves when the command is acked; rejects when it fails or is cancelled. */
    this.acked = this._renewed();
  }

  /** @returns {Promise<MessageHandle>} */
  _renewed() {
    this.error = undefined;
    const acked = new Promise((resolve, reject) => {
      this._resolve = resolve;
      this._reject = reject;
    });
    acked.catch(() => undefined);
    return acked;
  }

  /** The command as it goes over the wire; undefined until it is stored. @type {Record<string, any> | undefined} */
  get command() {
    return this._status?.command;
  }

  /**
   * Call a function at each change of state; the answer ends that.
   *
   * @param {(handle: MessageHandle) => void} listener
   * @returns {() => void}
   */
  onChange(listener) {
    this._listeners.add(listener);
    return () => this._listeners.delete(listener);
  }

  /** Put a failed command into the queue again; false if it has not failed. @returns {Promise<boolean>} */
  async retry() {
    const status = this.state === "failed" && this.id ? await this._actions.retry(this.id) : undefined;
    if (!status) return false;
    this._take(status);
    return true;
  }

  /**
   * Remove a command that was never written to a connection, or that has failed; false if it was.
   *
   * @returns {Promise<boolean>}
   */
  async cancel() {
    await this.stored;
    if (!this.id || !(await this._actions.cancel(this.id))) return false;
    this._change("cancelled");
    this._reject?.(new LinnetError("cancelled"));
    return true;
  }

  /** @internal @param {Status} status */
  _take(status) {
    if (this.state === "cancelled" || this.state === "acked") return;
    this._status = status;
    this.id = status.id;
    this.conversation = status.conversation;
    this.seq = status.seq;
    this.at = status.state === "acked" ? status.at : undefined;
    if (status.state === "failed" && status.error) {
      if (this.state !== "failed") this._fail(new LinnetError(status.error.code, status.error.message, status.error.retryAt));
    } else if (status.state !== this.state) {
      if (this.error) this.acked = this._renewed();
      this._change(status.state);
      if (status.state === "acked") this._resolve?.(this);
    }
  }

  /** Its row of the outbox, if it is open: all that is left of it if the store is lost. @internal @returns {Row | undefined} */
  get row() {
    const open = this.state === "queued" || this.state === "sent";
    return open ? /** @type {any} */ ({ ...this._status, attempts: 1 }) : undefined;
  }

  /** @param {LinnetError} error */
  _fail(error) {
    this.error = error;
    this._change("failed");
    this._reject?.(error);
  }

  /** @param {HandleState} state */
  _change(state) {
    this.state = state;
    for (const listener of this._listeners) queueMicrotask(() => listener(this));
  }
}
