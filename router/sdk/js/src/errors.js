/** The one error that users of the client see. */

export class LinnetError extends Error {
  /**
   * @param {string} code A code of the protocol, or `cancelled`, `closed`.
   * @param {string} [message]
   * @param {number} [retryAt] Milliseconds since the epoch from which `retry` helps; absent where it does not help by itself.
   */
  constructor(code, message, retryAt) {
    super(message || code.replaceAll("_", " "));
    this.name = "LinnetError";
    this.code = code;
    this.retryAt = retryAt;
  }
}

/** When so many seconds have passed, if they are given. @param {unknown} seconds */
export function after(seconds) {
  return seconds === undefined || seconds === null ? undefined : Date.now() + Number(seconds) * 1000;
}
