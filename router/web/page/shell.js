/** The page of a user who is logged in: the list, the open conversation, and what concerns both. */

import { forget, onLogout, useInTab } from "./accounts.js";
import { Chat } from "./chat.js";
import { Actions, List } from "./list.js";
import { decoded, open, routeOf, titleOf } from "./names.js";
import { options } from "./options.js";
import { languageNow, t } from "./strings.js";
import { html, Icon, useEffect, useReducer, useState } from "./ui.js";
import { onUpdate, update } from "./updates.js";

/** @typedef {{ name: string, argument?: any }} Opened A dialog that is open. */

/** @param {{ session: import("./session.js").Session }} props */
export function Shell({ session }) {
  const [, refresh] = useReducer((/** @type {number} */ n) => n + 1, 0);
  const [dialog, setDialog] = useState(/** @type {Opened | undefined} */ (undefined));
  const [Dialogs, setDialogs] = useState(/** @type {any} */ (undefined));
  const [newer, setNewer] = useState(false);
  const [notice, setNotice] = useState("");
  const id = routeOf(session.user);

  const show = (/** @type {string} */ name, /** @type {any} */ argument) => {
    void import("./dialogs.js").then((module) => {
      setDialogs(() => module.Dialogs);
      setDialog({ name, argument });
    });
  };
  const say = (/** @type {string} */ text) => {
    setNotice(text);
    setTimeout(() => setNotice((now) => (now === text ? "" : now)), 5000);
  };

  useEffect(() => {
    const ends = [session.onChange(() => refresh(0)), onUpdate(() => setNewer(true)), notifications(session)];
    const onHash = () => (joinByLink(session, say), refresh(0));
    addEventListener("hashchange", onHash);
    onLogout((user) => {
      if (user === session.user) void session.close().then(leave);
    });
    joinByLink(session, say);
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
    if (!sure && session.unsent + session.failed > 0) return show("logout", { confirm: () => void logOut(true) });
    await session.close();
    await forget(session.user);
    return leave();
  };

  return html`<div class=${id ? "shell has-chat" : "shell"}>
    <a class="skip" href="#main" onClick=${(/** @type {Event} */ event) => (event.preventDefault(), document.getElementById("main")?.focus())}>${t("skip")}</a>
    <${Banner} session=${session} newer=${newer} show=${show} />
    <main>
      <h1 class="unseen">Linnet</h1>
      <${List} session=${session} current=${id} show=${show} logOut=${() => void logOut(false)} />
      <div id="main" class="pane" tabindex="-1">
        ${id ? html`<${Chat} key=${id} id=${id} session=${session} show=${show} say=${say} />` : html`<${Welcome} session=${session} show=${show} />`}
      </div>
    </main>
    ${dialog && Dialogs && html`<${Dialogs} ...${dialog} session=${session} show=${show} say=${say} close=${() => setDialog(undefined)} />`}
    <p class=${notice ? "toast shown" : "toast"} role="status">${notice}</p>
  </div>`;
}

/** What is shown beside the list while no conversation is open. @param {{ session: any, show: any }} props */
function Welcome({ session, show }) {
  return html`<div class="welcome">
    <h2>${t("hello_user", { user: session.user })}</h2>
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
    const again = stopped === "ended" ? () => session.client.connect() : () => (sessionStorage.setItem("linnet-account", ""), location.reload());
    return html`<div class="banner bad" role="alert"><${Icon} name="warn" /><span>${t(`stopped_${stopped}`)}</span><button type="button" onClick=${again}>${stopped === "ended" ? t("connect_again") : t("log_in")}</button></div>`;
  }
  if (session.trouble && down) {
    return html`<div class="banner bad" role="alert"><${Icon} name="warn" /><span>${t(session.trouble.key)} <code>${session.trouble.detail}</code></span></div>`;
  }
  if (down && late) {
    const waiting = session.unsent;
    return html`<div class="banner" role="status"><${Icon} name="clock" /><span>${t("offline_text")}</span>${waiting > 0 && html`<button type="button" onClick=${() => show("outbox")}>${t("unsent", { count: waiting })}</button>`}</div>`;
  }
  if (session.failed > 0) {
    return html`<div class="banner bad" role="status"><${Icon} name="warn" /><span>${t("failed_text", { count: session.failed })}</span><button type="button" onClick=${() => show("outbox")}>${t("look")}</button></div>`;
  }
  if (newer) return html`<div class="banner" role="status"><${Icon} name="down" /><span>${t("newer")}</span><button type="button" onClick=${update}>${t("update")}</button></div>`;
  return null;
}

/** A link to a channel: join it, then open it. @param {import("./session.js").Session} session @param {(text: string) => void} say */
function joinByLink(session, say) {
  const id = decoded(/^#\/join\/(.+)$/.exec(location.hash)?.[1] ?? "");
  if (!id) return;
  session.client.call("POST", `/v1/conversations/${encodeURIComponent(id)}/join`, {}).then(
    () => open(id),
    (error) => {
      if (error.code === "conflict") return open(id);
      say(t("cannot_join", { why: error.message }));
      return open("");
    },
  );
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
        const note = new Notification(titleOf(session.user, entry.view), { body: from, tag: id, lang: languageNow() });
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
