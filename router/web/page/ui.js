/** What all views are made of: templates, icons, avatars, dialogs and menus. */

import { h } from "preact";
import { useEffect, useLayoutEffect, useReducer, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";
import { t } from "./strings.js";

export { render } from "preact";
export { useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "./vendor/hooks.js";

export const html = htm.bind(h);

/** @type {Record<string, string>} */
const PATHS = {
  back: "M15 5l-7 7 7 7",
  block: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM5.700 5.700l12.600 12.600",
  camera: "M4 8h3l2-3h6l2 3h3v11H4zM12 10a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7z",
  chat: "M4 5h16v11H11l-5 4v-4H4z",
  clip: "M20 11l-8.500 8.500a5 5 0 0 1-7-7L13 4a3.400 3.400 0 0 1 4.800 4.800l-8.300 8.300a1.700 1.700 0 0 1-2.400-2.400L14.500 7.300",
  bell: "M6 10a6 6 0 0 1 12 0v4l2 3H4l2-3zM10 20h4",
  check: "M5 13l4 4L19 7",
  checks: "M2 13l4 4L15 7M10 16l1 1L21 7",
  clock: "M12 7v5l3 2M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM5 15V4h10",
  device: "M7 3h10v18H7zM11 18h2",
  down: "M6 9l6 6 6-6",
  edit: "M4 20h4L19 9l-4-4L4 16z",
  file: "M6 3h8l5 5v13H6zM14 3v5h5",
  flag: "M6 21V4M6 4h12l-3 4 3 4H6",
  forward: "M14 6l6 6-6 6M20 12H9a5 5 0 0 0-5 5v1",
  group: "M9 11a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7zM2.500 20a6.500 6.500 0 0 1 13 0M16 4.500a3.500 3.500 0 0 1 0 6.500M18.500 14a6.500 6.500 0 0 1 3 6",
  hash: "M5 9h15M4 15h15M10 4L8 20M16 4l-2 16",
  key: "M8 11a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM11 12l8-8M15 8l3 3",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
  lock: "M6 11h12v9H6zM8.500 11V8a3.500 3.500 0 0 1 7 0v3",
  mic: "M12 3a3 3 0 0 0-3 3v6a3 3 0 0 0 6 0V6a3 3 0 0 0-3-3zM5.500 11.500a6.500 6.500 0 0 0 13 0M12 18v3",
  more: "M12 5.500v.01M12 12v.01M12 18.500v.01",
  next: "M9 5l7 7-7 7",
  out: "M10 4H5v16h5M15 8l4 4-4 4M19 12H9",
  pause: "M8 5v14M16 5v14",
  person: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.500 20.500a7.500 7.500 0 0 1 15 0",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.500 9v.01",
  play: "M8 5l11 7-11 7z",
  plus: "M12 5v14M5 12h14",
  reply: "M10 6l-6 6 6 6M4 12h11a5 5 0 0 1 5 5v1",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l5 5",
  send: "M4 12l16-8-6 16-3-6z",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  smile: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM9 10v.01M15 10v.01M8.500 14a4 4 0 0 0 7 0",
  stop: "M7 7h10v10H7z",
  tab: "M4 7h9v10H4zM10 4h10v10h-4",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  warn: "M12 8v5M12 16.500v.01M12 3l9.500 17H2.500z",
};

/** @param {{ name: string, size?: number }} props */
export function Icon({ name, size = 20 }) {
  const flip = name === "back" || name === "send" || name === "reply" || name === "forward" || name === "out" || name === "next";
  return html`<svg class=${flip ? "icon flip" : "icon"} width=${size} height=${size} viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}

/** A button that is only an icon; its label is its name and its tip. @param {any} props */
export function IconButton({ icon, label, className = "", ...more }) {
  return html`<button type="button" class=${`icon-button ${className}`} aria-label=${label} title=${label} ...${more}><${Icon} name=${icon} /></button>`;
}

/** A round picture, else one made of a name: its first letter, and a colour that follows from `of`. @param {{ name: string, of?: string, picture?: string | undefined, kind?: string, online?: boolean, size?: string }} props */
export function Avatar({ name, of = name, picture, kind = "", online = false, size = "" }) {
  let sum = 0;
  for (const character of of) sum = (sum * 31 + (character.codePointAt(0) ?? 0)) % 9973;
  const letters = [...name.trim()];
  return html`<span class=${`avatar hue-${sum % 8} ${size}`} aria-hidden="true">
    ${picture ? html`<img src=${picture} alt="" />` : kind === "channel" ? html`<${Icon} name="hash" />` : (letters[0] ?? "?").toLocaleUpperCase()}
    ${online && html`<span class="dot"></span>`}
  </span>`;
}

/**
 * A dialog: the browser's own, so that focus stays in it, and returns when it is closed.
 *
 * @param {{ title: string, close: () => void, children?: any, className?: string }} props
 */
export function Dialog({ title, close, children, className = "" }) {
  /** @type {{ current: any }} */
  const box = useRef(null);
  useEffect(() => {
    const dialog = box.current;
    const before = document.activeElement;
    dialog.showModal();
    // Who has a keyboard can type at once; on a phone a field that has the focus would bring up the keyboard over the dialog.
    if (matchMedia("(pointer: fine)").matches) dialog.querySelector("input:not(.unseen, [type=checkbox]), textarea, select")?.focus();
    return () => {
      dialog.close();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  const pressed = useRef(/** @type {any} */ (undefined)); // a text that is selected beyond the edge closes nothing
  const onPointerDown = (/** @type {any} */ event) => (pressed.current = event.target);
  const onClick = (/** @type {any} */ event) => event.target === box.current && pressed.current === box.current && close();
  const onCancel = (/** @type {Event} */ event) => {
    event.preventDefault();
    close();
  };
  const onClose = () => box.current && close(); // a browser may close it without asking
  return html`<dialog ref=${box} class=${className} aria-label=${title} onCancel=${onCancel} onClose=${onClose} onPointerDown=${onPointerDown} onClick=${onClick}>
    <div class="dialog-body">
      <header><h2>${title}</h2><${IconButton} icon="close" label=${t("close")} onClick=${close} /></header>
      ${children}
    </div>
    <${Notice} here=${true} />
  </dialog>`;
}

const EDGE = 8; // pixels between a menu and the edge of the window
const NOTICE_MS = 5000;
let notice = "";
/** @type {Set<() => void>} */
const noticed = new Set();

/** Say something that needs no answer. @param {string} text */
export function say(text) {
  notice = text;
  noticed.forEach((show) => show());
  if (text) setTimeout(() => notice === text && say(""), NOTICE_MS);
}

/** What was said last. The page has one, and each dialog, because all around a dialog is out of reach while it is open. @param {{ here: boolean }} props */
export function Notice({ here }) {
  const [, refresh] = useReducer((/** @type {number} */ n) => n + 1, 0);
  useEffect(() => {
    const show = () => refresh(0);
    noticed.add(show);
    return () => void noticed.delete(show);
  }, []);
  return html`<p class=${here && notice ? "toast shown" : "toast"} role="status">${here && notice}</p>`;
}

/**
 * A button that opens a menu. Items are buttons; arrow keys move between them, Escape closes the menu.
 *
 * @param {{ label: string, icon?: string, items: () => ({ label: string, icon?: string, danger?: boolean, act: () => void } | false)[], className?: string, top?: any, face?: any }} props
 */
export function Menu({ label, icon = "more", items, className = "", top, face }) {
  const [open, setOpen] = useState(false);
  const [place, setPlace] = useState("");
  /** @type {{ current: any }} */
  const box = useRef(null);
  const close = (/** @type {boolean} */ refocus) => {
    setOpen(false);
    if (refocus) box.current?.querySelector("button")?.focus();
  };
  // Not in an effect, which comes after the paint: a key that is pressed before would find the focus still on the button.
  useLayoutEffect(() => {
    if (!open) return undefined;
    box.current.querySelector('[role="menuitem"]')?.focus();
    const list = box.current.querySelector(".menu-list");
    list.scrollIntoView({ block: "nearest" });
    const { left, right } = list.getBoundingClientRect();
    list.style.translate = `${Math.max(EDGE - left, Math.min(0, innerWidth - EDGE - right))}px`; // on a phone neither side may have the room
    const outside = (/** @type {any} */ event) => box.current?.contains(event.target) || close(false);
    document.addEventListener("pointerdown", outside);
    return () => document.removeEventListener("pointerdown", outside);
  }, [open]);
  const onKeyDown = (/** @type {any} */ event) => {
    const all = [...box.current.querySelectorAll('[role="menuitem"]')];
    const step = { ArrowDown: 1, ArrowUp: -1, ArrowRight: 1, ArrowLeft: -1 }[/** @type {string} */ (event.key)];
    if (event.key === "Escape" && open) {
      event.stopPropagation();
      close(true);
    } else if (event.key === "Tab") {
      setOpen(false);
    } else if (step && open) {
      event.preventDefault();
      event.stopPropagation(); // the list around it has arrow keys, too
      all[(all.indexOf(document.activeElement) + step + all.length) % all.length]?.focus();
    }
  };
  const toggle = () => {
    const here = box.current.getBoundingClientRect();
    setPlace(`${here.bottom > innerHeight * 0.55 ? "up" : ""} ${here.left > innerWidth / 2 || here.left + 300 > innerWidth ? "to-left" : "to-right"}`);
    setOpen(!open);
  };
  return html`<span class=${`menu ${className} ${open ? "open" : ""}`} ref=${box} onKeyDown=${onKeyDown}>
    <button type="button" class=${face ? "menu-face" : "icon-button"} aria-label=${face ? undefined : label} title=${label} aria-haspopup="menu" aria-expanded=${open ? "true" : "false"} onClick=${toggle}>
      ${face ?? html`<${Icon} name=${icon} />`}
    </button>
    ${open &&
    html`<div class=${`menu-list ${place}`} role="menu" aria-label=${label}>
      ${top?.(() => close(true))}
      ${items().map(
        (item) =>
          item &&
          html`<button type="button" role="menuitem" class=${item.danger ? "danger" : ""} onClick=${() => (close(true), item.act())}>
            ${item.icon && html`<${Icon} name=${item.icon} />`}${item.label}
          </button>`,
      )}
    </div>`}
  </span>`;
}

/** Texts for what the server refuses; of other codes its own words are shown. */
const KNOWN = ["blocked", "conflict", "forbidden", "not_found", "quota", "rate_limited", "read_only", "unauthorized", "unavailable"];

/** Why something did not work. @param {any} error */
export function whyOf(error) {
  const code = String(error?.code ?? "");
  return KNOWN.includes(code) ? t(`error_${code}`) : String(error?.message || code || error);
}

/** Call a function once per frame, however often it is asked for. @param {() => void} work */
export function once(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    setTimeout(() => {
      asked = false;
      work();
    }, 16);
  };
}
