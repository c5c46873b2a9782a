/** The emoji picker. Its data, made of emojibase's, is read when it is opened for the first time. */

import { languageNow, t } from "./strings.js";
import { html, useEffect, useRef, useState } from "./ui.js";

/** A group's number in the data, and the emoji that stands for it. */
const GROUPS = /** @type {const} */ ([[0, "😀"], [1, "👋"], [3, "🐻"], [4, "🍎"], [5, "🚗"], [6, "⚽"], [7, "💡"], [8, "❤️"], [9, "🏳️"]]);
const RECENT = "linnet-emoji";
const COLUMNS = 8;

/** @typedef {[string, string, string, number]} Row emoji, label, words, group */

/** @type {Map<string, Promise<Row[]>>} */
const loading = new Map();

/** @param {string} language @returns {Promise<Row[]>} */
function data(language) {
  const found = loading.get(language) ?? fetch(new URL(`./emoji/${language}.json`, import.meta.url)).then((answer) => answer.json());
  loading.set(language, found);
  return found;
}

/** @returns {string[]} */
function recent() {
  return (localStorage.getItem(RECENT) ?? "").split(" ").filter(Boolean).slice(0, 16);
}

/** @param {{ choose: (emoji: string) => void, close: () => void }} props */
export function Emoji({ choose, close }) {
  const [rows, setRows] = useState(/** @type {Row[]} */ ([]));
  const [query, setQuery] = useState("");
  const [group, setGroup] = useState(0);
  const [failed, setFailed] = useState(false);
  /** @type {{ current: any }} */
  const box = useRef(null);
  useEffect(() => {
    data(languageNow()).then(setRows, () => setFailed(true));
    box.current.querySelector("input").focus();
  }, []);
  const wanted = query.trim().toLowerCase();
  const shown = wanted ? rows.filter(([, label, words]) => `${label} ${words}`.toLowerCase().includes(wanted)).slice(0, 160) : rows.filter((row) => row[3] === group);
  const labels = new Map(rows.map(([emoji, label]) => [emoji, label]));
  const pick = (/** @type {string} */ emoji) => {
    localStorage.setItem(RECENT, [emoji, ...recent().filter((one) => one !== emoji)].slice(0, 16).join(" "));
    choose(emoji);
  };
  const onKeyDown = (/** @type {any} */ event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      event.preventDefault();
      return close();
    }
    const all = [...box.current.querySelectorAll(".emoji-grid button")];
    const at = all.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: COLUMNS, ArrowUp: -COLUMNS }[/** @type {string} */ (event.key)];
    if (!step || (at < 0 && event.key !== "ArrowDown")) return undefined;
    event.preventDefault();
    return all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + step))]?.focus();
  };
  const grid = (/** @type {readonly string[]} */ emoji) => html`<div class="emoji-grid">${emoji.map((one) => html`<button type="button" key=${one} title=${labels.get(one)} aria-label=${labels.get(one) ?? one} onClick=${() => pick(one)}>${one}</button>`)}</div>`;
  return html`<div class="emoji" role="group" aria-label=${t("emoji")} ref=${box} onKeyDown=${onKeyDown}>
    <input type="search" placeholder=${t("search_emoji")} aria-label=${t("search_emoji")} value=${query} onInput=${(/** @type {any} */ event) => setQuery(event.target.value)} />
    ${!wanted && html`<div class="emoji-groups" role="group" aria-label=${t("emoji_groups")}>${GROUPS.map(([number, face]) => html`<button type="button" key=${number} aria-pressed=${number === group ? "true" : "false"} aria-label=${t(`emoji_${number}`)} title=${t(`emoji_${number}`)} onClick=${() => setGroup(number)}>${face}</button>`)}</div>`}
    <div class="emoji-scroll" tabindex="-1">
      ${!wanted && recent().length > 0 && html`<p>${t("recent")}</p>${grid(recent())}<p>${t(`emoji_${group}`)}</p>`}
      ${failed ? html`<p role="alert">${t("not_loaded")}</p>` : rows.length ? grid(shown.map(([emoji]) => emoji)) : html`<p>${t("loading")}</p>`}
      ${wanted && rows.length > 0 && !shown.length && html`<p>${t("nothing_found")}</p>`}
    </div>
  </div>`;
}
