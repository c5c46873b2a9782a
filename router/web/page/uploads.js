/**
 * Files on their way to the server, and then into a message.
 *
 * 1. A job is a message to be: its files are uploaded one after another, then the message is in the client's outbox, and the
 *    job is gone. It outlives the view that began it, but not the page, which asks before it is left.
 * 2. A file that is there is not sent again when a job is tried again.
 * 3. The upload is the page's own, because the client's cannot be cancelled.
 */

import { Refusal, tokenOf } from "./accounts.js";
import { uploaded } from "./links.js";
import { targetOf } from "./names.js";
import { options } from "./options.js";
import { t } from "./strings.js";

/** @typedef {import("./sdk/wire.js").FileInfo} FileInfo */
/** @typedef {"image" | "voice" | "video" | "file"} Kind */
/** @typedef {{ blob: Blob, name?: string, kind?: Kind, duration?: number, waveform?: number[] }} Item */

export const MOST_FILES = 20;
const PICTURES = ["image/jpeg", "image/png", "image/webp", "image/gif"];

/** What the server will take a file for, by its declared type. @param {{ blob: Blob, kind?: Kind }} item @returns {Kind} */
export function kindOf({ blob, kind }) {
  if (kind) return kind;
  if (PICTURES.includes(blob.type)) return "image";
  if (blob.type.startsWith("audio/")) return "voice";
  return blob.type.startsWith("video/") ? "video" : "file";
}

/** The megabytes that such a file may have, if it has more. @param {{ blob: Blob, kind?: Kind }} item */
export function tooLarge(item) {
  const limit = options().media?.[kindOf(item)] ?? 0;
  return item.blob.size > limit * 1_000_000 ? limit : 0;
}

export class Job {
  /**
   * @param {import("./session.js").Session} session
   * @param {string} conversation Its id.
   * @param {Item[]} items
   * @param {string} caption
   * @param {number | undefined} replyTo
   */
  constructor(session, conversation, items, caption, replyTo) {
    this.session = session;
    this.conversation = conversation;
    this.items = items;
    this.caption = caption;
    this.replyTo = replyTo;
    this.size = items.reduce((sum, { blob }) => sum + blob.size, 0);
    this.done = 0;
    /** Why it has failed; empty while it goes on. */
    this.why = "";
    /** @type {FileInfo[]} */
    this._files = [];
    /** @type {AbortController | undefined} */
    this._control = undefined;
  }

  /** The kind of all its files, or `file`. */
  get kind() {
    const kinds = new Set(this.items.map(kindOf));
    return kinds.size === 1 ? ([...kinds][0] ?? "file") : "file";
  }

  async run() {
    const control = (this._control = new AbortController());
    this.why = "";
    this.session.touch();
    try {
      for (const item of this.items.slice(this._files.length)) {
        const before = this.items.slice(0, this._files.length).reduce((sum, { blob }) => sum + blob.size, 0);
        const info = await upload(this.session.user, item, control.signal, (done) => {
          this.done = before + Math.min(done, item.blob.size);
          this.session.touch();
        });
        uploaded(info, item.blob);
        this._files.push(info);
        this.done = before + item.blob.size;
      }
      const kinds = new Set(this._files.map(({ kind }) => kind));
      const media = kinds.size === 1 ? (this._files[0]?.kind ?? "file") : "file";
      const more = this.replyTo === undefined ? {} : { replyTo: this.replyTo };
      const conversation = this.session.client.conversation(targetOf(this.session.user, this.conversation));
      const handle = conversation.send(this.caption, { media, files: this._files.map(({ sha256 }) => sha256), ...more });
      handle.acked.catch(() => undefined); // the message itself shows it
      await handle.stored;
      this.end();
    } catch (error) {
      if (control.signal.aborted) return;
      this.why = whyOf(error);
      this.session.touch();
    }
  }

  /** Cancel it, or remove it when it is done. */
  end() {
    this._control?.abort();
    this.session.uploads = this.session.uploads.filter((job) => job !== this);
    this.session.touch();
  }
}

/**
 * Send files, with a text.
 *
 * @param {import("./session.js").Session} session
 * @param {string} conversation Its id.
 * @param {Item[]} items
 * @param {string} [caption]
 * @param {number} [replyTo]
 */
export function sendFiles(session, conversation, items, caption = "", replyTo) {
  if (!session.uploads.length) addEventListener("beforeunload", warn);
  const job = new Job(session, conversation, items, caption, replyTo);
  session.uploads = [...session.uploads, job];
  void job.run().finally(() => session.uploads.length || removeEventListener("beforeunload", warn));
  return job;
}

/** @param {Event} event */
function warn(event) {
  event.preventDefault();
}

/** @param {string} user @param {Item} item @param {AbortSignal} signal @param {(done: number) => void} progress @returns {Promise<FileInfo>} */
async function upload(user, item, signal, progress) {
  try {
    return await attempt(await tokenOf(user, "connect"), item, signal, progress);
  } catch (error) {
    if (!(error instanceof Refusal) || !["token_expired", "unauthorized"].includes(error.code)) throw error;
    return attempt(await tokenOf(user, "token_expired"), item, signal, progress);
  }
}

/** @param {string} token @param {Item} item @param {AbortSignal} signal @param {(done: number) => void} progress @returns {Promise<FileInfo>} */
function attempt(token, { blob, name = "", kind, duration, waveform }, signal, progress) {
  const query = new URLSearchParams();
  for (const [field, value] of Object.entries({ kind, duration, waveform })) if (value !== undefined) query.set(field, String(value));
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/v1/uploads?${query}`);
    request.setRequestHeader("Authorization", `Bearer ${token}`);
    request.setRequestHeader("Content-Type", blob.type.split(";")[0] || "application/octet-stream");
    if (name) request.setRequestHeader("Linnet-Name", encodeURIComponent(name));
    request.upload.onprogress = ({ loaded }) => progress(loaded);
    request.onload = () => {
      if (request.status < 300) return resolve(JSON.parse(request.responseText));
      const { error = {} } = request.responseText.startsWith("{") ? JSON.parse(request.responseText) : {};
      return reject(new Refusal(error.code ?? "internal", error.message ?? "", Number(request.getResponseHeader("Retry-After") ?? 0)));
    };
    request.onerror = () => reject(new Refusal("unavailable", "", 0));
    signal.addEventListener("abort", () => (request.abort(), reject(new Refusal("cancelled", "", 0))));
    if (signal.aborted) return reject(new Refusal("cancelled", "", 0));
    return request.send(blob);
  });
}

/** @param {unknown} error */
function whyOf(error) {
  if (!(error instanceof Refusal)) return t("not_kept");
  switch (error.code) {
    case "unavailable":
      return t("upload_unavailable");
    case "too_large":
      return t("upload_too_large");
    case "unreadable":
    case "unsupported_media_type":
      return t("upload_unreadable");
    case "rejected":
      return t("upload_rejected");
    case "quota":
      return t("upload_quota");
    case "rate_limited":
      return t("too_often", { count: error.retryAfter || 1 });
    default:
      return t("refused", { why: error.message || error.code });
  }
}

/** A file's name as the server takes it: no control and path characters, at most 255 bytes. @param {string} name */
export function cleanName(name) {
  let clean = name.replace(/[\p{Cc}\p{Cf}/\\]/gu, "_");
  while (new TextEncoder().encode(clean).length > 250) clean = clean.slice(1); // the end says what it is
  return clean;
}
