/**
 * A new version waits until the user wants it. Where no worker keeps this one, its modules may be gone when they are wanted;
 * then the page is loaded again, in the new version.
 */

/** @type {ServiceWorker | null} */
let waiting = null;
/** @type {Set<() => void>} */
const listeners = new Set();

/** @param {ServiceWorkerRegistration} registration */
export function watchWorker(registration) {
  const look = () => {
    if (!registration.waiting || !navigator.serviceWorker.controller) return;
    waiting = registration.waiting;
    listeners.forEach((listener) => listener());
  };
  look();
  registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", look));
}

/** @param {() => void} listener */
export function onUpdate(listener) {
  listeners.add(listener);
  if (waiting) listener();
  return () => void listeners.delete(listener);
}

/**
 * Load a module that is needed now. If it is gone because another version is served, the page begins again.
 *
 * @template T @param {() => Promise<T>} load @returns {Promise<T>}
 */
export async function late(load) {
  try {
    return await load();
  } catch (error) {
    const page = await fetch("/", { cache: "no-store" }).catch(() => undefined);
    const here = new URL(".", import.meta.url).pathname;
    if (!page?.ok || (await page.text()).includes(here)) throw error; // no connection, say
    location.reload();
    return new Promise(() => {});
  }
}

export function update() {
  navigator.serviceWorker.addEventListener("controllerchange", () => location.reload(), { once: true });
  waiting?.postMessage("update");
}
