/** Finishes the build: onnxruntime's files beside the page, the list of what works offline, a stamp of the sources. */
import { createHash } from "node:crypto";
import { copyFileSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

const OUTPUT = process.argv[2] ?? "../mars_runtime/web/page";
// 27 MB as it is, beyond what a page should weigh: left out unless asked for.
const WEBGPU = process.env.MARS_EDGE_WEBGPU === "1";
const RUNTIME = "node_modules/onnxruntime-web/dist";
const SOURCES = ["index.html", "package-lock.json", "pack.mjs", "vite.config.ts", "src", "static"];

/** Every source file in a fixed order; `tests/unit/test_web_page.py` computes the same. */
function filesOf(path) {
  const entries = readdirSync(path, { withFileTypes: true }).map((entry) => join(path, entry.name) + (entry.isDirectory() ? "/" : ""));
  return entries.flatMap((entry) => (entry.endsWith("/") ? filesOf(entry.slice(0, -1)) : [entry]));
}

function stamp() {
  const files = SOURCES.flatMap((path) => (path.includes(".") ? [path] : filesOf(path))).sort();
  const digest = createHash("sha256");
  for (const file of files) digest.update(file).update("\0").update(readFileSync(file)).update("\0");
  return digest.digest("hex");
}

const builds = WEBGPU ? ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"] : ["ort-wasm-simd-threaded"];
for (const build of builds) {
  copyFileSync(join(RUNTIME, `${build}.mjs`), join(OUTPUT, `${build}.mjs`));
  // 14 MB as it is, 4 MB like this; every browser takes it so.
  writeFileSync(join(OUTPUT, `${build}.wasm.gz`), gzipSync(readFileSync(join(RUNTIME, `${build}.wasm`)), { level: 9 }));
}

const served = readdirSync(OUTPUT).map((name) => name.replace(/\.gz$/, "")).filter((name) => !["sw.js", "build.json"].includes(name) && !/webgpu|asyncify/.test(name));
const version = createHash("sha256").update(stamp()).digest("hex").slice(0, 16);
const worker = readFileSync(join(OUTPUT, "sw.js"), "utf-8")
  .replace("__VERSION__", version)
  .replace("__FILES__", JSON.stringify(["./", ...served.filter((name) => name !== "index.html").map((name) => `./${name}`)]));
writeFileSync(join(OUTPUT, "sw.js.part"), worker);
renameSync(join(OUTPUT, "sw.js.part"), join(OUTPUT, "sw.js"));

const onnxruntime = JSON.parse(readFileSync("node_modules/onnxruntime-web/package.json", "utf-8")).version;
writeFileSync(join(OUTPUT, "build.json"), `${JSON.stringify({ onnxruntime_web: onnxruntime, sources_sha256: stamp() }, null, 1)}\n`);
