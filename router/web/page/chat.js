/**
 * One conversation. A window of at most 400 messages of the store is in the page, in their order.
 *
 * 1. `bound` is the seq before which the window ends; none: it ends with the newest message. Older messages are loaded at the
 *    window's top, and then its end moves up, too. The bounds on the way are kept, for the way down.
 * 2. The reader's place is kept: before a change the topmost message that is seen is noted, and afterwards it is where it was.
 *    If the end was seen, the end is seen again.
 * 3. The unread line is where the read mark was when the conversation was opened.
 * 4. A message counts as read when the end is seen and the page is visible.
 * 5. A row that looks as before is not made again: a change of one message costs one row, not 400.
 */

import { Composer } from "./composer.js";
import { day, dayOf, lastSeen, whyClosed } from "./format.js";
import { MessageRow } from "./message.js";
import { open, otherOf, targetOf, titleOf } from "./names.js";
import { Face, nameOf, profilesChanged } from "./profiles.js";
import { t } from "./strings.js";
import { Avatar, html, Icon, IconButton, Menu, once, useEffect, useLayoutEffect, useReducer, useRef, useState } from "./ui.js";

/** @typedef {import("./session.js").Message} Message */
/** @typedef {{ message: Message, quoted: Message | undefined, looks: string, row: any }} Made A row, and what it was made of. */

const PAGE = 80;
const WINDOW = 400;
const NEAR = 120; // pixels
const TOGETHER_MS = 5 * 60_000;
const LATER_MS = 100; // than the end of a mute
const LONGEST_MS = 2 ** 31 - 1; // of a timer

/** What is open of a conversation, apart from its view. */
class Window {
  /** @param {import("./session.js").Session} session @param {string} id @param {() => void} changed */
  constructor(session, id, changed) {
    this.session = session;
    this.target = targetOf(session.user, id);
    this.changed = changed;
    /** @type {Message[]} */
    this.messages = [];
    /** @type {number | undefined} */
    this.bound = undefined;
    /** @type {(number | undefined)[]} */
    this.bounds = [];
    this.size = PAGE;
    this.loaded = this.loading = this.whole = false;
    /** @type {import("./session.js").View | undefined} */
    this.view = undefined;
    /** Rows as they were made last, by key. @type {Map<string, Made>} */
    this.made = new Map();
    /** The read mark at the beginning. @type {number | undefined} */
    this.readAt = undefined;
    /** @type {Promise<void>} */
    this._reading = Promise.resolve();
    this.read = once(() => void this._read());
  }

  /** A new one each time: a client whose store was wiped has another store from then on. */
  get conversation() {
    return this.session.client.conversation(this.target);
  }

  _read() {
    this._reading = this._reading.then(async () => {
      const { conversation, bound, size } = this;
      const view = await conversation.view();
      const messages = await conversation.messages({ limit: size, ...(bound === undefined ? {} : { before: bound }) });
      if (bound !== this.bound) return;
      this.view = view;
      this.readAt ??= view.read;
      const before = new Map(this.messages.map((message) => [keyOf(message, conversation.id), message]));
      this.messages = messages.map((message) => {
        const old = before.get(keyOf(message, conversation.id));
        return old && JSON.stringify(old) === JSON.stringify(message) ? old : message;
      });
      this.loaded = true;
      this.changed();
    }).catch(() => undefined); // the store is lost, and the client opens another one
    return this._reading;
  }

  async older() {
    const first = this.messages.find(({ seq }) => seq !== undefined)?.seq;
    if (this.loading || this.whole || first === undefined) return;
    this.loading = true;
    this.changed();
    try {
      const before = await this.conversation.messages({ limit: PAGE, before: first });
      if (before.length < PAGE && !(await this.conversation.loadOlder(PAGE)) && before.length === 0) this.whole = true;
      this.size += PAGE;
      if (this.size > WINDOW) {
        const kept = this.messages[WINDOW - PAGE]?.seq;
        if (kept !== undefined) {
          this.bounds.push(this.bound);
          this.bound = kept;
        }
        this.size = WINDOW;
      }
      await this._read();
    } catch {
      // without a connection there is no more to show; the next scroll tries again
    } finally {
      this.loading = false;
      this.changed();
    }
  }

  newer() {
    if (this.bound === undefined || this.loading) return;
    this.bound = this.bounds.pop();
    void this._read();
  }

  newest() {
    this.bound = undefined;
    this.bounds = [];
    this.size = PAGE;
    return this._read();
  }
}

