/** Texts in the user's language. English is always there; another language is one module more. */

import english from "./lang/en.js";

/** @typedef {keyof typeof import("./lang/en.js").default} Key */

export const LANGUAGES = { en: "English", de: "Deutsch", zh: "中文" };
const CHOSEN = "linnet-language";

/** @type {Record<string, string>} */
let texts = english;
let language = "en";
let plural = new Intl.PluralRules("en");

/** The language of the page now. */
export function languageNow() {
  return language;
}

/** @returns {string} */
function wanted() {
  const chosen = localStorage.getItem(CHOSEN);
  const known = [chosen, ...navigator.languages].map((one) => one?.slice(0, 2) ?? "");
  return known.find((one) => one in LANGUAGES) ?? "en";
}

/** Load the language that the user chose, or that the browser asks for. @param {string} [chosen] */
export async function loadLanguage(chosen) {
  const next = chosen ?? wanted();
  texts = next === "en" ? english : (await import(`./lang/${next}.js`)).default;
  if (chosen) localStorage.setItem(CHOSEN, chosen);
  language = next;
  plural = new Intl.PluralRules(language);
  document.documentElement.lang = language;
}

/**
 * A text, with its values filled in. If there is a `count`, the form of the text follows it.
 *
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 * @returns {string}
 */
export function t(key, values = {}) {
  const form = "count" in values ? `${key}_${plural.select(Number(values.count))}` : key;
  const text = texts[form] ?? texts[`${key}_other`] ?? texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}
