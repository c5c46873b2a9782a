/** The admin view: the login, then its sections. A moderator sees reports and the audit, an admin all. */

import { render } from "preact";
import { useReducer, useState } from "../page/vendor/hooks.js";
import { Api } from "./api.js";
import { Conversations } from "./conversations.js";
import { Nodes } from "./nodes.js";
import { html, when } from "./parts.js";
import { Audit, Reports } from "./reports.js";
import { Users } from "./users.js";

/** @type {{ name: string, View: any, admin: boolean }[]} */
const SECTIONS = [
  { name: "Users", View: Users, admin: true },
  { name: "Conversations", View: Conversations, admin: true },
  { name: "Reports", View: Reports, admin: false },
  { name: "Audit", View: Audit, admin: false },
  { name: "Nodes", View: Nodes, admin: true },
];

const api = new Api();

function View() {
  const [, refresh] = useReducer((/** @type {number} */ n) => n + 1, 0);
  const [chosen, setChosen] = useState("");
  const [over, setOver] = useState(false);
  api.ended = () => (setOver(true), refresh(0));
  if (!api.user || !api.roles.length) return html`<${Login} over=${over} done=${() => (setOver(false), refresh(0))} />`;
  const mine = SECTIONS.filter((section) => api.admin || !section.admin);
  const section = mine.find((one) => one.name === chosen) ?? mine[0];
  return html`<header>
      <h1>Linnet admin</h1>
      <nav aria-label="Sections">${mine.map((one) => html`<button key=${one.name} type="button" aria-current=${one === section ? "page" : undefined} onClick=${() => setChosen(one.name)}>${one.name}</button>`)}</nav>
      <div class="who"><span>${api.user}, until ${when(api.expires)}</span><button type="button" onClick=${() => void api.logOut().then(() => refresh(0))}>Log out</button></div>
    </header>
    <main><${section?.View} key=${section?.name} api=${api} /></main>`;
}

/** @param {{ over: boolean, done: () => void }} props */
function Login({ over, done }) {
  const [error, setError] = useState("");
  const accounts = /** @type {HTMLMetaElement} */ (document.querySelector("meta[name=linnet-accounts]")).content;
  const submit = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const given = new FormData(/** @type {HTMLFormElement} */ (event.currentTarget));
    api.logIn(String(given.get("user")), String(given.get("password"))).then(done, (failed) => setError(failed.message));
  };
  return html`<main class="login"><section class="card">
    <h1>Linnet admin</h1>
    ${accounts ? html`
      <p class="soft">${over ? "The login is over. Log in again." : "For users with a role in the deployment. A login lasts 15 minutes, and until this page is closed."}</p>
      <form onSubmit=${submit}>
        <label>Name<input name="user" required autocomplete="username" autocapitalize="none" spellcheck=${false} /></label>
        <label>Password<input name="password" type="password" required autocomplete="current-password" /></label>
        ${error && html`<p class="error" role="alert">${error}</p>`}
        <button class="main">Log in</button>
      </form>` : html`<p>This deployment has no accounts of its own (LINNET_ACCOUNTS), so nobody can log in here. Backends call /v1/admin with the server key.</p>`}
  </section></main>`;
}

render(html`<${View} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
