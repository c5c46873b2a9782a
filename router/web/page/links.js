/**
 * Links to files, asked for in batches and kept while they count; and what this tab knows of the files that it has uploaded.
 *
 * A link needs no token and ends within an hour, so one that is older than half of the least is asked for again.
 */

/** @typedef {import("./sdk/wire.js").FileInfo} FileInfo */
/** @typedef {{ url: string, previews: Record<string, string>, at: number }} Link `at`: when it was asked for. */

export const KEPT_MS = 15 * 60_000; // a link lasts at least half an hour
const AT_ONCE = 100;
const TOGETHER_MS = 20;
const MOST = 1000;
const OWN_MOST = 100;

/** @type {Map<string, { link: Promise<Link | undefined>, at: number }>} */
const kept = new Map();
/** @type {Map<string, Map<string, (link: Link | undefined) => void>>} */
const wanted = new Map();
/** @type {Map<string, { info: FileInfo, url: string }>} */
const own = new Map();

/**
 * A link to a file; undefined if there is none, or no connection.
 *
 * @param {import("./sdk/index.js").Client} client
 * @param {string} sha256
 * @param {string} where A conversation or `@user`; empty for own uploads.
 * @param {boolean} [again] The one that is kept has failed.
 * @returns {Promise<Link | undefined>}
 */
export function linkTo(client, sha256, where, again = false) {
  const key = `${where} ${sha256}`;
  const before = kept.get(key);
  if (before && !again && Date.now() - before.at < KEPT_MS) return before.link;
  const link = new Promise((/** @type {(link: Link | undefined) => void} */ resolve) => {
    const group = wanted.get(where) ?? new Map();
    if (!group.size) setTimeout(() => void ask(client, where), TOGETHER_MS);
    group.set(sha256, resolve);
    wanted.set(where, group);
  });
  kept.delete(key);
  kept.set(key, { link, at: Date.now() });
  void link.then((found) => found || kept.delete(key));
  if (kept.size > MOST) kept.delete(kept.keys().next().value ?? "");
  return link;
}

/** @param {import("./sdk/index.js").Client} client @param {string} where */
async function ask(client, where) {
  const group = wanted.get(where) ?? new Map();
  wanted.delete(where);
  const names = [...group.keys()];
  for (let i = 0; i < names.length; i += AT_ONCE) {
    const some = names.slice(i, i + AT_ONCE);
    const at = Date.now();
    const found = await client.media.links(some, where || undefined).catch(() => /** @type {Record<string, Omit<Link, "at">>} */ ({}));
    for (const name of some) group.get(name)?.(found[name] && { ...found[name], at });
  }
}

/** Remember a file that was uploaded here, so that it is shown before the server has the message. @param {FileInfo} info @param {Blob} blob */
export function uploaded(info, blob) {
  if (own.has(info.sha256)) return;
  own.set(info.sha256, { info, url: URL.createObjectURL(blob) });
  if (own.size <= OWN_MOST) return;
  const [first] = own;
  if (!first) return;
  URL.revokeObjectURL(first[1].url);
  own.delete(first[0]);
}

/** @param {string} sha256 */
export function ownUpload(sha256) {
  return own.get(sha256);
}
