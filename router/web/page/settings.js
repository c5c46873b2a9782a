/** Dialogs about the user's own account: profile, privacy, blocks, password, devices. Each asks the API when it is opened. */

import { day, clock, lastSeen } from "./format.js";
import { Face, nameOf, takeProfile } from "./profiles.js";
import { options } from "./options.js";
import { LANGUAGES, languageNow, loadLanguage, t } from "./strings.js";
import { Dialog, html, Icon, IconButton, useEffect, useRef, useState, whyOf } from "./ui.js";

/** @typedef {{ session: import("./session.js").Session, show: any, say: (text: string) => void, close: () => void, argument: any }} Props */

/** @type {Record<string, (props: any) => any>} */
export const DIALOGS = { settings: Settings, profile: Profile, privacy: Privacy, blocks: Blocks, password: Password, devices: Devices };

const AVATAR_EDGE = 640;

/** @param {Props} props */
function Settings({ session, show, say, close }) {
  const speak = (/** @type {string} */ code) => loadLanguage(code).then(() => location.reload(), () => say(t("not_loaded")));
  const item = (/** @type {string} */ name, /** @type {string} */ icon, /** @type {string} */ text) => html`<li><button type="button" class="row-button" onClick=${() => show(name)}><span class="file-icon"><${Icon} name=${icon} /></span><span><b>${t(`settings_${name}`)}</b><small>${text}</small></span><${Icon} name="next" size=${16} /></button></li>`;
  return html`<${Dialog} title=${t("settings")} close=${close}>
    <button type="button" class="row-button person-row" onClick=${() => show("profile")}><${Face} user=${session.user} /><span><b dir="auto">${nameOf(session.user)}</b><small>@${session.user}</small></span><${Icon} name="edit" /></button>
    <ul class="members">
      ${item("privacy", "lock", t("settings_privacy_text"))}
      ${item("blocks", "block", t("settings_blocks_text"))}
      ${options().accounts && item("password", "key", t("settings_password_text"))}
      ${item("devices", "device", t("settings_devices_text"))}
    </ul>
    <label for="language">${t("language")}</label>
    <select id="language" value=${languageNow()} onChange=${(/** @type {any} */ event) => void speak(event.target.value)}>${Object.entries(LANGUAGES).map(([code, name]) => html`<option key=${code} value=${code} lang=${code} selected=${code === languageNow()}>${name}</option>`)}</select>
  </${Dialog}>`;
}

/**
 * What the API says, read when a dialog is opened: undefined while it is read, and why if it cannot be.
 *
 * @param {import("./session.js").Session} session @param {string} path @returns {[any, (value: any) => void, string, () => void]}
 */
function useAnswer(session, path) {
  const [value, setValue] = useState(/** @type {any} */ (undefined));
  const [why, setWhy] = useState("");
  const load = () => {
    setWhy("");
    session.client.call("GET", path).then(setValue, (error) => setWhy(whyOf(error)));
  };
  useEffect(load, []);
  return [value, setValue, why, load];
}

/** What stands for an answer that is not there. @param {{ why: string, again: () => void }} props */
function Waiting({ why, again }) {
  if (!why) return html`<p class="hint">${t("loading")}</p>`;
  return html`<p class="notice" role="alert">${t("refused", { why })}</p><div class="buttons"><button type="button" onClick=${again}>${t("again")}</button></div>`;
}

/** @param {Props} props */
function Profile({ session, say, close }) {
  const [me, setMe, why, load] = useAnswer(session, "/v1/me");
  const [name, setName] = useState(/** @type {string | undefined} */ (undefined));
  const [about, setAbout] = useState(/** @type {string | undefined} */ (undefined));
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  /** @type {{ current: any }} */
  const input = useRef(null);
  const change = async (/** @type {Record<string, unknown>} */ fields) => {
    setBusy(true);
    setError("");
    try {
      const changed = await session.client.call("PATCH", "/v1/me", fields);
      setMe(changed);
      takeProfile(changed);
      return true;
    } catch (reason) {
      setError(t("refused", { why: whyOf(reason) }));
      return false;
    } finally {
      setBusy(false);
    }
  };
  const save = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (await change({ name: (name ?? me.name).trim(), about: (about ?? me.about ?? "").trim() || null })) {
      say(t("saved"));
      close();
    }
  };
  const picture = async (/** @type {any} */ event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    setBusy(true);
    setError("");
    try {
      const { sha256 } = await session.client.media.upload(await square(file), { name: "avatar.jpg", kind: "image" });
      await change({ avatar: sha256 });
    } catch (reason) {
      setError(reason instanceof DOMException ? t("upload_unreadable") : t("refused", { why: whyOf(reason) }));
    }
    setBusy(false);
  };
  return html`<${Dialog} title=${t("settings_profile")} close=${close}>
    ${me === undefined ? html`<${Waiting} why=${why} again=${load} />` : html`<form onSubmit=${(/** @type {Event} */ event) => void save(event)}>
      <div class="person"><${Face} user=${session.user} size="large" /><code>@${session.user}</code>
        ${options().media && html`<span class="buttons around"><button type="button" disabled=${busy} onClick=${() => input.current.click()}><${Icon} name="camera" size=${18} />${t("choose_picture")}</button>${me.avatar && html`<button type="button" disabled=${busy} onClick=${() => void change({ avatar: null })}>${t("remove_picture")}</button>`}</span><input ref=${input} class="unseen" type="file" accept="image/*" tabindex="-1" aria-hidden="true" onChange=${(/** @type {any} */ event) => void picture(event)} />`}
      </div>
      <label for="display">${t("display_name")}</label>
      <input id="display" dir="auto" maxlength="128" autocomplete="name" value=${name ?? me.name} placeholder=${session.user} aria-describedby="display-rule" onInput=${(/** @type {any} */ event) => setName(event.target.value)} />
      <p id="display-rule" class="rule">${t("display_rule")}</p>
      <label for="about">${t("about_you")}</label>
      <textarea id="about" class="field" rows="3" dir="auto" maxlength="512" value=${about ?? me.about ?? ""} onInput=${(/** @type {any} */ event) => setAbout(event.target.value)}></textarea>
      ${error && html`<p class="notice" role="alert">${error}</p>`}
      <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button><button type="submit" class="primary" disabled=${busy}>${busy ? t("one_moment") : t("save")}</button></div>
    </form>`}
  </${Dialog}>`;
}

