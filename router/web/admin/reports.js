/** Reports, for moderators and admins, and the audit of what they did. */

import { useState } from "../page/vendor/hooks.js";
import { query } from "./api.js";
import { written } from "./conversations.js";
import { Ask, html, Pages, usePages, when } from "./parts.js";

/** @param {{ api: import("./api.js").Api }} props */
export function Reports({ api }) {
  const [state, setState] = useState("open");
  const [ask, setAsk] = useState(/** @type {any} */ (undefined));
  const pages = usePages(
    (after) => api.call("GET", `/reports${query({ state, after })}`).then((page) => ({ rows: page.reports, next: page.more ? page.reports.at(-1)?.id : undefined, missing: page.missing })),
    (row) => row.id,
    [state],
  );
  const decide = (/** @type {any} */ row, /** @type {string} */ to, /** @type {string} */ title) => setAsk({
    title, fields: [{ name: "note", label: "Note, for other moderators" }],
    act: (/** @type {any} */ { note }) => api.call("PATCH", `/reports/${encodeURIComponent(row.id)}`, { state: to, ...(note ? { note } : {}) }).then(pages.again),
  });
  const remove = (/** @type {any} */ row) => setAsk({
    title: "Delete the message", text: "It is deleted for everybody. The event does not name you; the audit does.",
    act: () => api.call("POST", "/commands", { type: "delete", conversation: row.conversation, seq: row.seq, n: Date.now() * 1000 }, { "Linnet-Device": "admin-view" }),
  });
  const suspend = (/** @type {any} */ row) => setAsk({
    title: `Suspend ${row.user}`, fields: [{ name: "reason", label: "Reason, for the audit", required: true }],
    act: (/** @type {any} */ { reason }) => api.call("PUT", `/accounts/${encodeURIComponent(row.user)}/suspension`, { reason }),
  });
  return html`<section class="card" aria-labelledby="reports">
    <h2 id="reports">Reports</h2>
    <form><label>State<select value=${state} onChange=${(/** @type {any} */ event) => setState(event.currentTarget.value)}><option>open</option><option>resolved</option><option>dismissed</option></select></label></form>
    <${Pages} pages=${pages} label="reports" empty=${`No ${state} reports.`}>
      <table>
        <thead><tr><th scope="col">When</th><th scope="col">About</th><th scope="col">Reason</th><th scope="col">Reported by</th><th scope="col">Acts</th></tr></thead>
        <tbody>${pages.rows.map((row) => html`<tr key=${row.id}>
          <td>${when(row.at)}</td>
          <td><b>${row.user}</b>${row.seq && html`<blockquote>${row.event ? written(row.event) : "(the copy was erased)"}</blockquote><div class="mono soft">${row.conversation} ${row.seq}</div>`}</td>
          <td>${row.reason || "–"}${row.note && html`<div class="soft">Note: ${row.note}</div>`}</td>
          <td>${row.reporter}</td>
          <td><div class="row">${row.state === "open" ? html`
            <button type="button" onClick=${() => decide(row, "resolved", "Resolve")}>Resolve</button>
            <button type="button" onClick=${() => decide(row, "dismissed", "Dismiss")}>Dismiss</button>
            ${row.seq && html`<button type="button" class="bad" onClick=${() => remove(row)}>Delete message</button>`}
            <button type="button" class="bad" onClick=${() => suspend(row)}>Suspend user</button>` : html`<button type="button" onClick=${() => decide(row, "open", "Reopen")}>Reopen</button>`}</div></td>
        </tr>`)}</tbody>
      </table>
    <//>
    ${ask && html`<${Ask} key=${ask.title} ...${ask} close=${() => setAsk(undefined)} />`}
  </section>`;
}

/** @param {{ api: import("./api.js").Api }} props */
export function Audit({ api }) {
  const pages = usePages(
    (after) => api.call("GET", `/audit${query({ after })}`).then((page) => ({ rows: page.entries, next: page.more ? page.entries.at(-1)?.id : undefined, missing: page.missing })),
    (row) => row.id,
    [],
  );
  return html`<section class="card" aria-labelledby="audit">
    <h2 id="audit">Audit</h2>
    <${Pages} pages=${pages} label="audit" empty="No acts yet.">
      <table>
        <thead><tr><th scope="col">When</th><th scope="col">Who</th><th scope="col">Act</th><th scope="col">On what</th><th scope="col">Reason</th></tr></thead>
        <tbody>${pages.rows.map((row) => html`<tr key=${row.id}>
          <td>${when(row.at)}</td><td>${row.actor ?? html`<i>server key</i>`}</td><td>${row.action.replaceAll("_", " ")}</td>
          <td class="mono">${Object.entries(row.target).map(([name, value]) => `${name} ${value}`).join(", ")}</td><td>${row.reason ?? ""}</td>
        </tr>`)}</tbody>
      </table>
    <//>
  </section>`;
}
