/** Times, names and texts as people read them. */

import { html } from "./ui.js";
import { languageNow, t } from "./strings.js";

/** @type {Map<string, Intl.DateTimeFormat>} */
const formats = new Map();

/** @param {number} at @param {Intl.DateTimeFormatOptions} options */
function formatted(at, options) {
  const key = languageNow() + JSON.stringify(options);
  const locale = navigator.languages.find((one) => one.startsWith(languageNow())) ?? languageNow(); // en-GB has other hours than en-US
  const format = formats.get(key) ?? new Intl.DateTimeFormat(locale, options);
  formats.set(key, format);
  return format.format(at);
}

/** @param {number} at */
export function clock(at) {
  return formatted(at, { hour: "numeric", minute: "2-digit" });
}

/** @param {number} at */
export function exact(at) {
  return formatted(at, { dateStyle: "full", timeStyle: "medium" });
}

/** The day of a time, as a number that differs from day to day. @param {number} at */
export function dayOf(at) {
  return new Date(at).setHours(0, 0, 0, 0);
}

/** @param {number} at */
export function day(at) {
  const ago = Math.round((dayOf(Date.now()) - dayOf(at)) / 86_400_000);
  if (ago === 0) return t("today");
  if (ago === 1) return t("yesterday");
  if (ago > 0 && ago < 7) return formatted(at, { weekday: "long" });
  const year = new Date(at).getFullYear() === new Date().getFullYear() ? undefined : "numeric";
  return formatted(at, { day: "numeric", month: "long", year });
}

/** A time in the list: the hour today, the day before. @param {number} at */
export function short(at) {
  const ago = Math.round((dayOf(Date.now()) - dayOf(at)) / 86_400_000);
  if (ago === 0) return clock(at);
  if (ago > 0 && ago < 7) return formatted(at, { weekday: "short" });
  return formatted(at, { day: "numeric", month: "short" });
}

/** A day and an hour; the hour alone today. @param {number} at */
export function moment(at) {
  return dayOf(at) === dayOf(Date.now()) ? clock(at) : `${day(at)}, ${clock(at)}`;
}

/** Why the user cannot write in a conversation; empty if they can. @param {import("./session.js").View} view */
export function whyClosed({ id, role, posting, mutedUntil }) {
  if (id.startsWith("d:")) return "";
  if (role === null || role === "reader") return t("read_only");
  if (mutedUntil === null) return t("muted");
  if (mutedUntil && mutedUntil > Date.now()) return t("muted_until", { when: moment(mutedUntil) });
  return posting === "admins" && role === "member" ? t("admins_write") : "";
}

/** @param {{ online: boolean | null, last_seen: number | null } | undefined} presence */
export function lastSeen(presence) {
  if (!presence) return "";
  if (presence.online) return t("online");
  if (!presence.last_seen) return t("offline");
  const at = presence.last_seen;
  const minutes = Math.floor((Date.now() - at) / 60_000);
  if (minutes < 1) return t("seen_now");
  if (minutes < 60) return t("seen_minutes", { count: minutes });
  return t("seen_at", { when: moment(at) });
}

/** The text of a body: a string, or the field `text` of a map; what else a client may send is shown as JSON. @param {any} body */
export function textOf(body) {
  if (typeof body === "string") return body;
  if (body && typeof body.text === "string") return body.text;
  return body === null || body === undefined ? "" : JSON.stringify(body);
}

/** A message in a line: its text, else what its files are. @param {{ body: any, media?: string, files?: { sha256: string, kind?: string, name?: string }[] }} message */
export function summaryOf({ body, media, files = [] }) {
  const text = textOf(body);
  const [first] = files;
  if (text || !first) return text;
  const kind = first.kind ?? media ?? "file";
  if (kind === "file" && first.name) return first.name;
  return t(`kind_${["image", "voice", "video"].includes(kind) ? kind : "file"}`);
}

/** Seconds as *0:07*. @param {number} seconds */
export function length(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** @param {number} bytes */
export function sizeOf(bytes) {
  const unit = bytes >= 1e6 ? "megabyte" : bytes >= 1e3 ? "kilobyte" : "byte";
  const value = bytes / { megabyte: 1e6, kilobyte: 1e3, byte: 1 }[unit];
  return new Intl.NumberFormat(languageNow(), { style: "unit", unit, unitDisplay: unit === "byte" ? "long" : "short", maximumFractionDigits: value < 10 && unit === "megabyte" ? 1 : 0 }).format(value);
}

/** @param {any} body @returns {string[]} */
export function mentionsOf(body) {
  return Array.isArray(body?.mentions) ? body.mentions.filter((/** @type {any} */ one) => typeof one === "string") : [];
}

/** Whose message it was before it was forwarded; empty if it was not. @param {any} body */
export function forwardedOf(body) {
  return typeof body?.forwarded === "string" ? body.forwarded.slice(0, 64) : "";
}

const PARTS = /(https?:\/\/[^\s<>"']+|mailto:[^\s<>"']+@[^\s<>"']+|@[A-Za-z0-9._-]{1,64})/g;

/** A text with its links and mentions. Only http, https and mailto become links. @param {string} text @param {string[]} mentions @param {string} me */
export function rich(text, mentions, me) {
  return text.split(PARTS).map((part, i) => {
    if (i % 2 === 0) return part;
    if (part.startsWith("@")) {
      const name = part.slice(1);
      return mentions.includes(name) ? html`<span class=${name === me ? "mention me" : "mention"}>${part}</span>` : part;
    }
    const [address = "", end = ""] = part.split(/([.,;:!?)\]]+$)/);
    if (!linkable(address)) return part;
    return html`<a href=${address} target="_blank" rel="noopener noreferrer nofollow">${address}</a>${end}`;
  });
}

/** @param {string} address */
function linkable(address) {
  return URL.canParse(address) && ["http:", "https:", "mailto:"].includes(new URL(address).protocol);
}

const ONLY_EMOJI = /^(\p{Extended_Pictographic}|\p{Emoji_Modifier}|\p{Regional_Indicator}|\u200d|\ufe0f|\s){1,12}$/u;

/** Whether a text is up to a few emoji, which are shown large. @param {string} text */
export function onlyEmoji(text) {
  return ONLY_EMOJI.test(text) && [...new Intl.Segmenter().segment(text.replace(/\s/g, ""))].length <= 3;
}
