/** Values of a body: bytes travel and are stored as `{"$b64": …}`, as the wire's JSON has them. */

/** @param {any} value @returns {any} */
export function toWire(value) {
  if (value instanceof Uint8Array) return { $b64: base64(value) };
  if (Array.isArray(value)) return value.map(toWire);
  if (value === undefined || typeof value === "function" || typeof value === "symbol" || typeof value === "bigint") {
    throw new TypeError(`a body cannot contain a value of type ${typeof value}`);
  }
  if (typeof value === "number" && !(Number.isInteger(value) ? Number.isSafeInteger(value) : Number.isFinite(value))) {
    throw new TypeError(`a body cannot contain the number ${value}: expected a finite one, integers within ±(2^53-1)`);
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, toWire(item)]));
}

/** @param {any} value @returns {any} */
export function fromWire(value) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(fromWire);
  if (typeof value.$b64 === "string" && Object.keys(value).length === 1) return bytes(value.$b64);
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, fromWire(item)]));
}

/** An event as the application gets it. @template {object} E @param {E} event @returns {E} */
export function received(event) {
  return "body" in event ? { ...event, body: fromWire(event.body) } : event;
}

/** @param {Uint8Array} data */
export function base64(data) {
  return btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""));
}

/** @param {string} text */
export function bytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
