/** Where a message is written: a text that grows, emoji, mentions, a reply or an edit, files, and a recorded voice. */

import { mentionsOf, sizeOf, textOf } from "./format.js";
import { Quote } from "./message.js";
import { options } from "./options.js";
import { t } from "./strings.js";
import { late } from "./updates.js";
import { html, Icon, IconButton, Menu, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";

const TYPING_EVERY_MS = 2500;
const LONGEST = 16_000; // characters; a body has at most 64 KiB
const MENTION = /(^|\s)@([A-Za-z0-9._-]{0,64})$/;

/** What was begun in a conversation: it is the tab's, so a reload keeps it. @param {string} user @param {string} id */
function draftKey(user, id) {
  return `linnet-draft ${user} ${id}`;
}

/** @param {string} key @param {string} text */
function keepDraft(key, text) {
  if (!text) return sessionStorage.removeItem(key);
  try {
    return sessionStorage.setItem(key, text);
  } catch {
    return undefined; // too many texts were begun: this one is lost with the page
  }
}

/**
 * @param {{ session: import("./session.js").Session, conversation: import("./sdk/index.js").Conversation, view: import("./session.js").View,
 *   replyTo: any, editing: any, last: () => any, edit: any, done: () => void, sent: () => void, say: any, show: any }} props
 */
export function Composer({ session, conversation, view, replyTo, editing, last, edit, done, sent, say, show }) {
  const [text, setText] = useState(() => sessionStorage.getItem(draftKey(session.user, conversation.id)) ?? "");
  const [members, setMembers] = useState(/** @type {string[]} */ ([]));
  const [chosen, setChosen] = useState(0);
  const [caret, setCaret] = useState(0); // of the text that is rendered: the field still has the one before
  const [Picker, setPicker] = useState(/** @type {any} */ (undefined));
  const [voice, setVoice] = useState(/** @type {any} */ (undefined)); // while a voice is recorded: what it needs
  /** @type {{ current: any }} */
  const field = useRef(null);
  /** @type {{ current: any }} */
  const form = useRef(null);
  /** @type {{ current: any }} */
  const input = useRef(null);
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
    if (editing || replyTo) field.current?.focus();
  }, [editing, replyTo]);
  useLayoutEffect(() => {
    const box = field.current;
    if (!box) return;
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, 200)}px`;
    if (!editing) keepDraft(draftKey(session.user, conversation.id), text);
  }, [text, voice]);

  const takesFiles = options().media !== undefined && !editing;
  const attach = (/** @type {File[]} */ files) => {
    if (!files.length) return;
    const all = { files, conversation, caption: text, replyTo: replyTo?.seq, sent: () => (setText(""), done(), sent()) };
    show("attach", all);
  };
  /** @type {{ current: any }} */
  const dropped = useRef(undefined);
  dropped.current = takesFiles ? attach : undefined;
  useEffect(() => {
    const area = form.current.closest(".chat");
    const over = (/** @type {DragEvent} */ event) => {
      if (dropped.current && event.dataTransfer?.types.includes("Files")) area.dataset.drop = t("drop_here");
    };
    const end = (/** @type {DragEvent} */ event) => {
      if (event.type === "drop" || !area.contains(event.relatedTarget)) delete area.dataset.drop;
      if (event.type === "drop") dropped.current?.([...(event.dataTransfer?.files ?? [])]);
    };
    area.addEventListener("dragover", over);
    area.addEventListener("dragleave", end);
    area.addEventListener("drop", end);
    return () => {
      area.removeEventListener("dragover", over);
      area.removeEventListener("dragleave", end);
      area.removeEventListener("drop", end);
    };
  }, []);
  const onPaste = (/** @type {any} */ event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!takesFiles || !files.length) return;
    event.preventDefault();
    attach(files);
  };
  /** Let the user choose files; a phone offers its own camera with `capture`. @param {string} accept @param {boolean} [capture] */
  const choose = (accept, capture = false) => {
    input.current.accept = accept;
    if (capture) input.current.setAttribute("capture", "environment");
    else input.current.removeAttribute("capture");
    input.current.click();
  };
  const camera = () => {
    if (matchMedia("(pointer: coarse)").matches) choose("image/*", true);
    else show("camera", { taken: (/** @type {File} */ file) => attach([file]) });
  };
  const speak = async () => {
    const [{ Recorder }, { sendFiles }] = await late(() => Promise.all([import("./voice.js"), import("./uploads.js")]));
    setPicker(undefined);
    setVoice({ Recorder, sendFiles });
  };
  const sendVoice = (/** @type {any} */ recorded) => {
    voice.sendFiles(session, conversation.id, [recorded], "", replyTo?.seq);
    leave();
    sent();
  };

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
  const draft = () => sessionStorage.getItem(draftKey(session.user, conversation.id)) ?? ""; // it was begun before the edit
  const leave = () => {
    if (editing) setText(draft());
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
    setText(was ? draft() : "");
    setPicker(undefined);
    typedAt.current = -Infinity;
    done();
    if (!was) sent();
    field.current?.focus();
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
    const { Emoji } = await late(() => import("./emoji.js"));
    return setPicker(() => Emoji);
  };

  const quiet = () => {
    setVoice(undefined);
    setTimeout(() => field.current?.focus()); // it is there again then
  };
  const jobs = session.uploads.filter((job) => job.conversation === conversation.id);
  return html`<form class="composer" ref=${form} onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), send())}>
    ${jobs.length > 0 && html`<ul class="uploads" aria-label=${t("uploads")}>${jobs.map((job, i) => html`<${Upload} key=${i} job=${job} />`)}</ul>`}
    ${Picker && html`<div class="picker-place"><${Picker} choose=${insert} close=${() => (setPicker(undefined), field.current.focus())} /></div>`}
    ${proposed.length > 0 &&
    html`<ul class="proposed" id="proposed" role="listbox" aria-label=${t("mention")}>
      ${proposed.map((user, i) => html`<li key=${user} id=${`proposed-${i}`} role="option" aria-selected=${i === chosen ? "true" : "false"} onPointerDown=${(/** @type {Event} */ event) => (event.preventDefault(), mention(user))}>@${user}</li>`)}
    </ul>`}
    ${(replyTo || (editing && !voice)) &&
    html`<div class="context"><${Icon} name=${editing ? "edit" : "reply"} /><${Quote} message=${editing ?? replyTo} /><${IconButton} icon="close" label=${t("cancel")} onClick=${leave} /></div>`}
    ${voice ? html`<${voice.Recorder} send=${sendVoice} close=${quiet} say=${say} />` : html`<div class="composer-line">
      ${takesFiles && html`<${Menu} label=${t("attach")} icon="clip" items=${() => [
        { label: t("attach_picture"), icon: "picture", act: () => choose("image/*,video/*") },
        { label: t("attach_file"), icon: "file", act: () => choose("") },
        { label: t("take_picture"), icon: "camera", act: camera },
      ]} /><input ref=${input} class="unseen" type="file" multiple tabindex="-1" aria-hidden="true" onChange=${(/** @type {any} */ event) => (attach([...event.target.files]), (event.target.value = ""))} />`}
      <${IconButton} icon="smile" label=${t("emoji")} onClick=${() => void pick().catch(() => say(t("not_loaded")))} aria-expanded=${Picker ? "true" : "false"} />
      <textarea ref=${field} rows="1" dir="auto" maxlength=${LONGEST} value=${text} placeholder=${t("write_message")} aria-label=${t("write_message")} onInput=${onInput} onKeyDown=${onKeyDown} onPaste=${onPaste} aria-autocomplete=${group ? "list" : undefined} aria-controls=${proposed.length ? "proposed" : undefined} aria-activedescendant=${proposed.length ? `proposed-${chosen}` : undefined}></textarea>
      ${takesFiles && !text.trim()
        ? html`<button key="speak" type="button" class="send speak" aria-label=${t("record")} title=${t("record")} onClick=${() => void speak().catch(() => say(t("not_loaded")))}><${Icon} name="mic" /></button>`
        : html`<button key="send" type="submit" class="send" disabled=${!text.trim()} aria-label=${editing ? t("save") : t("send")} title=${editing ? t("save") : t("send")}><${Icon} name=${editing ? "check" : "send"} /></button>`}
    </div>`}
  </form>`;
}

/** A message whose files are on their way. @param {{ job: import("./uploads.js").Job }} props */
export function Upload({ job }) {
  const name = job.items.length === 1 ? job.items[0]?.name || t(`kind_${job.kind}`) : t("files", { count: job.items.length });
  const percent = job.size ? Math.floor((job.done / job.size) * 100) : 0;
  return html`<li class=${job.why ? "upload wrong" : "upload"}>
    <${Icon} name=${job.why ? "warn" : job.kind === "image" ? "picture" : job.kind === "voice" ? "mic" : "file"} />
    <span><b dir="auto">${name}</b>${job.why ? html`<small role="alert">${job.why}</small>` : html`<progress max="100" value=${percent} aria-label=${t("uploading", { name })}></progress><small>${percent} % · ${sizeOf(job.size)}</small>`}</span>
    ${job.why && html`<${IconButton} icon="send" label=${t("retry")} onClick=${() => void job.run()} />`}
    <${IconButton} icon="close" label=${job.why ? t("discard") : t("cancel_upload", { name })} onClick=${() => job.end()} />
  </li>`;
}
