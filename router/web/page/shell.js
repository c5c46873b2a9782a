/** The page of a user who is logged in: the list, the open conversation, and what concerns both. */

import { forget, onLogout, useInTab } from "./accounts.js";
import { Actions, List } from "./list.js";
import { decoded, open, routeOf, titleOf } from "./names.js";
import { options } from "./options.js";
import { nameOf } from "./profiles.js";
import { languageNow, t } from "./strings.js";
import { html, Icon, Notice, say, useEffect, useReducer, useState } from "./ui.js";
import { late, onUpdate, update } from "./updates.js";

/** @typedef {{ name: string, argument?: any, Dialog: any }} Opened A dialog that is open. */

/** With what it imports: a module that is found late costs a round trip. */
const chat = () => Promise.all([import("./chat.js"), import("./composer.js"), import("./message.js"), import("./files.js")]).then(([found]) => found);
const files = () => import("./attach.js");
const people = () => import("./people.js");
const settings = () => import("./settings.js");
const moderation = () => import("./moderation.js");
const search = () => import("./search.js");

/** Where dialogs are that are not in dialogs.js. @type {Record<string, () => Promise<{ DIALOGS: Record<string, any> }>>} */
const ELSEWHERE = {
  attach: files, camera: files, picture: files,
  contacts: people, person: people,
  found: search,
  restrain: moderation, bans: moderation, rules: moderation, report: moderation,
  settings, profile: settings, privacy: settings, blocks: settings, password: settings, devices: settings,
};

/** What a stopped client's button does, if it is not to log in. @type {Record<string, string>} */
const AGAIN = { ended: "connect_again", bad_protocol: "update" };

/** @param {{ session: import("./session.js").Session }} props */
export function Shell({ session }) {
  const [, refresh] = useReducer((/** @type {number} */ n) => n + 1, 0);
  const [dialog, setDialog] = useState(/** @type {Opened | undefined} */ (undefined));
  const [newer, setNewer] = useState(false);
  const [Chat, setChat] = useState(/** @type {any} */ (undefined));
  const id = routeOf(session.user);
  const wanted = id !== "" || session.loaded; // the list comes first, then what most users open next

  useEffect(() => {
    if (wanted) late(chat).then((found) => setChat(() => found.Chat), () => id && say(t("not_loaded")));
  }, [wanted, Chat ? "" : id]);

  const show = (/** @type {string} */ name, /** @type {any} */ argument) => {
    const load = ELSEWHERE[name] ?? (() => import("./dialogs.js"));
    late(load).then(({ DIALOGS }) => setDialog({ name, argument, Dialog: DIALOGS[name] }), () => say(t("not_loaded")));
  };

  useEffect(() => {
    const ends = [session.onChange(() => refresh(0)), onUpdate(() => setNewer(true)), notifications(session)];
    const onHash = () => (joinByLink(session, show), refresh(0));
    addEventListener("hashchange", onHash);
    const stay = (/** @type {Event} */ event) => event.preventDefault(); // a file that is dropped beside a conversation does not replace the page
    addEventListener("dragover", stay);
    addEventListener("drop", stay);
    onLogout((user) => {
      if (user === session.user) void session.close().then(leave);
    });
    joinByLink(session, show);
    greet(session);
    return () => (ends.forEach((end) => end()), removeEventListener("hashchange", onHash));
  }, []);

  const { unread } = session;
  const entry = session.entry(id);
  useEffect(() => {
    const here = entry ? titleOf(session.user, entry.view) : "";
    document.title = `${unread ? `(${unread}) ` : ""}${here ? `${here} · ` : ""}Linnet`;
  });

  const logOut = async (/** @type {boolean} */ sure) => {
    if (!sure && session.unsent + session.failed + session.uploads.length > 0) return show("logout", { confirm: () => void logOut(true) });
    await session.close();
    return forget(session.user).finally(leave);
  };

  return html`<div class=${id ? "shell has-chat" : "shell"}>
    <a class="skip" href="#main" onClick=${(/** @type {Event} */ event) => (event.preventDefault(), document.getElementById("main")?.focus())}>${t("skip")}</a>
    <${Banner} session=${session} newer=${newer} show=${show} />
    <main>
      <h1 class="unseen">Linnet</h1>
      <${List} session=${session} current=${id} show=${show} logOut=${() => void logOut(false)} />
      <div id="main" class="pane" tabindex="-1">
        ${id ? Chat && html`<${Chat} key=${id} id=${id} session=${session} show=${show} say=${say} />` : html`<${Welcome} session=${session} show=${show} />`}
      </div>
    </main>
    ${dialog && html`<${dialog.Dialog} key=${dialog.name} argument=${dialog.argument} session=${session} show=${show} say=${say} close=${() => setDialog(undefined)} />`}
    <${Notice} here=${dialog === undefined} />
  </div>`;
}

