/** Where a message is written: a text that grows, emoji, mentions, a reply or an edit. */

import { mentionsOf, textOf } from "./format.js";
import { Quote } from "./message.js";
import { t } from "./strings.js";
import { html, Icon, IconButton, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";

const TYPING_EVERY_MS = 2500;
const LONGEST = 16_000; // characters; a body has at most 64 KiB
const MENTION = /(^|\s)@([A-Za-z0-9._-]{0,64})$/;

/** What was begun in each conversation. @type {Map<string, string>} */
const drafts = new Map();

/**
 * @param {{ session: import("./session.js").Session, conversation: import("./sdk/index.js").Conversation, view: import("./session.js").View,
 *   replyTo: any, editing: any, last: () => any, edit: any, done: () => void, sent: () => void, say: any }} props
 */
export function Composer({ session, conversation, view, replyTo, editing, last, edit, done, sent, say }) {
  const [text, setText] = useState(drafts.get(conversation.id) ?? "");
  const [members, setMembers] = useState(/** @type {string[]} */ ([]));
  const [chosen, setChosen] = useState(0);
  const [caret, setCaret] = useState(0); // of the text that is rendered: the field still has the one before
  const [Picker, setPicker] = useState(/** @type {any} */ (undefined));
  /** @type {{ current: any }} */
  const field = useRef(null);
  const typedAt = useRef(-Infinity);
  const group = view.kind === "group" || view.kind === "channel";

  useEffect(() => {
    if (matchMedia("(pointer: fine)").matches) field.current.focus();
    if (!group) return;
    session.client.call("GET", `/v1/conversations/${encodeURIComponent(conversation.id)}`).then(
      (found) => setMembers(Object.keys(found.members).filter((user) => user !== session.user)),
      () => undefined, // without a connection nobody is proposed
    );
  }, [group]);
  useEffect(() => {
    if (editing) setText(textOf(editing.body));
    if (editing || replyTo) field.current.focus();
  }, [editing, replyTo]);
  useLayoutEffect(() => {
    const box = field.current;
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, 200)}px`;
    if (!editing) drafts.set(conversation.id, text);
  }, [text]);

  const at = MENTION.exec(text.slice(0, caret));
  const proposed = group && at ? members.filter((user) => user.toLowerCase().startsWith((at[2] ?? "").toLowerCase())).slice(0, 6) : [];

  const onInput = (/** @type {any} */ event) => {
    setText(event.target.value);
    setCaret(event.target.selectionStart);
    setChosen(0);
    if (event.target.value && performance.now() - typedAt.current > TYPING_EVERY_MS) {
      typedAt.current = performance.now();
      conversation.typing();
    }
  };
  const leave = () => {
    if (editing) setText("");
    done();
  };
  const send = () => {
    const words = text.trim();
    if (!words) return;
    const mentions = [...new Set([...words.matchAll(/(?:^|\s)@([A-Za-z0-9._-]{1,64})/g)].map((found) => found[1] ?? ""))].filter((user) => members.includes(user));
    const kept = mentions.length ? mentions : editing ? mentionsOf(editing.body).filter((user) => words.includes(`@${user}`)) : [];
    const body = kept.length ? { text: words, mentions: kept } : words;
    const handle = editing ? conversation.edit(editing.seq, body) : conversation.send(body, replyTo ? { replyTo: replyTo.seq } : {});
    handle.stored.catch(() => say(t("not_kept")));
    handle.acked.catch(() => undefined); // the message itself shows it
    const was = editing;
    setText("");
    setPicker(undefined);
    typedAt.current = -Infinity;
    done();
    if (!was) sent();
    field.current.focus();
  };
  const put = (/** @type {number} */ start, /** @type {number} */ end, /** @type {string} */ words) => {
    const box = field.current;
    box.value = text.slice(0, start) + words + text.slice(end);
    box.setSelectionRange(start + words.length, start + words.length);
    setText(box.value);
    setCaret(start + words.length);
    box.focus();
  };
  const mention = (/** @type {string} */ user) => {
    put(caret - (at?.[2]?.length ?? 0), caret, `${user} `);
  };
  const insert = (/** @type {string} */ emoji) => {
    const place = field.current.selectionStart ?? text.length;
    put(place, place, emoji);
  };
  const onKeyDown = (/** @type {any} */ event) => {
    if (event.isComposing) return;
    if (proposed.length && ["ArrowDown", "ArrowUp", "Enter", "Tab"].includes(event.key)) {
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
      if (step) setChosen((chosen + step + proposed.length) % proposed.length);
      else mention(proposed[chosen] ?? "");
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape" && (editing || replyTo)) {
      leave();
    } else if (event.key === "ArrowUp" && !text && !editing) {
      const mine = last();
      if (mine) {
        event.preventDefault();
        edit(mine);
      }
    }
  };
  const pick = async () => {
    if (Picker) return setPicker(undefined);
    const { Emoji } = await import("./emoji.js");
    return setPicker(() => Emoji);
  };

  return html`<form class="composer" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), send())}>
    ${Picker && html`<div class="picker-place"><${Picker} choose=${insert} close=${() => (setPicker(undefined), field.current.focus())} /></div>`}
    ${proposed.length > 0 &&
    html`<ul class="proposed" id="proposed" role="listbox" aria-label=${t("mention")}>
      ${proposed.map((user, i) => html`<li key=${user} id=${`proposed-${i}`} role="option" aria-selected=${i === chosen ? "true" : "false"} onPointerDown=${(/** @type {Event} */ event) => (event.preventDefault(), mention(user))}>@${user}</li>`)}
    </ul>`}
    ${(replyTo || editing) &&
    html`<div class="context"><${Icon} name=${editing ? "edit" : "reply"} /><${Quote} message=${editing ?? replyTo} /><${IconButton} icon="close" label=${t("cancel")} onClick=${leave} /></div>`}
    <div class="composer-line">
      <${IconButton} icon="smile" label=${t("emoji")} onClick=${() => void pick()} aria-expanded=${Picker ? "true" : "false"} />
      <textarea ref=${field} rows="1" dir="auto" maxlength=${LONGEST} value=${text} placeholder=${t("write_message")} aria-label=${t("write_message")} onInput=${onInput} onKeyDown=${onKeyDown} aria-autocomplete=${group ? "list" : undefined} aria-controls=${proposed.length ? "proposed" : undefined} aria-activedescendant=${proposed.length ? `proposed-${chosen}` : undefined}></textarea>
      <button type="submit" class="send" disabled=${!text.trim()} aria-label=${editing ? t("save") : t("send")} title=${editing ? t("save") : t("send")}><${Icon} name=${editing ? "check" : "send"} /></button>
    </div>
  </form>`;
}
