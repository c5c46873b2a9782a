/** The list of conversations, with its search, and the user's own menu. Messages are searched by the server, if it can. */

import { useInTab } from "./accounts.js";
import { short, summaryOf } from "./format.js";
import { addressOf, open, titleOf } from "./names.js";
import { options } from "./options.js";
import { Face, nameOf } from "./profiles.js";
import { otherAccounts } from "./session.js";
import { t } from "./strings.js";
import { Avatar, html, Icon, Menu, useEffect, useState } from "./ui.js";
import { late } from "./updates.js";

const NAME = /^[A-Za-z0-9._-]{1,64}$/;

/** @param {{ session: import("./session.js").Session, current: string, show: any, logOut: () => void }} props */
export function List({ session, current, show, logOut }) {
  const [query, setQuery] = useState("");
  const wanted = query.trim().toLowerCase().replace(/^@/, "");
  const all = session.list();
  const found = all.filter(({ view, last }) => {
    const text = `${titleOf(session.user, view)} ${view.with ?? ""} ${last ? summaryOf(last) : ""}`.toLowerCase();
    return text.includes(wanted);
  });
  const name = query.trim().replace(/^@/, "");
  const searches = options().search && wanted.length > 1;
  const [Hits, setHits] = useState(/** @type {any} */ (undefined));
  useEffect(() => {
    if (searches && !Hits) late(() => import("./search.js")).then((found) => setHits(() => found.Hits), () => undefined); // the list still searches
  }, [searches]);
  const stranger = NAME.test(name) && !all.some(({ view }) => view.with === name);
  const onKeyDown = (/** @type {any} */ event) => {
    const rows = [...document.querySelectorAll(".conversations a")];
    const at = rows.indexOf(/** @type {any} */ (document.activeElement));
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    /** @type {any} */ (rows[Math.max(0, Math.min(rows.length - 1, at + step))])?.focus();
  };
  return html`<nav class="list" aria-label=${t("conversations")} onKeyDown=${onKeyDown}>
    <header>
      <${Me} session=${session} show=${show} logOut=${logOut} />
      <${Menu} label=${t("new")} icon="plus" items=${() => [
        { label: t("write_to"), icon: "person", act: () => show("write") },
        { label: t("make_group"), icon: "group", act: () => show("group") },
        { label: t("make_channel"), icon: "hash", act: () => show("group", { kind: "channel" }) },
        { label: t("contacts"), icon: "group", act: () => show("contacts") },
        { label: t("invite"), icon: "link", act: () => show("invite") },
      ]} />
    </header>
    <div class="search"><${Icon} name="search" size=${16} /><input type="search" placeholder=${t("search")} aria-label=${t("search")} value=${query} onInput=${(/** @type {any} */ event) => setQuery(event.target.value)} /></div>
    ${session.requests > 0 && html`<button type="button" class="requests" onClick=${() => show("contacts")}><${Icon} name="person" /><span>${t("requests", { count: session.requests })}</span><span class="count" aria-hidden="true">${session.requests}</span></button>`}
    <ul class="conversations">
      ${found.map((entry) => html`<${Row} key=${entry.view.id} entry=${entry} session=${session} current=${entry.view.id === current} />`)}
      ${wanted && stranger && html`<li key="new"><a href=${`#/@${name}`} onClick=${() => setQuery("")}><${Avatar} name=${name} /><span class="row-text"><span class="row-title" dir="auto">${t("write_to_name", { name })}</span></span></a></li>`}
    </ul>
    ${searches && Hits && html`<${Hits} session=${session} query=${query.trim()} show=${show} />`}
    ${session.loaded && !all.length && !wanted && html`<div class="empty"><p>${t("nothing_yet")}</p><${Actions} show=${show} /></div>`}
    ${session.loaded && all.length > 0 && all.length < 4 && !wanted && html`<div class="begin"><${Actions} show=${show} /></div>`}
    <footer><${Chip} session=${session} /></footer>
  </nav>`;
}