/** The middle of a picture, as a square of at most 640 pixels. @param {Blob} file @returns {Promise<Blob>} */
async function square(file) {
  const picture = await createImageBitmap(file);
  const edge = Math.min(picture.width, picture.height);
  const size = Math.min(edge, AVATAR_EDGE);
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  canvas.getContext("2d")?.drawImage(picture, (picture.width - edge) / 2, (picture.height - edge) / 2, edge, edge, 0, 0, size, size);
  picture.close();
  return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new DOMException("no picture"))), "image/jpeg", 0.9));
}

/** Each setting, and what it can be. */
const PRIVACY = /** @type {const} */ ([
  ["messages", ["everyone", "contacts"]],
  ["groups", ["everyone", "contacts"]],
  ["presence", ["everyone", "contacts"]],
  ["requests", ["everyone", "nobody"]],
  ["receipts", ["everyone", "nobody"]],
]);

/** @param {Props} props */
function Privacy({ session, say, close }) {
  const [me, setMe, why, load] = useAnswer(session, "/v1/me");
  const [busy, setBusy] = useState("");
  const change = async (/** @type {string} */ field, /** @type {string} */ value) => {
    const before = me;
    setMe({ ...me, privacy: { ...me.privacy, [field]: value } });
    setBusy(field);
    try {
      setMe(await session.client.call("PATCH", "/v1/me", { privacy: { [field]: value } }));
      say(t("saved"));
    } catch (error) {
      setMe(before);
      say(t("refused", { why: whyOf(error) }));
    }
    setBusy("");
  };
  return html`<${Dialog} title=${t("settings_privacy")} close=${close}>
    ${me === undefined ? html`<${Waiting} why=${why} again=${load} />` : PRIVACY.map(([field, values]) => html`<div key=${field} class="setting">
      <label for=${`privacy-${field}`}>${t(`privacy_${field}`)}</label>
      <select id=${`privacy-${field}`} disabled=${busy === field} aria-describedby=${`privacy-${field}-rule`} value=${me.privacy[field]} onChange=${(/** @type {any} */ event) => void change(field, event.target.value)}>${values.map((value) => html`<option key=${value} value=${value} selected=${me.privacy[field] === value}>${t(`who_${value}`)}</option>`)}</select>
      <p id=${`privacy-${field}-rule`} class="rule">${t(`privacy_${field}_text`)}</p>
    </div>`)}
  </${Dialog}>`;
}

/** @param {Props} props */
function Blocks({ session, say, close, show }) {
  const { people } = session.client;
  const [users, setUsers] = useState(/** @type {string[] | undefined} */ (undefined));
  const [why, setWhy] = useState("");
  const load = () => {
    setWhy("");
    people.blocked().then(setUsers, (error) => setWhy(whyOf(error)));
  };
  useEffect(load, []);
  const unblock = (/** @type {string} */ user) => people.unblock(user).then(load, (error) => say(t("refused", { why: whyOf(error) })));
  return html`<${Dialog} title=${t("settings_blocks")} close=${close}>
    <p>${t("blocks_text")}</p>
    ${users === undefined && html`<${Waiting} why=${why} again=${load} />`}
    ${users?.length === 0 && html`<p class="hint">${t("nobody_blocked")}</p>`}
    <ul class="members">${users?.map((user) => html`<li key=${user}><button type="button" class="row-button" onClick=${() => show("person", { user })}><${Face} user=${user} size="small" /><span><b dir="auto">${nameOf(user)}</b><small>@${user}</small></span></button><button type="button" class="small-button" aria-label=${t("unblock_user", { user })} onClick=${() => void unblock(user)}>${t("unblock")}</button></li>`)}</ul>
  </${Dialog}>`;
}

