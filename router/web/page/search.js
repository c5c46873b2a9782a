/** Messages that the server finds, below the conversations of the list, and a message that was found with those around it. */

import { moment, short, textOf } from "./format.js";
import { open, titleOf } from "./names.js";
import { nameOf } from "./profiles.js";
import { t } from "./strings.js";
import { Dialog, html, useEffect, useState } from "./ui.js";

/** @typedef {{ conversation: string, seq: number, at: number, from: string, snippet: string, marks: [number, number][] }} Hit */
/** @typedef {{ hits: Hit[], more: boolean, cursor: string, incomplete: boolean }} Found */
/** @typedef {{ type: string, seq: number, at: number, from: string, body: any, target?: number }} Logged */

const PAUSE_MS = 300; // without a key, before the server is asked
const AROUND = 10; // messages on each side of the one that was found

/** @param {{ session: import("./session.js").Session, query: string, show: any }} props */
export function Hits({ session, query, show }) {
  const [found, setFound] = useState(/** @type {Found | undefined} */ (undefined));
  const ask = (/** @type {string} */ cursor) => session.client.call("GET", `/v1/search?q=${encodeURIComponent(query)}&cursor=${cursor}`);
  useEffect(() => {
    let wanted = true;
    const timer = setTimeout(() => {
      ask("").then((answer) => wanted && setFound(answer), () => wanted && setFound(undefined));
    }, PAUSE_MS);
    return () => ((wanted = false), clearTimeout(timer));
  }, [query]);
  const more = () => {
    if (!found) return;
    ask(found.cursor).then((answer) => setFound({ ...answer, hits: [...found.hits, ...answer.hits] }), () => undefined);
  };
  if (!found) return null;
  return html`<section class="hits" aria-label=${t("found_messages")}>
    <h2>${t("found_messages")}</h2>
    ${found.hits.length === 0 && html`<p class="hint" role="status">${t("found_none")}</p>`}
    <ul>${found.hits.map((hit) => html`<li key=${`${hit.conversation} ${hit.seq}`}><button type="button" onClick=${() => show("found", hit)}>
      <span class="row-top"><span class="row-title" dir="auto">${title(session, hit.conversation)}</span><time>${short(hit.at)}</time></span>
      <span class="hit-text" dir="auto"><b>${hit.from === session.user ? t("you") : nameOf(hit.from)}:</b> ${marked(hit)}</span>
    </button></li>`)}</ul>
    ${found.more && html`<button type="button" class="more" onClick=${more}>${t("found_more")}</button>`}
    ${found.incomplete && html`<p class="hint">${t("found_incomplete")}</p>`}
  </section>`;
}

/** The message that was found, and those around it. @param {{ session: import("./session.js").Session, argument: Hit, close: () => void, say: (text: string) => void }} props */
function FoundDialog({ session, argument: hit, close, say }) {
  const [around, setAround] = useState(/** @type {Logged[]} */ ([]));
  useEffect(() => {
    const path = `/v1/conversations/${encodeURIComponent(hit.conversation)}/events?limit=${AROUND}`;
    Promise.all([session.client.call("GET", `${path}&before=${hit.seq}`), session.client.call("GET", `${path}&after=${hit.seq}`)]).then(
      ([before, after]) => setAround(messages([...before.events, ...after.events])),
      () => say(t("not_loaded")),
    );
  }, []);
  useEffect(() => document.querySelector(".found [aria-current]")?.scrollIntoView({ block: "center" }), [around]);
  const own = { type: "message", seq: hit.seq, at: hit.at, from: hit.from, body: undefined };
  const all = [...around.filter(({ seq }) => seq < hit.seq), own, ...around.filter(({ seq }) => seq > hit.seq)];
  return html`<${Dialog} title=${title(session, hit.conversation)} close=${close} className="found">
    <ol>${all.map((one) => html`<li key=${one.seq} aria-current=${one === own ? "true" : undefined}>
      <span class="row-top"><b dir="auto">${one.from === session.user ? t("you") : nameOf(one.from)}</b><time>${moment(one.at)}</time></span>
      <span class="text" dir="auto">${one === own ? marked(hit) : textOf(one.body)}</span>
    </li>`)}</ol>
    <div class="buttons"><button type="button" class="primary" onClick=${() => (close(), open(hit.conversation))}>${t("open_conversation")}</button></div>
  <//>`;
}

/** The messages of these events, as their edits leave them. @param {Logged[]} events */
function messages(events) {
  const edits = new Map(events.filter(({ type }) => type === "edit").map(({ target, body }) => [target, body]));
  return events.filter(({ type }) => type === "message").map((one) => (edits.has(one.seq) ? { ...one, body: edits.get(one.seq) } : one));
}

/** The text of a hit with its marks, which count code points. @param {Hit} hit */
function marked({ snippet, marks }) {
  const points = [...snippet];
  const parts = [];
  let at = 0;
  for (const [start, end] of marks) {
    parts.push(points.slice(at, start).join(""), html`<mark>${points.slice(start, end).join("")}</mark>`);
    at = end;
  }
  return [...parts, points.slice(at).join("")];
}

/** @param {import("./session.js").Session} session @param {string} id */
function title(session, id) {
  const entry = session.entry(id);
  return titleOf(session.user, entry ? entry.view : /** @type {any} */ ({ id, kind: id.startsWith("c:") ? "channel" : "group", title: "", with: null }));
}

export const DIALOGS = { found: FoundDialog };
