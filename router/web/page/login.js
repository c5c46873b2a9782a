/** The first screen: a name and a password, for a new account or one that exists. */

import { accounts, login, Refusal, register, useInTab } from "./accounts.js";
import { LANGUAGES, languageNow, loadLanguage, t } from "./strings.js";
import { Avatar, html, Icon, useEffect, useState } from "./ui.js";

const NAME = /^[A-Za-z0-9._-]{1,64}$/;

/** @param {{ options: { accounts: boolean, bot: string, passwordMin: number } }} props */
export function Login({ options }) {
  const [known, setKnown] = useState(/** @type {import("./accounts.js").Account[]} */ ([]));
  const [fresh, setFresh] = useState(true);
  const [user, setUser] = useState("");
  const [password, setPassword] = useState("");
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const [, setLanguage] = useState(languageNow());
  useEffect(() => {
    document.title = "Linnet";
    void accounts().then((found) => {
      setKnown(found);
      if (found.length && location.hash !== "#/login") setFresh(false);
    });
  }, []);

  const nameWrong = user !== "" && (!NAME.test(user) || user.startsWith("ext--"));
  const short = fresh && [...password].length < options.passwordMin;
  const same = fresh && password !== "" && password.toLowerCase() === user.toLowerCase();
  const ready = NAME.test(user) && !nameWrong && password !== "" && !short && !same && !busy;

  const enter = async () => {
    setBusy(true);
    setError("");
    try {
      if (fresh) await register(user, password);
      await login(user, password);
      if (fresh && options.bot && options.bot !== user) sessionStorage.setItem("linnet-greet", options.bot);
      proceed();
    } catch (reason) {
      setError(refusalText(reason, fresh));
      setBusy(false);
    }
  };
  const onSubmit = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (ready) void enter();
  };
  const choose = (/** @type {string} */ name) => {
    useInTab(name);
    proceed();
  };
  const speak = (/** @type {string} */ code) => loadLanguage(code).then(() => setLanguage(code), () => setError(t("not_loaded")));

  if (!options.accounts) return html`<main class="login"><p class="notice" role="alert">${t("no_accounts")}</p></main>`;
  return html`<main class="login">
    <div class="login-card">
      <div class="brand"><img src=${new URL("./icon.svg", import.meta.url).pathname} alt="" width="56" height="56" /><h1>Linnet</h1></div>
      <p class="lead">${t("lead")}</p>
      ${known.length > 0 &&
      html`<div class="known" role="group" aria-label=${t("continue_as")}>
        <p>${t("continue_as")}</p>
        ${known.map((account) => html`<button type="button" key=${account.user} onClick=${() => choose(account.user)}><${Avatar} name=${account.user} size="small" /><span dir="auto">${account.user}</span></button>`)}
      </div>`}
      <div class="tabs" role="group" aria-label=${t("account")}>
        <button type="button" aria-pressed=${fresh ? "true" : "false"} onClick=${() => (setFresh(true), setError(""))}>${t("new_account")}</button>
        <button type="button" aria-pressed=${fresh ? "false" : "true"} onClick=${() => (setFresh(false), setError(""))}>${t("log_in")}</button>
      </div>
      <form onSubmit=${onSubmit}>
        <label for="user">${t("name")}</label>
        <input id="user" name="username" autocomplete="username" autocapitalize="none" spellcheck=${false} maxlength="64" value=${user} onInput=${(/** @type {any} */ event) => setUser(event.target.value.trim())} aria-describedby="user-rule" aria-invalid=${nameWrong ? "true" : "false"} />
        <p id="user-rule" class=${nameWrong ? "rule wrong" : "rule"}>${t("name_rule")}</p>
        <label for="password">${t("password")}</label>
        <input id="password" name="password" type="password" autocomplete=${fresh ? "new-password" : "current-password"} maxlength="256" value=${password} onInput=${(/** @type {any} */ event) => setPassword(event.target.value)} aria-describedby="password-rule" />
        <p id="password-rule" class=${`rule ${fresh && password !== "" ? (short || same ? "" : "met") : ""}`}>
          ${fresh ? html`${!short && !same && html`<${Icon} name="check" size=${14} />`}${same ? t("password_same") : t("password_rule", { count: options.passwordMin, have: [...password].length })}` : " "}
        </p>
        ${error && html`<p class="notice" role="alert">${error}</p>`}
        <button type="submit" class="primary" disabled=${!ready}>${busy ? t("one_moment") : fresh ? t("create_and_enter") : t("log_in")}</button>
      </form>
      <p class="fine">${t("no_email")}</p>
    </div>
    <nav class="languages" aria-label=${t("language")}>
      ${Object.entries(LANGUAGES).map(([code, name]) => html`<button type="button" key=${code} lang=${code} aria-pressed=${code === languageNow() ? "true" : "false"} onClick=${() => void speak(code)}>${name}</button>`)}
    </nav>
  </main>`;
}

/** Go on with the account of this tab; where an invitation led here, it is followed. */
function proceed() {
  if (location.hash === "#/login") history.replaceState(null, "", "/");
  location.reload();
}

/** @param {unknown} reason @param {boolean} fresh */
function refusalText(reason, fresh) {
  if (!(reason instanceof Refusal)) return String(reason);
  switch (reason.code) {
    case "conflict":
      return t("name_taken");
    case "unauthorized":
      return t("wrong_password");
    case "rate_limited":
      return t("too_often", { count: reason.retryAfter || 1 });
    case "unavailable":
      return t("trouble_api");
    default:
      return fresh && reason.message ? reason.message : t("refused", { why: reason.message || reason.code });
  }
}