/** What is shown beside the list while no conversation is open. @param {{ session: any, show: any }} props */
function Welcome({ session, show }) {
  return html`<div class="welcome">
    <h2>${t("hello_user", { user: nameOf(session.user) })}</h2>
    <p>${t("welcome_text")}</p>
    <${Actions} show=${show} />
  </div>`;
}

/** What stands in the way: no connection, a wrong setting, an ended session, a new version. @param {{ session: any, newer: boolean, show: any }} props */
function Banner({ session, newer, show }) {
  const { status, stopped } = session.client;
  const [late, setLate] = useState(false);
  const down = status !== "live";
  useEffect(() => {
    setLate(false);
    const timer = down ? setTimeout(() => setLate(true), session.wasLive ? 1200 : 4000) : undefined;
    return () => clearTimeout(timer);
  }, [down]);
  if (status === "stopped") {
    const again = stopped === "ended" ? () => session.client.connect() : () => (stopped === "bad_protocol" || sessionStorage.setItem("linnet-account", ""), location.reload());
    return html`<div class="banner bad" role="alert"><${Icon} name="warn" /><span>${t(`stopped_${stopped}`)}</span><button type="button" onClick=${again}>${t(AGAIN[stopped] ?? "log_in")}</button></div>`;
  }
  const waiting = session.unsent > 0 && html`<button type="button" onClick=${() => show("outbox")}>${t("unsent", { count: session.unsent })}</button>`;
  if (session.trouble && down && navigator.onLine) {
    return html`<div class="banner bad" role="alert"><${Icon} name="warn" /><span>${t(session.trouble.key)} <code>${session.trouble.detail}</code></span>${waiting}</div>`;
  }
  if (down && late) {
    return html`<div class="banner" role="status"><${Icon} name="clock" /><span>${t("offline_text")}</span>${waiting}</div>`;
  }
  if (session.failed > 0) {
    return html`<div class="banner bad" role="status"><${Icon} name="warn" /><span>${t("failed_text", { count: session.failed })}</span><button type="button" onClick=${() => show("outbox")}>${t("look")}</button></div>`;
  }
  if (newer) return html`<div class="banner" role="status"><${Icon} name="down" /><span>${t("newer")}</span><button type="button" onClick=${update}>${t("update")}</button></div>`;
  return null;
}

/** A link to a channel: open it, or ask whether to join it. @param {import("./session.js").Session} session @param {any} show */
function joinByLink(session, show) {
  const id = decoded(/^#\/join\/(.+)$/.exec(location.hash)?.[1] ?? "");
  if (!id) return;
  const known = session.entry(id)?.view;
  if (known?.role && !known.gone) open(id);
  else show("join", { id });
}

/** A new account says hello to the deployment's bot, so that its list is not empty. @param {import("./session.js").Session} session */
function greet(session) {
  const bot = sessionStorage.getItem("linnet-greet");
  if (!bot || bot !== options().bot) return;
  sessionStorage.removeItem("linnet-greet");
  session.client.conversation(`@${bot}`).send("/start");
}

/** Show what arrives while the page is hidden, if the user allowed it. @param {import("./session.js").Session} session */
function notifications(session) {
  /** @type {Map<string, number>} */
  const shown = new Map();
  return session.onConversations((ids) => {
    if (!document.hidden || !session.client.leader || globalThis.Notification?.permission !== "granted") return;
    setTimeout(() => {
      for (const id of ids) {
        const entry = session.entry(id);
        const { seq = 0, from = "" } = entry?.last ?? {};
        if (!entry || !entry.view.unread || from === session.user || seq <= (shown.get(id) ?? entry.view.read)) continue;
        shown.set(id, seq);
        const note = new Notification(titleOf(session.user, entry.view), { body: nameOf(from), tag: id, lang: languageNow() });
        note.onclick = () => (focus(), open(id));
      }
    }, 200);
  });
}

function leave() {
  history.replaceState(null, "", "/");
  useInTab("");
  location.reload();
}
