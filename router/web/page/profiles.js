/**
 * What users call themselves, and their pictures: asked for in batches when a view shows them, kept in memory.
 *
 * Events have the names of accounts alone. Until a profile is here, and for users without one, that name is shown.
 */

import { linkTo } from "./links.js";
import { Avatar, html } from "./ui.js";

/** @typedef {{ user: string, name: string, about: string | null, avatar: string | null }} Profile */

const AT_ONCE = 200; // in one call
const MOST = 2000;
const TOGETHER_MS = 30;
const KEPT_MS = 10 * 60_000;
const PICTURE_MS = 25 * 60_000; // a link lasts at least half an hour
const AGAIN_MS = 20_000; // after a call that failed

/** @type {Map<string, { profile: Profile | undefined, at: number }>} */
const known = new Map();
/** @type {Set<string>} */
const wanted = new Set();
/** The addresses of pictures by user and file, and when they were asked for: a link ends. @type {Map<string, { url: string, at: number }>} */
const pictures = new Map();

/** @type {import("./sdk/index.js").Client | undefined} */
let client;
let version = 0;
let listen = () => {};

function changed() {
  version++;
  listen();
}

/** A number that is another one after each change. */
export function profilesChanged() {
  return version;
}

/** @param {import("./sdk/index.js").Client} of @param {() => void} listener */
export function startProfiles(of, listener) {
  client = of;
  listen = listener;
}

/** @param {string} user @returns {Profile | undefined} */
export function profileOf(user) {
  const found = known.get(user);
  if (!found || Date.now() - found.at > KEPT_MS) want(user);
  return found?.profile;
}

/** @param {string} user */
export function nameOf(user) {
  return profileOf(user)?.name || user;
}

/** Ask for a profile again. @param {string} user */
export function forgetProfile(user) {
  const found = known.get(user);
  if (found) known.set(user, { ...found, at: 0 });
  changed();
}

/** @param {Profile} profile */
export function takeProfile(profile) {
  known.set(profile.user, { profile, at: Date.now() });
  changed();
}

/** The address of a user's picture. @param {string} user */
function pictureOf(user) {
  const avatar = profileOf(user)?.avatar;
  if (!avatar || !client) return undefined;
  const key = `${user} ${avatar}`;
  const found = pictures.get(key);
  if (!found || Date.now() - found.at > PICTURE_MS) {
    const at = Date.now();
    const url = found?.url ?? "";
    pictures.set(key, { url, at });
    void linkTo(client, avatar, `@${user}`).then((link) => {
      if (!link) return pictures.set(key, { url, at: at - PICTURE_MS + AGAIN_MS });
      pictures.set(key, { url: link.previews[320] ?? link.url, at });
      return changed();
    });
    if (pictures.size > MOST) pictures.delete(pictures.keys().next().value ?? "");
  }
  return found?.url || undefined;
}

/** @param {string} user */
function want(user) {
  if (!client) return;
  if (!wanted.size) setTimeout(() => void ask(), TOGETHER_MS);
  wanted.add(user);
  known.set(user, { profile: known.get(user)?.profile, at: Date.now() - KEPT_MS + AGAIN_MS });
}

async function ask() {
  const users = [...wanted];
  wanted.clear();
  for (let i = 0; i < users.length; i += AT_ONCE) {
    const some = users.slice(i, i + AT_ONCE);
    const answer = await client?.call("GET", `/v1/users?users=${some.join(",")}`).catch(() => undefined);
    if (!answer) continue; // it is asked again after AGAIN_MS
    for (const user of some) known.set(user, { profile: undefined, at: Date.now() });
    for (const profile of answer.users) known.set(profile.user, { profile, at: Date.now() });
  }
  while (known.size > MOST) known.delete(known.keys().next().value ?? "");
  changed();
}

/** A user's picture, or the letter of their name. @param {{ user: string, online?: boolean, size?: string }} props */
export function Face({ user, online = false, size = "" }) {
  return html`<${Avatar} name=${nameOf(user)} of=${user} picture=${pictureOf(user)} online=${online} size=${size} />`;
}
