// The service worker of one version. It installs all files of that version, or fails; it never touches the API.
// A new version waits until the page says that the user wants it. The page itself is fetched again behind each visit, because
// its policy (the gateways) and its options (the settings) change without a new version.
const CACHE = "linnet-%DIGEST%";
const FILES = new Set(%FILES%);

self.addEventListener("install", (event) => {
  event.waitUntil((async () => {
    const cache = await caches.open(CACHE);
    try {
      const page = await current();
      if (!page) throw new Error("the page is of another version, or may not be kept now");
      await cache.put("/", page);
      await cache.addAll([...FILES, "/web/boot.js"]);
    } catch (error) {
      await caches.delete(CACHE);
      throw error;
    }
  })());
});

// The page as it is served now, if it is of this version, and the router knows the gateways.
async function current() {
  const page = await fetch("/", { cache: "no-store" });
  if (!page.ok || page.headers.get("cache-control") === "no-store") return undefined;
  return (await page.clone().text()).includes("/web/%DIGEST%/") ? page : undefined;
}

async function renew() {
  const page = await current();
  if (page) await (await caches.open(CACHE)).put("/", page);
}

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) if (name.startsWith("linnet-") && name !== CACHE) await caches.delete(name);
    await self.clients.claim();
  })());
});

self.addEventListener("message", (event) => {
  if (event.data === "update") self.skipWaiting();
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== location.origin) return;
  const page = request.mode === "navigate" && url.pathname === "/";
  if (!page && !FILES.has(url.pathname) && url.pathname !== "/web/boot.js") return;
  if (page) event.waitUntil(renew().catch(() => undefined)); // without a network the kept one stays
  event.respondWith((async () => {
    const kept = await (await caches.open(CACHE)).match(page ? "/" : url.pathname);
    return kept ?? fetch(request);
  })());
});
