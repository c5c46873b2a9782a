/** Users: find, suspend, end sessions, reset the password. */

import { useState } from "../page/vendor/hooks.js";
import { query } from "./api.js";
import { Ask, html, Pages, usePages, when } from "./parts.js";

/** @param {{ api: import("./api.js").Api }} props */
export function Users({ api }) {
  const [wanted, setWanted] = useState({ prefix: "", state: "" });
  const [ask, setAsk] = useState(/** @type {any} */ (undefined));
  const pages = usePages(
    (after) => api.call("GET", `/admin/users${query({ ...wanted, after })}`).then((page) => ({ rows: page.users, next: page.more ? page.after : undefined })),
    (row) => row.user,
    [wanted],
  );
  const find = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const given = new FormData(/** @type {HTMLFormElement} */ (event.currentTarget));
    setWanted({ prefix: String(given.get("prefix")).trim(), state: String(given.get("state")) });
  };
  const name = (/** @type {string} */ user) => encodeURIComponent(user);
  const suspend = (/** @type {any} */ row) => setAsk({
    title: `Suspend ${row.user}`, text: "Sessions end at once. Messages to the user are accepted and wait.",
    fields: [{ name: "reason", label: "Reason, for the audit", required: true }, { name: "until", label: "Until (empty: for ever)", type: "datetime-local" }],
    act: (/** @type {any} */ { reason, until }) => api.call("PUT", `/accounts/${name(row.user)}/suspension`, { reason, until: until ? new Date(until).getTime() : null }).then(pages.again),
  });
  const release = (/** @type {any} */ row) => setAsk({ title: `End the suspension of ${row.user}`, act: () => api.call("DELETE", `/accounts/${name(row.user)}/suspension`).then(pages.again) });
  const kick = (/** @type {any} */ row) => setAsk({ title: `End the sessions of ${row.user}`, text: "The user's devices are disconnected. They may connect again with the tokens that they have.", act: () => api.call("DELETE", `/sessions/${name(row.user)}`).then(pages.again) });
  const reset = (/** @type {any} */ row) => setAsk({
    title: `Reset the password of ${row.user}`, text: "Makes a token with which the user sets a new password: once, within an hour. Pass it on in a way that only the user can read.",
    act: () => api.call("POST", "/password/resets", { user: row.user }).then((made) => made.token),
  });
  return html`<section class="card" aria-labelledby="users">
    <h2 id="users">Users</h2>
    <form role="search" onSubmit=${find}>
      <label>Name begins with<input name="prefix" pattern="[A-Za-z0-9._\\-]*" maxlength="64" autocomplete="off" /></label>
      <label>State<select name="state"><option value="">all</option><option>active</option><option>suspended</option><option>deleted</option></select></label>
      <button class="main">Find</button>
    </form>
    <${Pages} pages=${pages} label="users" empty="No such user.">
      <table>
        <thead><tr><th scope="col">User</th><th scope="col">State</th><th scope="col">Roles</th><th scope="col">Last seen</th><th scope="col">Created</th><th scope="col">Acts</th></tr></thead>
        <tbody>${pages.rows.map((row) => html`<tr key=${row.user}>
          <td><b>${row.user}</b>${row.name && row.name !== row.user && html`<div class="soft">${row.name}</div>`}</td>
          <td>${row.state === "suspended" ? html`<span class="bad-text">suspended</span><div class="soft">${row.suspended_until ? `until ${when(row.suspended_until)}` : "for ever"}</div>` : row.state}</td>
          <td>${row.roles.map((/** @type {string} */ role) => html`<span class="tag" key=${role}>${role}</span>`)}</td>
          <td>${row.online ? html`<span class="good">online</span>` : when(row.last_seen)}</td>
          <td>${when(row.created)}</td>
          <td><div class="row">${row.state !== "deleted" && html`
            ${row.state === "suspended" ? html`<button type="button" onClick=${() => release(row)}>End suspension</button>` : html`<button type="button" class="bad" onClick=${() => suspend(row)}>Suspend</button>`}
            <button type="button" onClick=${() => kick(row)}>End sessions</button>
            ${row.password && html`<button type="button" onClick=${() => reset(row)}>Reset password</button>`}`}</div></td>
        </tr>`)}</tbody>
      </table>
    <//>
    ${ask && html`<${Ask} key=${ask.title} ...${ask} close=${() => setAsk(undefined)} />`}
  </section>`;
}
