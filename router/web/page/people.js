/** Dialogs about people: contacts and requests, and one person. */

import { lastSeen } from "./format.js";
import { forgetProfile, Face, nameOf, profileOf } from "./profiles.js";
import { direct, open } from "./names.js";
import { t } from "./strings.js";
import { Dialog, html, Icon, IconButton, Menu, useEffect, useState, whyOf } from "./ui.js";

const NAME = /^[A-Za-z0-9._-]{1,64}$/;
const LONGEST = 200; // characters of a request

/** @typedef {{ session: import("./session.js").Session, show: any, say: (text: string) => void, close: () => void, argument: any }} Props */
/** @typedef {{ state: "contact" | "incoming" | "outgoing", message?: string | null, at: number, until?: number | null }} Contact */

/** @type {Record<string, (props: any) => any>} */
export const DIALOGS = { contacts: Contacts, person: Person };

/** Do something with a person; a refusal is said. @param {Promise<unknown>} work @param {(text: string) => void} say */
async function tried(work, say) {
  try {
    await work;
    return true;
  } catch (error) {
    say(t("refused", { why: whyOf(error) }));
    return false;
  }
}

/** All contacts, and the requests of both sides. @param {Props} props */
function Contacts({ session, show, say, close }) {
  const { people } = session.client;
  const [name, setName] = useState("");
  const [message, setMessage] = useState("");
  const [busy, setBusy] = useState("");
  const [failed, setFailed] = useState(session.contacts === undefined);
  useEffect(() => {
    session.loadContacts().then(() => setFailed(false), () => setFailed(true));
  }, []);
  const all = /** @type {[string, Contact][]} */ (Object.entries(session.contacts ?? {}).sort(([a], [b]) => nameOf(a).localeCompare(nameOf(b))));
  const of = (/** @type {string} */ state) => all.filter(([, contact]) => contact.state === state);
  useEffect(() => session.watch(all.map(([user]) => user).slice(0, 200)), [all.length]);
  const user = name.trim().replace(/^@/, "");
  const act = async (/** @type {string} */ who, /** @type {() => Promise<unknown>} */ work, /** @type {string} */ done) => {
    setBusy(who);
    const went = await tried(work(), say);
    if (went) {
      await session.loadContacts().catch(() => undefined); // it comes with the connection
      if (done) say(done);
    }
    setBusy("");
    return went;
  };
  const ask = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!NAME.test(user) || user === session.user) return;
    const went = await act(user, () => people.request(user, message.trim() || undefined), t("request_sent", { user }));
    if (!went) return;
    setName((now) => (now === name ? "" : now)); // unless the next one is already typed
    setMessage((now) => (now === message ? "" : now));
  };
  const write = (/** @type {string} */ who) => (close(), open(direct(session.user, who)));
  const row = (/** @type {string} */ who, /** @type {any} */ under, /** @type {any} */ acts) => html`<li key=${who} aria-busy=${busy === who ? "true" : "false"}>
    <button type="button" class="row-button" onClick=${() => show("person", { user: who })}><${Face} user=${who} size="small" online=${session.presence.get(who)?.online === true} /><span><b dir="auto">${nameOf(who)}</b><small dir="auto">${under}</small></span></button>${acts}
  </li>`;
  const [incoming, outgoing, contacts] = [of("incoming"), of("outgoing"), of("contact")];
  return html`<${Dialog} title=${t("contacts")} close=${close}>
    <form class="inline stacked" onSubmit=${(/** @type {Event} */ event) => void ask(event)}>
      <label for="contact">${t("add_contact")}</label>
      <span><input id="contact" autocapitalize="none" spellcheck=${false} autocomplete="off" maxlength="65" placeholder=${t("their_name")} value=${name} onInput=${(/** @type {any} */ event) => setName(event.target.value)} /><button type="submit" disabled=${!NAME.test(user) || user === session.user || busy !== ""}>${t("ask")}</button></span>
      ${name && html`<label for="request">${t("request_message")}</label><input id="request" dir="auto" maxlength=${LONGEST} value=${message} onInput=${(/** @type {any} */ event) => setMessage(event.target.value)} />`}
      ${user !== "" && !NAME.test(user) && html`<p class="rule wrong">${t("no_name", { name: user })}</p>`}
    </form>
    ${session.contacts === undefined && html`<p class="hint" role=${failed ? "alert" : undefined}>${failed ? t("not_loaded") : t("loading")}</p>`}
    ${incoming.length > 0 && html`<h3>${t("requests_to_you")} <span class="count">${incoming.length}</span></h3>
    <ul class="members">${incoming.map(([who, { message: words }]) => row(who, words || `@${who}`, html`<button type="button" class="small-button primary" disabled=${busy === who} onClick=${() => void act(who, () => people.accept(who), t("now_contact", { user: nameOf(who) }))}>${t("accept")}</button><${IconButton} icon="close" label=${t("decline_request", { user: who })} disabled=${busy === who} onClick=${() => void act(who, () => people.remove(who), "")} />`))}</ul>`}
    ${outgoing.length > 0 && html`<h3>${t("your_requests")}</h3>
    <ul class="members">${outgoing.map(([who]) => row(who, t("waits_for_answer"), html`<button type="button" class="small-button" disabled=${busy === who} aria-label=${t("cancel_request", { user: who })} onClick=${() => void act(who, () => people.remove(who), "")}>${t("cancel")}</button>`))}</ul>`}
    ${session.contacts !== undefined && html`<h3>${t("contacts")} <span class="muted">${contacts.length}</span></h3>`}
    ${session.contacts !== undefined && !contacts.length && html`<p class="hint">${t("no_contacts")}</p>`}
    <ul class="members">${contacts.map(([who]) => row(who, lastSeen(session.presence.get(who)) || `@${who}`, html`<${Menu} label=${t("act_on_person", { user: who })} items=${() => [
      { label: t("write_to_name", { name: nameOf(who) }), icon: "person", act: () => write(who) },
      { label: t("remove_contact"), icon: "trash", danger: true, act: () => void act(who, () => people.remove(who), "") },
    ]} />`))}</ul>
  </${Dialog}>`;
}

