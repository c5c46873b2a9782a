/** Conversations: settings, members with their devices, which of these have a message, and the log for a reason. */

import { useState } from "../page/vendor/hooks.js";
import { query } from "./api.js";
import { Ask, html, Pages, useLoaded, usePages, when } from "./parts.js";

/** @param {{ api: import("./api.js").Api }} props */
export function Conversations({ api }) {
  const [wanted, setWanted] = useState("");
  const [chosen, setChosen] = useState("");
  const pages = usePages(
    (after) => api.call("GET", `/admin/conversations${query({ conversation: wanted, after })}`).then((page) => ({ rows: page.conversations, next: page.more ? page.after : undefined })),
    (row) => row.conversation,
    [wanted],
  );
  const find = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    setWanted(String(new FormData(/** @type {HTMLFormElement} */ (event.currentTarget)).get("id")).trim());
  };
  const row = pages.rows.find((one) => one.conversation === chosen);
  return html`<section class="card" aria-labelledby="conversations">
    <h2 id="conversations">Conversations</h2>
    <form role="search" onSubmit=${find}><label>Id (empty: all)<input name="id" autocomplete="off" /></label><button class="main">Find</button></form>
    <${Pages} pages=${pages} label="conversations" empty="No conversations.">
      <table>
        <thead><tr><th scope="col">Conversation</th><th scope="col">Kind</th><th scope="col" class="number">Members</th><th scope="col" class="number">Messages</th><th scope="col">Last event</th><th scope="col">Settings</th><th scope="col">Acts</th></tr></thead>
        <tbody>${pages.rows.map((one) => html`<tr key=${one.conversation}>
          <td><b>${one.title || "–"}</b><div class="mono soft">${one.conversation}</div></td>
          <td>${one.kind}</td><td class="number">${one.size}</td><td class="number">${one.count}</td><td>${when(one.at)}</td>
          <td class="soft">${one.kind === "direct" ? "–" : `posting: ${one.posting}, adding: ${one.adding}, reacting: ${one.reacting}${one.slow_s ? `, one message in ${one.slow_s} s` : ""}`}</td>
          <td><button type="button" aria-pressed=${one.conversation === chosen} onClick=${() => setChosen(one.conversation)}>Open</button></td>
        </tr>`)}</tbody>
      </table>
    <//>
  </section>
  ${row && html`<${Devices} key=${chosen} api=${api} row=${row} /><${Log} key=${`log ${chosen}`} api=${api} id=${chosen} />`}`;
}

/** Up to where each device has all; with a message's number, which devices have it. @param {{ api: import("./api.js").Api, row: any }} props */
function Devices({ api, row }) {
  const [seq, setSeq] = useState(0);
  const id = encodeURIComponent(row.conversation);
  const pages = usePages(
    (cursor) => api.call("GET", `/admin/conversations/${id}/devices${query({ cursor })}`).then((page) => ({
      rows: [...page.devices, ...page.without.map((/** @type {string} */ user) => ({ user, device: null }))],
      next: page.more ? page.cursor : undefined,
    })),
    (one) => `${one.user} ${one.device}`,
    [],
  );
  const place = (/** @type {any} */ one) => {
    if (!one.device) return html`<span class="soft">no device</span>`;
    if (!seq) return one.acked ?? "nothing yet";
    const has = (one.acked ?? 0) >= seq;
    return html`<span class=${has ? "good" : "bad-text"}>${has ? (one.read >= seq ? "has it, read" : "has it") : "has it not yet"}</span> <span class="soft">(${one.acked ?? "–"})</span>`;
  };
  return html`<section class="card" aria-labelledby="devices">
    <h2 id="devices">Members and devices of ${row.title || row.conversation}</h2>
    <form onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
      <label>Where is message number<input type="number" min="1" max=${row.head} value=${seq || ""} onInput=${(/** @type {any} */ event) => setSeq(Number(event.currentTarget.value))} /></label>
      <span class="soft">the newest is ${row.head}</span><button type="button" onClick=${pages.again}>Refresh</button>
    </form>
    <${Pages} pages=${pages} label="devices" empty="No members.">
      <table>
        <thead><tr><th scope="col">Member</th><th scope="col">Role</th><th scope="col">Device</th><th scope="col">${seq ? `Message ${seq}` : "Has all up to"}</th><th scope="col" class="number">Read up to</th><th scope="col">Connection</th></tr></thead>
        <tbody>${pages.rows.map((one) => html`<tr key=${`${one.user} ${one.device}`}>
          <td>${one.user}</td><td>${one.role ?? ""}</td><td>${one.device ?? "–"}</td><td>${place(one)}</td><td class="number">${one.device ? one.read : ""}</td>
          <td>${one.online ? html`<span class="good">online</span> <span class="mono soft">${one.gateway}</span>` : one.device ? `last seen ${when(one.last_seen)}` : ""}</td>
        </tr>`)}</tbody>
      </table>
    <//>
  </section>`;
}

/** The log, after a reason. @param {{ api: import("./api.js").Api, id: string }} props */
function Log({ api, id }) {
  const [asking, setAsking] = useState(false);
  const [reason, setReason] = useState("");
  const [before, setBefore] = useState(/** @type {number | undefined} */ (undefined));
  const { found, error } = useLoaded(
    async () => reason && api.call("GET", `/admin/conversations/${encodeURIComponent(id)}/events${query({ before, limit: 50 })}`, undefined, { "Linnet-Reason": encodeURIComponent(reason) }),
    [reason, before],
  );
  return html`<section class="card" aria-labelledby="log">
    <h2 id="log">Log</h2>
    ${!reason && html`<p>Reading what people wrote takes a reason. It is kept in the audit with your name.</p><div><button type="button" onClick=${() => setAsking(true)}>Read the log</button></div>`}
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${reason && found && html`<ol class="log">${found.events.map((/** @type {any} */ event) => html`<li key=${event.seq} value=${event.seq}>
        <span class="soft">${when(event.at)} ${event.from} ${event.type === "message" ? "" : event.type}</span><blockquote>${written(event)}</blockquote></li>`)}</ol>
      ${found.more && found.events.length > 0 && html`<div><button type="button" onClick=${() => setBefore(found.events[0].seq)}>Earlier</button></div>`}`}
    ${asking && html`<${Ask} title="Read the log" fields=${[{ name: "reason", label: "Reason, for the audit", required: true }]} act=${async (/** @type {any} */ values) => setReason(values.reason.trim())} close=${() => setAsking(false)} />`}
  </section>`;
}

/** What an event says, as text. @param {any} event */
export function written(event) {
  const { body } = event ?? {};
  if (body === undefined) return "";
  return typeof body === "string" ? body : typeof body?.text === "string" ? body.text : JSON.stringify(body);
}
