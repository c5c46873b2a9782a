/** Dialogs, loaded when the first of them is opened. */

import { Emoji } from "./emoji.js";
import { exact, forwardedOf, summaryOf, textOf, whyClosed } from "./format.js";
import { addressOf, direct, open, otherOf, targetOf, titleOf } from "./names.js";
import { t } from "./strings.js";
import { Upload } from "./composer.js";
import { Face, nameOf } from "./profiles.js";
import { Avatar, Dialog, html, Icon, IconButton, Menu, useEffect, useMemo, useState, whyOf } from "./ui.js";
import qrcode from "./vendor/qrcode.js";

const NAME = /^[A-Za-z0-9._-]{1,64}$/;

/** @typedef {{ session: import("./session.js").Session, show: any, say: (text: string) => void, close: () => void, argument: any }} Props */

/** @type {Record<string, (props: any) => any>} */
export const DIALOGS = { about: About, delete: Delete, emoji: Pick, forward: Forward, group: Group, invite: Invite, join: Join, logout: LogOut, outbox: Outbox, write: Write };

/** @param {Props} props */
function Write({ close }) {
  const [name, setName] = useState("");
  const user = name.trim().replace(/^@/, "");
  const go = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!NAME.test(user)) return;
    close();
    location.hash = `#/@${user}`;
  };
  return html`<${Dialog} title=${t("write_to")} close=${close}><form onSubmit=${go}>
    <label for="to">${t("their_name")}</label>
    <input id="to" autocapitalize="none" spellcheck=${false} autocomplete="off" maxlength="65" value=${name} onInput=${(/** @type {any} */ event) => setName(event.target.value)} />
    <p class="rule">${t("write_rule")}</p>
    <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button><button type="submit" class="primary" disabled=${!NAME.test(user)}>${t("open_chat")}</button></div>
  </form></${Dialog}>`;
}

/** @param {Props} props */
function Group({ session, close, argument = {} }) {
  const channel = argument.kind === "channel";
  const [title, setTitle] = useState("");
  const [names, setNames] = useState("");
  const [error, setError] = useState("");
  const people = [...new Set(names.split(/[\s,]+/).map((name) => name.replace(/^@/, "")).filter(Boolean))];
  const wrong = people.filter((name) => !NAME.test(name));
  const known = session.list().flatMap(({ view }) => (view.with && view.with !== session.user && !people.includes(view.with) ? [view.with] : []));
  const make = async (/** @type {Event} */ event) => {
    event.preventDefault();
    try {
      const conversation = await session.client.createConversation(title.trim(), people, channel ? "channel" : "group");
      close();
      open(conversation.id);
    } catch (reason) {
      setError(t("refused", { why: whyOf(reason) }));
    }
  };
  return html`<${Dialog} title=${channel ? t("make_channel") : t("make_group")} close=${close}><form onSubmit=${(/** @type {Event} */ event) => void make(event)}>
    <label for="title">${t("title")}</label>
    <input id="title" maxlength="200" dir="auto" value=${title} onInput=${(/** @type {any} */ event) => setTitle(event.target.value)} />
    <label for="people">${t("people")}</label>
    <input id="people" autocapitalize="none" spellcheck=${false} value=${names} onInput=${(/** @type {any} */ event) => setNames(event.target.value)} aria-describedby="people-rule" />
    <p id="people-rule" class=${wrong.length ? "rule wrong" : "rule"}>${wrong.length ? t("no_name", { name: wrong[0] ?? "" }) : t(channel ? "channel_rule" : "people_rule")}</p>
    ${known.length > 0 && html`<div class="chips">${known.slice(0, 12).map((name) => html`<button type="button" key=${name} onClick=${() => setNames(`${[...people, name].join(", ")}`)}><${Icon} name="plus" size=${14} />${name}</button>`)}</div>`}
    ${error && html`<p class="notice" role="alert">${error}</p>`}
    <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button><button type="submit" class="primary" disabled=${!title.trim() || wrong.length > 0}>${t("make")}</button></div>
  </form></${Dialog}>`;
}

