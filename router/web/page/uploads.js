/**
 * Files on their way to the server, and then into a message.
 *
 * 1. A job is a message to be: its files are uploaded one after another, then the message is in the client's outbox, and the
 *    job is gone. It outlives the view that began it, but not the page, which asks before it is left.
 * 2. A file that is there is not sent again when a job is tried again. The client lets an upload go on after a break.
 */

import { uploaded } from "./links.js";
import { targetOf } from "./names.js";
import { options } from "./options.js";
import { t } from "./strings.js";
import { whyOf } from "./ui.js";

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
    if (this._control && !this.why) return; // it goes on, or is over
    const control = (this._control = new AbortController());
    this.why = "";
    this.session.touch();
    try {
      for (const item of this.items.slice(this._files.length)) {
        const before = this.items.slice(0, this._files.length).reduce((sum, { blob }) => sum + blob.size, 0);
        const { blob, ...described } = item;
        const info = await this.session.client.media.upload(blob, {
          ...described,
          mime: blob.type.split(";")[0] ?? "",
          signal: control.signal,
          progress: (done) => {
            this.done = before + Math.min(done, blob.size);
            this.session.touch();
          },
        });
        uploaded(info, blob);
        this._files.push(info);
        this.done = before + blob.size;
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
      this.why = whyNot(error);
      this.session.touch();
    }
  }

  /** Cancel it, or remove it when it is done. */
  end() {
    this._control?.abort();
    this.session.uploads = this.session.uploads.filter((job) => job !== this);
    if (!this.session.uploads.length) removeEventListener("beforeunload", warn);
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
  addEventListener("beforeunload", warn);
  const job = new Job(session, conversation, items, caption, replyTo);
  session.uploads = [...session.uploads, job];
  void job.run();
  return job;
}

/** @param {Event} event */
function warn(event) {
  event.preventDefault();
}

/** @param {any} error */
function whyNot(error) {
  if (typeof error.code !== "string") return t("not_kept"); // of the store
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
      return t("too_often", { count: Math.max(1, Math.ceil(((error.retryAt ?? 0) - Date.now()) / 1000)) });
    default:
      return t("refused", { why: whyOf(error) });
  }
}

/** A file's name as the server takes it: no control and path characters, at most 255 bytes. @param {string} name */
export function cleanName(name) {
  const clean = [...name.replace(/[\p{Cc}\p{Cf}\p{Cs}/\\]/gu, "_")];
  while (new TextEncoder().encode(clean.join("")).length > 250) clean.shift(); // the end says what it is
  return clean.join("");
}
