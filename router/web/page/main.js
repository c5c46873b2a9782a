/**
 * Where the page begins: the language, the account of this tab, then its client, whose socket opens before the views are loaded.
 *
 * A file that is gone (a deploy between two requests) reloads the page, once.
 */

import { accountOfTab, endTokens } from "./accounts.js";
import { options } from "./options.js";
import { loadLanguage } from "./strings.js";
import { html, render } from "./ui.js";

const RELOADED = "linnet-reloaded";

async function start() {
  const root = /** @type {HTMLElement} */ (document.getElementById("app"));
  const [account] = await Promise.all([accountOfTab(), loadLanguage()]);
  if (account && location.hash !== "#/login") {
    const views = import("./shell.js"); // loaded beside the session, which does not wait for them
    const { Session } = await import("./session.js");
    const session = await Session.open(account.user);
    session.start();
    const { Shell } = await views;
    render(html`<${Shell} session=${session} />`, root);
  } else {
    const { Login } = await import("./login.js");
    render(html`<${Login} options=${options()} />`, root);
  }
  sessionStorage.removeItem(RELOADED);
  void endTokens().catch(() => undefined); // it is tried again with the next page
  if (navigator.serviceWorker) void registerWorker();
}

async function registerWorker() {
  const policy = globalThis.trustedTypes?.createPolicy("linnet", {
    createScriptURL: (/** @type {string} */ url) => {
      if (url !== "/sw.js") throw new TypeError("only /sw.js is a service worker here");
      return url;
    },
  });
  const url = policy?.createScriptURL("/sw.js") ?? "/sw.js";
  const { watchWorker } = await import("./updates.js");
  await navigator.serviceWorker.register(/** @type {string} */ (url)).then((made) => made && watchWorker(made), () => undefined); // it may be refused: the page works without
}

start().catch((error) => {
  if (error instanceof TypeError && /import|module/i.test(error.message) && !sessionStorage.getItem(RELOADED)) {
    sessionStorage.setItem(RELOADED, "1");
    location.reload();
    return;
  }
  const text = document.createElement("p");
  text.className = "fatal";
  text.setAttribute("role", "alert");
  text.textContent = `Linnet cannot start: ${error.message}`;
  document.getElementById("app")?.replaceChildren(text);
  throw error;
});