/** A link to the user, or to a channel, as text and as a QR code. @param {Props} props */
function Invite({ session, close, say, argument }) {
  const link = argument?.id ? `${location.origin}/#/join/${encodeURIComponent(argument.id)}` : `${location.origin}/#/@${session.user}`;
  const { path, size } = useMemo(() => squares(link), [link]);
  const copy = () => navigator.clipboard.writeText(link).then(() => say(t("copied")), () => say(t("not_copied")));
  return html`<${Dialog} title=${argument?.id ? t("invite_to", { title: argument.title }) : t("invite")} close=${close}>
    <p>${argument?.id ? t("invite_channel_text") : t("invite_text")}</p>
    <svg class="qr" viewBox=${`0 0 ${size} ${size}`} role="img" aria-label=${t("qr")}><rect width=${size} height=${size} fill="#fff" /><path d=${path} fill="#17120f" /></svg>
    <p class="link-line"><code>${link}</code></p>
    <div class="buttons"><button type="button" class="primary" onClick=${() => void copy()}><${Icon} name="copy" />${t("copy_link")}</button></div>
  </${Dialog}>`;
}

/** @param {string} text */
function squares(text) {
  const code = qrcode(0, "M");
  code.addData(text);
  code.make();
  const count = code.getModuleCount();
  let path = "";
  for (let y = 0; y < count; y++) for (let x = 0; x < count; x++) if (code.isDark(y, x)) path += `M${x + 3} ${y + 3}h1v1h-1z`;
  return { path, size: count + 6 };
}

/** A group or channel with its members. @param {Props} props */
function About({ session, close, say, show, argument }) {
  const { id } = argument;
  const view = session.entry(id)?.view ?? argument.view;
  const title = titleOf(session.user, view);
  return html`<${Members} id=${id} view=${view} title=${title} session=${session} close=${close} say=${say} show=${show} />`;
}

