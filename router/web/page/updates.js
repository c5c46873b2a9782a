/** A new version waits until the user wants it. */

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

export function update() {
  navigator.serviceWorker.addEventListener("controllerchange", () => location.reload(), { once: true });
  waiting?.postMessage("update");
}