/** @param {{ id: string, session: import("./session.js").Session, show: any, say: (text: string) => void }} props */
export function Chat({ id, session, show, say }) {
  const [, refresh] = useReducer((/** @type {number} */ n) => n + 1, 0);
  /** @type {{ current: any }} */
  const kept = useRef(null);
  kept.current ??= new Window(session, id, () => refresh(0));
  /** @type {Window} */
  const pane = kept.current;
  const [replyTo, setReplyTo] = useState(/** @type {Message | undefined} */ (undefined));
  const [editing, setEditing] = useState(/** @type {Message | undefined} */ (undefined));
  const [away, setAway] = useState(false);
  /** @type {{ current: any }} */
  const log = useRef(null);
  const place = useRef(/** @type {{ end: boolean, element?: any, top?: number, first: boolean }} */ ({ end: true, first: true }));

  const markRead = () => {
    const atEnd = pane.bound === undefined && place.current.end;
    if (atEnd && !document.hidden && pane.loaded && pane.view?.unread) void pane.conversation.markRead();
  };

  useEffect(() => {
    pane.read();
    const opened = () => {
      if (session.entry(id)?.view.kind) pane.conversation.loadReads().catch(() => undefined); // large groups have none
    };
    opened();
    const ends = [
      session.onConversations((ids) => ids.includes(id) && pane.read()),
      session.client.on("status", (status) => status === "live" && opened()),
    ];
    document.addEventListener("visibilitychange", markRead);
    return () => (ends.forEach((end) => end()), document.removeEventListener("visibilitychange", markRead));
  }, []);

  // Before the page changes: which message is at the top. After it: the same message is there.
  const before = log.current;
  if (before && pane.loaded) note(before, place.current);
  useLayoutEffect(() => {
    const box = log.current;
    if (!box || !pane.loaded) return;
    const now = place.current;
    if (now.first) {
      now.first = false;
      const line = box.querySelector(".unread-line");
      if (line) line.scrollIntoView({ block: "center" });
      else box.scrollTop = box.scrollHeight;
      note(box, now);
    } else if (now.end && pane.bound === undefined) {
      box.scrollTop = box.scrollHeight;
    } else if (now.element?.isConnected && now.top !== undefined) {
      box.scrollTop += now.element.getBoundingClientRect().top - now.top;
    }
    markRead();
  });

  const onScroll = () => {
    const box = log.current;
    note(box, place.current);
    setAway(!place.current.end || pane.bound !== undefined);
    if (box.scrollTop < NEAR * 3) void pane.older();
    if (box.scrollHeight - box.scrollTop - box.clientHeight < NEAR * 3) pane.newer();
    markRead();
  };
  useEffect(() => {
    const box = log.current;
    if (pane.loaded && box && box.scrollHeight <= box.clientHeight && !pane.whole) void pane.older();
  }, [pane.loaded, pane.messages.length]);

  const toNewest = () => {
    place.current.end = true;
    void pane.newest().then(() => {
      if (!log.current) return; // another conversation is open
      log.current.scrollTop = log.current.scrollHeight;
      setAway(false);
    });
  };

  const shown = pane.view?.kind ? pane.view : (session.entry(id)?.view ?? pane.view);
  const view = shown ?? { id, kind: "", title: "", with: null, role: null, posting: undefined, mutedUntil: undefined, unread: 0, read: 0, reads: {}, gone: null, held: false };
  const direct = id.startsWith("d:");
  const other = direct ? otherOf(session.user, id) : "";
  useEffect(() => {
    if (other) session.watch([other]);
  }, [other]);
  const title = titleOf(session.user, view);
  const typists = session.typists(id);
  const closed = whyClosed(view);
  useEffect(() => {
    const left = (view.mutedUntil ?? 0) - Date.now();
    if (left <= 0) return undefined;
    const timer = setTimeout(() => refresh(0), Math.min(left + LATER_MS, LONGEST_MS));
    return () => clearTimeout(timer);
  }, [view.mutedUntil]);
  const about = () => (direct ? show("person", { user: other }) : show("about", { id, view }));
  const state = view.held ? t("held") : typists.length ? typing(typists) : direct ? lastSeen(session.presence.get(other)) : t(view.kind === "channel" ? "channel" : "group");

  return html`<section class="chat" aria-label=${title}>
    <header class="chat-head">
      <${IconButton} icon="back" label=${t("back")} className="back" onClick=${() => open("")} />
      <button type="button" class="chat-title" onClick=${about} title=${t("about", { title })}>
        ${direct ? html`<${Face} user=${other} online=${session.presence.get(other)?.online === true} />` : html`<${Avatar} name=${title} kind=${view.kind} />`}
        <span><span class="row-title" dir="auto">${title}</span><small class=${typists.length ? "typing" : ""}>${state}</small></span>
      </button>
      <${Menu} label=${t("more")} items=${() => [
        { label: direct ? t("about_person") : t("members"), icon: direct ? "person" : "group", act: about },
        { label: t("invite"), icon: "link", act: () => show("invite", view.kind === "channel" ? { id, title } : undefined) },
      ]} />
    </header>
    <div class="log" role="log" aria-label=${t("messages_of", { title })} aria-busy=${pane.loading || !pane.loaded ? "true" : "false"} tabindex="0" ref=${log} onScroll=${onScroll}>
      ${pane.loading && html`<p class="hint" key="loading">${t("loading")}</p>`}
      ${pane.loaded && !pane.messages.length && html`<div class="hint first" key="none">${direct ? html`<${Face} user=${other} size="large" />` : html`<${Avatar} name=${title} kind=${view.kind} size="large" />`}<p>${t("say_hello", { title })}</p></div>`}
      ${rows(pane, session, { id, view, show, say, reply: (/** @type {Message} */ message) => (setEditing(undefined), setReplyTo(message)), edit: (/** @type {Message} */ message) => (setReplyTo(undefined), setEditing(message)) })}
    </div>
    ${away && html`<button type="button" class="to-newest" onClick=${toNewest} aria-label=${t("to_newest")} title=${t("to_newest")}><${Icon} name="down" />${view.unread > 0 && html`<span class="count">${view.unread}</span>`}</button>`}
    ${view.gone
      ? html`<p class="closed">${t(`gone_${view.gone}`)}</p>`
      : !closed
        ? html`<${Composer} session=${session} conversation=${pane.conversation} view=${view} replyTo=${replyTo} editing=${editing} last=${() => [...pane.messages].reverse().find((one) => one.from === session.user && one.seq !== undefined && !one.deleted)} edit=${setEditing} done=${() => (setReplyTo(undefined), setEditing(undefined))} sent=${toNewest} say=${say} show=${show} />`
        : view.kind && html`<p class="closed">${closed}</p>`}
  </section>`;
}

