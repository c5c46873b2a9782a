/** One message: its text, what became of it, and what can be done with it. */

import { Files } from "./files.js";
import { clock, exact, forwardedOf, mentionsOf, onlyEmoji, rich, summaryOf, textOf, whyClosed } from "./format.js";
import { Face, nameOf } from "./profiles.js";
import { t } from "./strings.js";
import { html, Icon, Menu } from "./ui.js";

const QUICK = ["👍", "❤️", "😂", "😮", "😢", "🙏"];

/**
 * @param {{ message: import("./session.js").Message, together: boolean, quoted: import("./session.js").Message | undefined, session: import("./session.js").Session,
 *   conversation: import("./sdk/index.js").Conversation, id: string, view: import("./session.js").View, show: any, say: any, reply: any, edit: any }} props
 */
export function MessageRow({ message, together, quoted, session, conversation, view, show, say, reply, edit }) {
  const mine = message.from === session.user;
  const text = textOf(message.body);
  const named = !mine && view.kind !== "direct" && !together;
  const large = !message.deleted && onlyEmoji(text);
  const { seq } = message;
  const react = (/** @type {string} */ emoji) => {
    if (seq === undefined) return;
    conversation.react(seq, emoji, { remove: message.reactions[emoji]?.includes(session.user) ?? false });
  };
  const moderates = view.role === "owner" || view.role === "admin";
  const writes = !whyClosed(view);
  const items = () => [
    writes && { label: t("reply"), icon: "reply", act: () => reply(message) },
    { label: t("forward"), icon: "forward", act: () => show("forward", { message, id: conversation.id }) },
    text !== "" && { label: t("copy"), icon: "copy", act: () => void navigator.clipboard.writeText(text).then(() => say(t("copied")), () => say(t("not_copied"))) },
    mine && writes && (message.media === "text" || (message.files.length > 0 && message.media !== "voice")) && { label: t("edit"), icon: "edit", act: () => edit(message) },
    !mine && view.kind !== "" && { label: t("report"), icon: "flag", act: () => show("report", { conversation: conversation.id, seq, text: summaryOf(message).slice(0, 200) }) },
    (mine || moderates) && view.kind !== "" && { label: t("delete"), icon: "trash", danger: true, act: () => show("delete", { message, conversation }) },
  ];
  const quick = (/** @type {() => void} */ close) => html`<div class="quick" role="group" aria-label=${t("react")}>
    ${QUICK.map((emoji) => html`<button type="button" role="menuitem" aria-label=${t("react_with", { emoji })} onClick=${() => (close(), react(emoji))}>${emoji}</button>`)}
    <button type="button" role="menuitem" aria-label=${t("more_emoji")} onClick=${() => (close(), show("emoji", { choose: react }))}><${Icon} name="plus" size=${18} /></button>
  </div>`;

  return html`<div class=${`message ${mine ? "mine" : "theirs"} ${together ? "together" : ""}`} data-seq=${seq} role="article" aria-label=${t("message_by", { user: mine ? t("you") : nameOf(message.from), when: clock(message.at) })}>
    ${!mine && view.kind !== "direct" && (named ? html`<${Face} user=${message.from} size="small" />` : html`<span class="avatar small none"></span>`)}
    <div class="bubble-line">
      <div class=${`bubble ${large ? "large" : ""} ${message.deleted ? "deleted" : ""} ${message.state === "failed" ? "failed" : ""}`}>
        ${named && html`<b class="author" dir="auto">${nameOf(message.from)}</b>`}
        ${forwardedOf(message.body) && html`<span class="forwarded"><${Icon} name="forward" size=${14} />${t("forwarded", { user: forwardedOf(message.body) })}</span>`}
        ${message.replyTo !== null && html`<${Quote} message=${quoted} />`}
        ${!message.deleted && message.files?.length > 0 && html`<${Files} message=${message} session=${session} id=${conversation.id} show=${show} />`}
        ${message.deleted ? html`<span class="text">${t("deleted")}</span>` : html`<span class="text" dir="auto">${rich(text, mentionsOf(message.body), session.user)}</span>`}
        <span class="meta">${message.edited && !message.deleted && html`<span>${t("edited")}</span>`}<time title=${exact(message.at)}>${clock(message.at)}</time>${mine && html`<${State} message=${message} view=${view} user=${session.user} />`}</span>
      </div>
      ${seq !== undefined && !message.deleted && !view.gone && html`<${Menu} label=${t("act_on", { text: summaryOf(message).slice(0, 40) })} items=${items} top=${quick} className="acts" />`}
    </div>
    ${Object.keys(message.reactions).length > 0 &&
    html`<div class="reactions">${Object.entries(message.reactions).map(([emoji, users]) => html`<button type="button" key=${emoji} aria-pressed=${users.includes(session.user) ? "true" : "false"} title=${users.slice(0, 20).map(nameOf).join(", ")} aria-label=${t("reaction", { emoji, count: users.length })} onClick=${() => react(emoji)}>${emoji}<span>${users.length}</span></button>`)}</div>`}
    ${message.state === "failed" && html`<${Failed} message=${message} session=${session} />`}
  </div>`;
}

/** @param {{ message: import("./session.js").Message | undefined }} props */
export function Quote({ message }) {
  if (!message) return html`<span class="quote"><span>${t("earlier_message")}</span></span>`;
  return html`<span class="quote"><b dir="auto">${nameOf(message.from)}</b><span dir="auto">${message.deleted ? t("deleted") : summaryOf(message).slice(0, 140)}</span></span>`;
}

/** How far an own message has come. @param {{ message: import("./session.js").Message, view: import("./session.js").View, user: string }} props */
function State({ message, view, user }) {
  const { seq = Infinity, state } = message;
  const readers = Object.entries(view.reads).filter(([reader, read]) => reader !== user && read >= seq);
  const [icon, label] =
    state === "failed" ? ["warn", t("state_failed")]
    : state !== "acked" ? ["clock", t(state === "sent" ? "state_sent" : "state_queued")]
    : readers.length ? ["checks", view.kind === "direct" ? t("state_read") : t("state_read_by", { users: readers.map(([reader]) => nameOf(reader)).slice(0, 5).join(", ") })]
    : ["check", t("state_acked")];
  return html`<span class=${`state ${readers.length && state === "acked" ? "read" : ""}`} role="img" aria-label=${label} title=${label}><${Icon} name=${icon ?? ""} size=${16} /></span>`;
}

/** @param {{ message: import("./session.js").Message, session: import("./session.js").Session }} props */
function Failed({ message, session }) {
  const act = async (/** @type {"retry" | "cancel"} */ what) => {
    const handle = (await session.client.outbox()).find(({ id }) => id === message.id);
    await handle?.[what]();
  };
  return html`<div class="failed-acts" role="group"><span>${t("state_failed")}</span><button type="button" onClick=${() => void act("retry")}>${t("retry")}</button><button type="button" onClick=${() => void act("cancel")}>${t("discard")}</button></div>`;
}
