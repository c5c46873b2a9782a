/** What conversations are called, and the addresses under which the page shows them. */

import { nameOf } from "./profiles.js";
import { t } from "./strings.js";

/** @param {string} user @param {string} other */
export function direct(user, other) {
  return `d:${[user, other].sort().join(":")}`;
}

/** What the address names: a conversation, or nothing. @param {string} user */
export function routeOf(user) {
  const hash = decoded(location.hash.slice(1));
  if (hash.startsWith("/@")) return direct(user, hash.slice(2));
  if (hash.startsWith("/c/")) return hash.slice(3);
  return "";
}

/** @param {string} text */
export function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return ""; // a broken address is none
  }
}

/** @param {string} id */
export function open(id) {
  location.hash = id ? `#/c/${encodeURIComponent(id)}` : "#/";
}

/** @param {string} id */
export function addressOf(id) {
  return `#/c/${encodeURIComponent(id)}`;
}

/** The other user of a direct conversation. @param {string} user @param {string} id */
export function otherOf(user, id) {
  const both = id.slice(2).split(":");
  return both.find((one) => one !== user) ?? user;
}

/** What a message is sent to: the first one to a user makes the conversation. @param {string} user @param {string} id */
export function targetOf(user, id) {
  return id.startsWith("d:") ? `@${otherOf(user, id)}` : id;
}

/** @param {string} user @param {import("./session.js").View} view */
export function titleOf(user, view) {
  const other = view.with ?? (view.id.startsWith("d:") ? otherOf(user, view.id) : "");
  if (other) return other === user ? t("yourself") : nameOf(other);
  return view.title || t(view.kind === "channel" ? "unnamed_channel" : "unnamed_group");
}