/** @param {{ id: string, view: import("./session.js").View, title: string, session: import("./session.js").Session, close: () => void, say: any, show: any }} props */
function Members({ id, view, title, session, close, say, show }) {
  const [members, setMembers] = useState(/** @type {[string, string][] | undefined} */ (undefined));
  const [name, setName] = useState(view.title);
  const [added, setAdded] = useState("");
  const [leaving, setLeaving] = useState(false);
  const [allAdd, setAllAdd] = useState(false);
  const path = `/v1/conversations/${encodeURIComponent(id)}`;
  const load = () => session.client.call("GET", path).then((found) => {
    const rank = ["owner", "admin", "member", "reader"];
    const sorted = /** @type {[string, string][]} */ (Object.entries(found.members)).sort((a, b) => rank.indexOf(a[1]) - rank.indexOf(b[1]) || a[0].localeCompare(b[0]));
    setMembers(sorted);
    setAllAdd(found.adding === "all");
    session.watch(sorted.slice(0, 200).map(([user]) => user));
  }, (error) => say(t("refused", { why: whyOf(error) })));
  useEffect(() => void load(), []);
  const act = async (/** @type {string} */ method, /** @type {string} */ where, /** @type {any} */ body) => {
    try {
      await session.client.call(method, path + where, body);
      await load();
      return true;
    } catch (error) {
      say(t("refused", { why: whyOf(error) }));
      return false;
    }
  };
  const mine = view.role ?? "reader";
  const leads = mine === "owner" || mine === "admin";
  const rename = (/** @type {Event} */ event) => {
    event.preventDefault();
    void act("PATCH", "", { title: name.trim() });
  };
  const add = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const user = added.trim().replace(/^@/, "");
    if (NAME.test(user) && (await act("PUT", `/members/${user}`, {}))) setAdded((now) => (now === added ? "" : now));
  };
  const leave = async () => {
    if (!leaving) return setLeaving(true);
    if (await session.client.call("DELETE", `${path}/members/${session.user}`).then(() => true, (error) => (say(t("refused", { why: whyOf(error) })), false))) return close();
    return setLeaving(false);
  };
  const restrains = (/** @type {string} */ role) => mine === "owner" || (mine === "admin" && (role === "member" || role === "reader"));
  const roles = mine === "owner" ? ["owner", "admin", "member", "reader"] : ["member", "reader"];
  const others = (/** @type {string} */ user, /** @type {string} */ role) => [
    { label: t("about_person"), icon: "person", act: () => show("person", { user }) },
    { label: t("write_to_name", { name: nameOf(user) }), icon: "chat", act: () => (close(), open(direct(session.user, user))) },
    ...(leads && (mine === "owner" || role !== "owner") ? roles.filter((one) => one !== role).map((one) => ({ label: t(`make_${one}`), act: () => void act("PUT", `/members/${user}`, { role: one }) })) : []),
    ...(restrains(role) ? [
      { label: t("mute_for"), icon: "bell", act: () => show("restrain", { id, user, what: "mute" }) },
      { label: t("unmute"), act: () => void act("DELETE", `/members/${user}/mute`, undefined).then((went) => went && say(t("saved"))) },
      { label: t("ban_for"), icon: "block", danger: true, act: () => show("restrain", { id, user, what: "ban" }) },
    ] : []),
    leads && (mine === "owner" || role !== "owner") && { label: t("remove"), icon: "trash", danger: true, act: () => void act("DELETE", `/members/${user}`, undefined) },
  ];
  return html`<${Dialog} title=${title} close=${close}>
    ${leads && html`<form class="inline" onSubmit=${rename}><label for="rename">${t("title")}</label><span><input id="rename" maxlength="200" dir="auto" value=${name} onInput=${(/** @type {any} */ event) => setName(event.target.value)} /><button type="submit" disabled=${!name.trim() || name.trim() === view.title}>${t("save")}</button></span></form>`}
    ${(leads || (allAdd && mine === "member")) && html`<form class="inline" onSubmit=${(/** @type {Event} */ event) => void add(event)}><label for="added">${t("add_person")}</label><span><input id="added" autocapitalize="none" spellcheck=${false} maxlength="65" value=${added} onInput=${(/** @type {any} */ event) => setAdded(event.target.value)} /><button type="submit" disabled=${!NAME.test(added.trim().replace(/^@/, ""))}>${t("add")}</button></span></form>`}
    <h3>${t("members")}${members && html` <span class="muted">${members.length}</span>`}</h3>
    ${!members && html`<p class="hint">${t("loading")}</p>`}
    <ul class="members">${members?.map(([user, role]) => html`<li key=${user}><${Face} user=${user} size="small" online=${session.presence.get(user)?.online === true} /><span><b dir="auto">${user === session.user ? t("yourself") : nameOf(user)}</b><small>${t(`role_${role}`)}</small></span>${user !== session.user && html`<${Menu} label=${t("act_on_person", { user })} items=${() => others(user, role)} />`}</li>`)}</ul>
    <div class="buttons">
      ${leads && html`<button type="button" onClick=${() => show("rules", { id })}><${Icon} name="settings" />${t("rules")}</button><button type="button" onClick=${() => show("bans", { id })}><${Icon} name="block" />${t("bans")}</button>`}
      ${view.kind === "channel" && html`<button type="button" onClick=${() => show("invite", { id, title })}><${Icon} name="link" />${t("invite")}</button>`}
      <button type="button" class="danger" onClick=${() => void leave()}>${t(leaving ? "leave_really" : "leave")}</button>
    </div>
  </${Dialog}>`;
}

/** @param {Props} props */
function Forward({ session, close, say, argument }) {
  const { message } = argument;
  const [query, setQuery] = useState("");
  const found = session.list().filter(({ view }) => !view.gone && !whyClosed(view) && titleOf(session.user, view).toLowerCase().includes(query.toLowerCase()));
  const to = (/** @type {import("./session.js").View} */ view) => {
    const body = { text: textOf(message.body), forwarded: forwardedOf(message.body) || message.from };
    const files = message.files.map((/** @type {{ sha256: string }} */ { sha256 }) => ({ sha256, in: argument.id }));
    session.client.conversation(targetOf(session.user, view.id)).send(body, { media: files.length ? message.media : "text", files }).acked.catch(() => undefined); // the message itself shows it
    close();
    say(t("forwarded_to", { title: titleOf(session.user, view) }));
  };
  return html`<${Dialog} title=${t("forward_to")} close=${close}>
    <blockquote class="forward-text" dir="auto">${summaryOf(message).slice(0, 200)}</blockquote>
    <input type="search" aria-label=${t("search")} placeholder=${t("search")} value=${query} onInput=${(/** @type {any} */ event) => setQuery(event.target.value)} />
    <ul class="members">${found.map(({ view }) => html`<li key=${view.id}><button type="button" class="row-button" onClick=${() => to(view)}><${Avatar} name=${titleOf(session.user, view)} kind=${view.kind} size="small" /><b dir="auto">${titleOf(session.user, view)}</b></button></li>`)}</ul>
  </${Dialog}>`;
}

