/** Keeps the page, its runtime, the model and the rig, so that they work without a network once they were loaded. */
const VERSION = "9a540f6a6bf36f11";
const FILES = ["./","./icon.svg","./mars-edge.js","./ort-wasm-simd-threaded.mjs","./ort-wasm-simd-threaded.wasm","./page.css","./page.js","./page.webmanifest","./shared.js","./worker.js","./worklet.js"];
const PAGE = `page-${VERSION}`;
const DATA = "data";

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(PAGE).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const clean = async () => {
    for (const name of await caches.keys()) if (name !== PAGE && name !== DATA) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(clean());
});

self.addEventListener("fetch", (event) => {
  const { origin, pathname, search } = new URL(event.request.url);
  // An address with a token is for the server to see.
  if (event.request.method !== "GET" || origin !== self.location.origin || search !== "") return;
  event.respondWith(FILES.includes(`.${pathname}`) ? kept(event.request) : fresh(event.request));
});

/** The page's own files never change within a version. */
async function kept(request) {
  return (await caches.match(request)) ?? fetch(request);
}

/** The model and the rig: the server's while it answers, else the last that was seen. */
async function fresh(request) {
  const cache = await caches.open(DATA);
  try {
    const answer = await fetch(request);
    if (answer.ok) await cache.put(request, answer.clone());
    return answer;
  } catch (error) {
    const old = await cache.match(request);
    if (old === undefined) throw error;
    return old;
  }
}