/** Note the topmost message that is seen; they are in the order of their places. @param {any} box @param {{ end: boolean, element?: any, top?: number }} place */
function note(box, place) {
  place.end = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
  const top = box.getBoundingClientRect().top;
  const all = box.querySelectorAll(".message");
  let [low, high] = [0, all.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (all[middle].getBoundingClientRect().bottom < top) low = middle + 1;
    else high = middle;
  }
  place.element = all[low];
  place.top = place.element?.getBoundingClientRect().top;
}

/** @param {string[]} users */
function typing(users) {
  if (users.length === 1) return t("typing_user", { user: nameOf(users[0] ?? "") });
  return t("typing_more", { users: users.slice(0, 3).map(nameOf).join(", ") });
}

/** The messages with their days and the unread line. @param {Window} pane @param {import("./session.js").Session} session @param {any} acts */
function rows(pane, session, acts) {
  const made = [];
  /** @type {Map<string, Made>} */
  const kept = new Map();
  const { kind, role, gone, reads } = acts.view;
  const around = `${kind} ${role} ${gone} ${whyClosed(acts.view)} ${profilesChanged()} `;
  /** @type {Message | undefined} */
  let before;
  let lined = false;
  const bySeq = new Map(pane.messages.map((message) => [message.seq, message]));
  for (const message of pane.messages) {
    const newDay = !before || dayOf(before.at) !== dayOf(message.at);
    if (newDay) made.push(html`<p class="day" key=${`day ${dayOf(message.at)}`}><span>${day(message.at)}</span></p>`);
    const unread = !lined && message.from !== session.user && message.seq !== undefined && message.seq > (pane.readAt ?? 0);
    if (unread) {
      lined = true;
      if (before || pane.readAt) made.push(html`<p class="unread-line" key="unread"><span>${t("new_messages")}</span></p>`);
    } else if (!lined && message.seq !== undefined && message.seq > (pane.readAt ?? 0)) {
      lined = true; // the user's own message is the first: nothing before it is unread
    }
    const together = !newDay && !unread && before?.from === message.from && message.at - before.at < TOGETHER_MS;
    const key = keyOf(message, session.user);
    const quoted = message.replyTo === null ? undefined : bySeq.get(message.replyTo);
    const looks = `${around}${together} ${message.from === session.user ? JSON.stringify(reads) : ""}`;
    const old = pane.made.get(key);
    const same = old?.message === message && old.quoted === quoted && old.looks === looks;
    const row = same ? old.row : html`<${MessageRow} key=${key} message=${message} together=${together} session=${session} quoted=${quoted} conversation=${pane.conversation} ...${acts} />`;
    kept.set(key, { message, quoted, looks, row });
    made.push(row);
    before = message;
  }
  pane.made = kept;
  return made;
}

/** @param {Message} message @param {string} user */
function keyOf(message, user) {
  return message.seq === undefined ? `own ${user} ${message.id}` : String(message.seq);
}