/** @param {Props} props */
function Password({ session, say, close }) {
  const { passwordMin } = options();
  const [old, setOld] = useState("");
  const [fresh, setFresh] = useState("");
  const [again, setAgain] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const short = [...fresh].length < passwordMin;
  const same = fresh !== "" && fresh.toLowerCase() === session.user.toLowerCase();
  const differs = again !== "" && again !== fresh;
  const ready = old !== "" && !short && !same && again === fresh && !busy;
  const save = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!ready) return;
    setBusy(true);
    setError("");
    try {
      await session.client.call("PUT", "/v1/password", { old, new: fresh });
      say(t("password_changed"));
      close();
    } catch (/** @type {any} */ reason) {
      const seconds = reason?.retryAt ? Math.max(1, Math.ceil((reason.retryAt - Date.now()) / 1000)) : 0;
      setError(reason?.code === "forbidden" ? t("password_wrong") : seconds ? t("too_often", { count: seconds }) : t("refused", { why: whyOf(reason) }));
      setBusy(false);
    }
  };
  const field = (/** @type {string} */ id, /** @type {string} */ label, /** @type {string} */ value, /** @type {(value: string) => void} */ set, /** @type {string} */ kind) => html`<label for=${id}>${label}</label><input id=${id} type="password" autocomplete=${kind} maxlength="256" value=${value} onInput=${(/** @type {any} */ event) => set(event.target.value)} aria-describedby=${`${id}-rule`} />`;
  return html`<${Dialog} title=${t("settings_password")} close=${close}><form onSubmit=${(/** @type {Event} */ event) => void save(event)}>
    <input class="unseen" type="text" autocomplete="username" value=${session.user} tabindex="-1" aria-hidden="true" readonly />
    ${field("old", t("password_old"), old, setOld, "current-password")}
    ${field("fresh", t("password_new"), fresh, setFresh, "new-password")}
    <p id="fresh-rule" class=${`rule ${fresh && !short && !same ? "met" : ""}`}>${!short && !same && html`<${Icon} name="check" size=${14} />`}${same ? t("password_same") : t("password_rule", { count: passwordMin, have: [...fresh].length })}</p>
    ${field("again", t("password_again"), again, setAgain, "new-password")}
    <p id="again-rule" class=${differs ? "rule wrong" : "rule"}>${differs ? t("password_differs") : " "}</p>
    <p class="fine">${t("password_text")}</p>
    ${error && html`<p class="notice" role="alert">${error}</p>`}
    <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button><button type="submit" class="primary" disabled=${!ready}>${busy ? t("one_moment") : t("save")}</button></div>
  </form></${Dialog}>`;
}

/** @typedef {{ device: string, online: boolean, started: number, last_seen: number | null, current: boolean }} Device */

/** @param {Props} props */
function Devices({ session, say, close }) {
  const [answer, , why, load] = useAnswer(session, "/v1/sessions");
  const [sure, setSure] = useState("");
  const [busy, setBusy] = useState(false);
  /** @type {Device[] | undefined} */
  const devices = answer?.sessions.slice().sort((/** @type {Device} */ a, /** @type {Device} */ b) => Number(b.current) - Number(a.current) || b.started - a.started);
  const others = devices?.filter(({ current }) => !current) ?? [];
  const end = async (/** @type {Record<string, unknown>} */ which) => {
    setBusy(true);
    setSure("");
    try {
      await session.client.call("POST", "/v1/logout", which);
      say(t("logged_out_there"));
    } catch (error) {
      say(t("refused", { why: whyOf(error) }));
    }
    load();
    setBusy(false);
  };
  const since = (/** @type {number} */ at) => t("since", { when: `${day(at)}, ${clock(at)}` });
  return html`<${Dialog} title=${t("settings_devices")} close=${close}>
    <p>${t("devices_text")}</p>
    ${devices === undefined && html`<${Waiting} why=${why} again=${load} />`}
    <ul class="members">${devices?.map(({ device, online, started, last_seen: seen, current }) => html`<li key=${device}>
      <span class="file-icon"><${Icon} name="device" /></span>
      <span><b dir="auto">${device}${current && html` <span class="tag">${t("this_device")}</span>`}</b><small>${current || online ? since(started) : lastSeen({ online: false, last_seen: seen ?? started })}${online && !current ? ` · ${t("online")}` : ""}</small></span>
      ${!current && (sure === device ? html`<button type="button" class="small-button danger" disabled=${busy} onClick=${() => void end({ device })}>${t("really")}</button>` : html`<${IconButton} icon="out" label=${t("log_out_device", { device })} disabled=${busy} onClick=${() => setSure(device)} />`)}
    </li>`)}</ul>
    ${others.length > 0 && html`<div class="buttons"><button type="button" class="danger" disabled=${busy} onClick=${() => (sure === "*" ? void end({ others: true }) : setSure("*"))}><${Icon} name="out" size=${18} />${sure === "*" ? t("really_others") : t("log_out_others")}</button></div>`}
  </${Dialog}>`;
}