/** Whether to join a channel that a link leads to. `argument`: { id } @param {Props} props */
function Join({ session, close, say, argument }) {
  const { id } = argument;
  const [busy, setBusy] = useState(false);
  const not = () => (open(""), close());
  const join = async () => {
    setBusy(true);
    try {
      await session.client.call("POST", `/v1/conversations/${encodeURIComponent(id)}/join`, {});
      open(id);
    } catch (/** @type {any} */ error) {
      if (error.code !== "conflict") say(t("cannot_join", { why: whyOf(error) }));
      open(error.code === "conflict" ? id : ""); // the user is there already
    }
    close();
  };
  return html`<${Dialog} title=${t("join_question")} close=${not}>
    <p>${t("join_text")}</p>
    <p class="link-line"><code>${id}</code></p>
    <div class="buttons"><button type="button" onClick=${not}>${t("cancel")}</button><button type="button" class="primary" disabled=${busy} onClick=${() => void join()}>${busy ? t("one_moment") : t("join")}</button></div>
  </${Dialog}>`;
}

/** @param {Props} props */
function Delete({ close, argument }) {
  const { message, conversation } = argument;
  const go = () => {
    conversation.delete(message.seq).acked.catch(() => undefined); // it stays in the outbox, which shows it
    close();
  };
  return html`<${Dialog} title=${t("delete_question")} close=${close}>
    <blockquote class="forward-text" dir="auto">${summaryOf(message).slice(0, 200)}</blockquote>
    <p>${t("delete_text")}</p>
    <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button><button type="button" class="primary danger" onClick=${go}>${t("delete")}</button></div>
  </${Dialog}>`;
}

/** @param {Props} props */
function LogOut({ session, close, argument }) {
  return html`<${Dialog} title=${t("log_out")} close=${close}>
    <p>${t("log_out_text", { count: session.unsent + session.failed + session.uploads.length })}</p>
    <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button><button type="button" class="primary danger" onClick=${argument.confirm}>${t("log_out_anyway")}</button></div>
  </${Dialog}>`;
}

/** @param {Props} props */
function Pick({ close, argument }) {
  return html`<${Dialog} title=${t("react")} close=${close}><${Emoji} choose=${(/** @type {string} */ emoji) => (close(), argument.choose(emoji))} close=${close} /></${Dialog}>`;
}

/** What is not sent yet, or was refused. @param {Props} props */
function Outbox({ session, close }) {
  const [open, setOpen] = useState(/** @type {import("./sdk/index.js").MessageHandle[]} */ ([]));
  const load = () => void session.client.outbox().then(setOpen, () => undefined);
  useEffect(() => {
    load();
    return session.onChange(load);
  }, []);
  const name = (/** @type {string} */ id) => {
    const entry = session.entry(id);
    return entry ? titleOf(session.user, entry.view) : id.startsWith("d:") ? otherOf(session.user, id) : id;
  };
  return html`<${Dialog} title=${t("outbox")} close=${close}>
    ${open.length + session.uploads.length === 0 && html`<p>${t("outbox_empty")}</p>`}
    <ul class="uploads">${session.uploads.map((job, i) => html`<${Upload} key=${i} job=${job} />`)}</ul>
    <ul class="members">${open.map((handle) => html`<li key=${handle.id}>
      <${Icon} name=${handle.state === "failed" ? "warn" : "clock"} />
      <span><a href=${addressOf(handle.conversation ?? "")} onClick=${close} dir="auto">${name(handle.conversation ?? "")}</a><small>${handle.state === "failed" ? t("refused", { why: whyOf(handle.error) }) : t("state_queued")}${handle.error?.retryAt ? ` · ${exact(handle.error.retryAt)}` : ""}</small></span>
      ${handle.state === "failed" && html`<${IconButton} icon="send" label=${t("retry")} onClick=${() => void handle.retry()} />`}
      ${handle.state !== "sent" && html`<${IconButton} icon="trash" label=${t("discard")} onClick=${() => void handle.cancel()} />`}
    </li>`)}</ul>
  </${Dialog}>`;
}
