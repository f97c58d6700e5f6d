/**
 * What an application imports from `mars-edge.js`: models, engines, sensors' health and policy.
 *
 *     const { openModel, PLACES } = await import("./mars-edge.js");
 *     const { engine } = await openModel(bytes, "face_antispoof.onnx", PLACES);
 *     const { logits, experts } = await engine.infer({ ir: preprocess(modality, sample) }, {});
 */
import type { Places } from "./engine/engine";

export { manifestText, verify } from "./core/artifact";
export { FactFinder } from "./core/facts";
export { seen, starting, step, summary } from "./core/health";
export { kindOf, limitsOf } from "./core/limits";
export { manifestFrom } from "./core/manifest";
export { decide } from "./core/policy";
export { preprocess } from "./core/preprocess";
export { openModel, selfTest } from "./engine/engine";
export { Connection } from "./loop/connection";
export { Pipeline } from "./loop/pipeline";

/** Half the processors, at most four; one where the page may not share memory between threads. */
function threads(): number {
  return globalThis.crossOriginIsolated ? Math.max(1, Math.min(4, Math.floor(navigator.hardwareConcurrency / 2))) : 1;
}

/** The files beside this page; models run on the processor. */
export const PLACES: Places = {
  worker: () => new Worker(new URL("./engine/worker.ts", import.meta.url), { type: "module" }),
  runtime: new URL("./", location.href).href,
  threads: threads(),
};

/** The same with the graphics processor, for pages that were built with it; the self-test says whether it may be used. */
export const WEBGPU: Places = {
  ...PLACES,
  worker: () => new Worker(new URL("./engine/webgpu.ts", import.meta.url), { type: "module" }),
  threads: 1,
};