/** @param {{ entry: import("./session.js").Entry, session: import("./session.js").Session, current: boolean }} props */
function Row({ entry, session, current }) {
  const { view, last } = entry;
  const title = titleOf(session.user, view);
  const typists = session.typists(view.id);
  const online = view.with !== null && session.presence.get(view.with)?.online === true;
  const preview = typists.length ? t("typing_user", { user: nameOf(typists[0] ?? "") }) : view.gone ? t(`gone_${view.gone}`) : last?.deleted ? t("deleted") : last ? summaryOf(last) : "";
  const author = last && !typists.length && !view.gone && (last.from === session.user ? t("you") : view.kind === "direct" ? "" : nameOf(last.from));
  return html`<li><a href=${addressOf(view.id)} aria-current=${current ? "page" : undefined} class=${view.unread ? "unread" : ""}>
    ${view.with ? html`<${Face} user=${view.with} online=${online} />` : html`<${Avatar} name=${title} kind=${view.kind} />`}
    <span class="row-text">
      <span class="row-top"><span class="row-title" dir="auto">${title}</span>${view.held && html`<span class="held" role="img" aria-label=${t("held")} title=${t("held")}><${Icon} name="clock" size=${14} /></span>`}${last && html`<time>${short(last.at)}</time>`}</span>
      <span class="row-top">
        <span class=${typists.length ? "row-last typing" : "row-last"} dir="auto">${author && html`<b>${author}:</b> `}${preview.slice(0, 120)}</span>
        ${view.unread > 0 && html`<span class="count" aria-label=${t("unread", { count: view.unread })}>${view.unread > 999 ? "999+" : view.unread}</span>`}
      </span>
    </span>
  </a></li>`;
}

/** *live at gateway-1, 3 ms* @param {{ session: import("./session.js").Session }} props */
function Chip({ session }) {
  const { status, leader } = session.client;
  const { gateway, ms } = session.link;
  let text = t(`status_${status}`);
  if (status === "live" && leader && gateway) text = ms === undefined ? t("live_at", { gateway }) : t("live_at_ms", { gateway, ms });
  else if (status === "live") text = t("live");
  return html`<span class=${`chip ${status}`} title=${t("chip_tip")}><span class="dot"></span><span>${text}</span></span>`;
}

/** The user's own menu: the other accounts, the language, the way out. @param {{ session: import("./session.js").Session, show: any, logOut: () => void }} props */
function Me({ session, show, logOut }) {
  const [others, setOthers] = useState(/** @type {import("./accounts.js").Account[]} */ ([]));
  const [permission, setPermission] = useState(globalThis.Notification?.permission ?? "denied");
  const load = () => void otherAccounts(session.user).then(setOthers);
  useEffect(load, []);
  const become = (/** @type {string} */ user) => {
    useInTab(user);
    open("");
    location.reload();
  };
  const face = html`<${Face} user=${session.user} size="small" /><b class="me-name" dir="auto">${nameOf(session.user)}</b><${Icon} name="down" size=${14} />`;
  return html`<div class="me" onPointerEnter=${load}><${Menu} label=${t("menu_of", { user: session.user })} face=${face} items=${() => [
    { label: t("contacts"), icon: "group", act: () => show("contacts") },
    { label: t("settings"), icon: "settings", act: () => show("settings") },
    { label: t("invite"), icon: "link", act: () => show("invite") },
    { label: t("outbox"), icon: "clock", act: () => show("outbox") },
    permission === "default" && { label: t("notify"), icon: "bell", act: () => void Notification.requestPermission().then(setPermission) },
    ...others.slice(0, 8).map(({ user }) => ({ label: t("switch_to", { user }), icon: "person", act: () => become(user) })),
    { label: t("second_person"), icon: "tab", act: () => void window.open("/#/login", "_blank", "noopener") },
    { label: t("log_out"), icon: "out", danger: true, act: logOut },
  ]} /></div>`;
}

/** The three large actions. @param {{ show: any }} props */
export function Actions({ show }) {
  return html`<div class="actions">
    <button type="button" onClick=${() => show("write")}><${Icon} name="person" size=${28} /><b>${t("write_to")}</b><span>${t("write_to_text")}</span></button>
    <button type="button" onClick=${() => show("group")}><${Icon} name="group" size=${28} /><b>${t("make_group")}</b><span>${t("make_group_text")}</span></button>
    <a href="/#/login" target="_blank" rel="noopener"><${Icon} name="tab" size=${28} /><b>${t("second_person")}</b><span>${t("second_person_text")}</span></a>
  </div>`;
}
