/** What the sections are made of: a page of rows with more behind them, a question with fields, times. */

import { h } from "preact";
import { useEffect, useRef, useState } from "../page/vendor/hooks.js";
import htm from "../page/vendor/htm.js";

export const html = htm.bind(h);

/** @param {number | null | undefined} ms */
export const when = (ms) => (ms ? new Date(ms).toLocaleString() : "–");

/** What a section loads, and how it fails; `again` loads it anew. @param {() => Promise<any>} load @param {any[]} inputs */
export function useLoaded(load, inputs) {
  const [found, setFound] = useState(/** @type {any} */ (undefined));
  const [error, setError] = useState("");
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let counts = true;
    load().then((value) => counts && (setFound(value), setError("")), (failed) => counts && setError(failed.message));
    return () => { counts = false; };
  }, [...inputs, turn]);
  return { found, error, again: () => setTurn((n) => n + 1) };
}

/** Pages of a list: the first at once, others when asked for. An entry that comes twice is shown once. @param {(page: any) => Promise<{ rows: any[], next: any, missing?: number }>} load @param {(row: any) => string} key @param {any[]} inputs */
export function usePages(load, key, inputs) {
  const [rows, setRows] = useState(/** @type {any[]} */ ([]));
  const [next, setNext] = useState(/** @type {any} */ (undefined));
  const [missing, setMissing] = useState(0);
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(true);
  const [turn, setTurn] = useState(0);
  const current = useRef(0);
  const more = async (/** @type {any} */ from, /** @type {any[]} */ before) => {
    const mine = ++current.current;
    setBusy(true);
    try {
      const page = await load(from);
      if (mine !== current.current) return;
      setRows([...new Map([...before, ...page.rows].map((row) => [key(row), row])).values()]);
      setNext(page.next);
      setMissing((some) => Math.max(before.length > 0 ? some : 0, page.missing ?? 0));
      setError("");
    } catch (failed) {
      if (mine === current.current) setError(/** @type {Error} */ (failed).message);
    }
    if (mine === current.current) setBusy(false);
  };
  useEffect(() => void more(undefined, []), [...inputs, turn]);
  return { rows, error, busy, missing, more: next === undefined ? undefined : () => void more(next, rows), again: () => setTurn((n) => n + 1) };
}

/** @param {{ pages: ReturnType<typeof usePages>, label: string, empty: string, children?: any }} props */
export function Pages({ pages, label, empty, children }) {
  return html`
    ${pages.error && html`<p class="error" role="alert">${pages.error}</p>`}
    ${pages.missing > 0 && html`<p class="error" role="alert">Not everything is shown: ${pages.missing} of 512 parts are on a server that does not answer. Load this page again later.</p>`}
    ${pages.rows.length > 0 ? html`<div class="wide" tabindex="0" role="region" aria-label=${`Table: ${label}`}>${children}</div>` : !pages.busy && !pages.error && html`<p class="soft">${pages.more ? "None so far: there are more to look at." : empty}</p>`}
    <div class="row" role="status">
      ${pages.busy ? html`<span class="soft">Loading …</span>` : pages.more && html`<button type="button" onClick=${pages.more}>Load more</button>`}
    </div>`;
}

/**
 * A question before an act: its fields are asked for, and a refusal is shown in it.
 * @param {{ title: string, text?: string, fields?: { name: string, label: string, required?: boolean, type?: string }[], act: (values: Record<string, string>) => Promise<any>, close: () => void }} props
 */
export function Ask({ title, text, fields = [], act, close }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const [error, setError] = useState("");
  const [said, setSaid] = useState("");
  const acting = useRef(false);
  useEffect(() => dialog.current?.showModal(), []);
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    if (acting.current) return; // a second click: it would reset a password twice, and show either token
    acting.current = true;
    const values = Object.fromEntries([...new FormData(/** @type {HTMLFormElement} */ (event.currentTarget))].map(([name, value]) => [name, String(value)]));
    try {
      const answer = await act(values);
      if (typeof answer === "string") setSaid(answer);
      else close();
    } catch (failed) {
      setError(/** @type {Error} */ (failed).message);
    }
    acting.current = false;
  };
  return html`<dialog ref=${dialog} onClose=${close} aria-labelledby="ask-title">
    <form onSubmit=${submit}>
      <h2 id="ask-title">${title}</h2>
      ${text && html`<p>${text}</p>`}
      ${fields.map((field) => html`<label key=${field.name}>${field.label}<input name=${field.name} type=${field.type ?? "text"} required=${field.required} maxlength="500" autocomplete="off" /></label>`)}
      ${error && html`<p class="error" role="alert">${error}</p>`}
      ${said && html`<p role="status" class="mono">${said}</p>`}
      <div class="row">
        ${!said && html`<button class="main">${title}</button>`}
        <button type="button" onClick=${() => dialog.current?.close()}>${said ? "Close" : "Cancel"}</button>
      </div>
    </form>
  </dialog>`;
}