/** A person: profile, contact, block. `argument`: { user } @param {Props} props */
function Person({ session, close, say, show, argument }) {
  const { user } = argument;
  const { people } = session.client;
  const [blocked, setBlocked] = useState(/** @type {boolean | undefined} */ (undefined));
  const [busy, setBusy] = useState(false);
  const load = () => Promise.all([people.blocked().then((users) => setBlocked(users.includes(user))), session.loadContacts()]);
  useEffect(() => {
    forgetProfile(user);
    session.watch([user]);
    load().catch(() => undefined); // what is not known has no button
  }, []);
  const profile = profileOf(user);
  const presence = session.presence.get(user);
  const mine = user === session.user;
  const contact = session.contacts?.[user];
  const act = async (/** @type {() => Promise<unknown>} */ work) => {
    setBusy(true);
    if (await tried(work(), say)) await load().catch(() => undefined);
    setBusy(false);
  };
  const button = (/** @type {string} */ text, /** @type {string} */ icon, /** @type {() => Promise<unknown>} */ work, style = "") => html`<button type="button" class=${style} disabled=${busy} onClick=${() => void act(work)}><${Icon} name=${icon} size=${18} />${text}</button>`;
  return html`<${Dialog} title=${t("about_person")} close=${close}>
    <div class="person"><${Face} user=${user} size="large" online=${presence?.online === true} />
      <b dir="auto">${nameOf(user)}</b>${nameOf(user) !== user && html`<code>@${user}</code>`}<span>${blocked ? t("blocked") : lastSeen(presence)}</span>
      ${profile?.about && html`<p class="about" dir="auto">${profile.about}</p>`}
    </div>
    ${contact?.state === "incoming" && html`<p class="ask"><b>${t("wants_contact", { user: nameOf(user) })}</b>${contact.message && html`<span dir="auto">${contact.message}</span>`}</p>`}
    ${contact?.state === "outgoing" && html`<p class="hint">${t("waits_for_answer")}</p>`}
    <div class="buttons around">
      ${mine && html`<button type="button" onClick=${() => show("profile")}><${Icon} name="edit" size=${18} />${t("edit_profile")}</button>`}
      ${!mine && html`<button type="button" onClick=${() => (close(), open(direct(session.user, user)))}><${Icon} name="chat" size=${18} />${t("write")}</button>`}
      ${!mine && session.contacts !== undefined && !blocked && (
        contact === undefined ? button(t("ask_contact"), "plus", () => people.request(user))
        : contact.state === "incoming" ? html`${button(t("accept"), "check", () => people.accept(user), "primary")}${button(t("decline"), "close", () => people.remove(user))}`
        : contact.state === "outgoing" ? button(t("cancel_asking"), "close", () => people.remove(user))
        : button(t("remove_contact"), "trash", () => people.remove(user)))}
      ${!mine && blocked !== undefined && button(blocked ? t("unblock") : t("block"), "block", () => (blocked ? people.unblock(user) : people.block(user)), blocked ? "" : "danger")}
      ${!mine && html`<button type="button" onClick=${() => show("report", { user })}><${Icon} name="flag" size=${18} />${t("report")}</button>`}
    </div>
  </${Dialog}>`;
}
