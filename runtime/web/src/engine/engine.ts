/** The engine for .onnx artifacts in a browser: one graph whose If nodes skip absent modalities and unchosen experts. */
import { sizeOf, type Tensor } from "../core/arrays";
import { manifestText, verify, type Sealed } from "../core/artifact";
import { EngineError, ModelFileError } from "../core/errors";
import { topKGates, type Expert } from "../core/gates";
import { goldenSample, logitsShape, manifestFrom, type Manifest } from "../core/manifest";
import { shapeOf } from "../core/modality";
import type { Feed, Port, Reply, Request } from "./messages";

export interface Inference {
  /** (classes), or (classes, H, W) of a segmentation. */
  readonly logits: Float32Array;
  /** Those that ran, largest gate first. */
  readonly experts: readonly Expert[];
  /** The encoder's output of every modality that took part, to be given again while it is young enough. */
  readonly features: Readonly<Record<string, Tensor>>;
  readonly latencyMs: Readonly<Record<string, number>>;
}

export interface Engine {
  readonly manifest: Manifest;
  /** New samples are encoded, cached features are used as they are; every other modality is missing. */
  infer(samples: Readonly<Record<string, Tensor>>, features: Readonly<Record<string, Tensor>>): Promise<Inference>;
  close(): void;
}

/** Where the engine finds its parts. */
export interface Places {
  /** A worker that runs `worker.ts`. */
  readonly worker: () => Worker;
  /** The folder of onnxruntime's WebAssembly files, as an absolute address. */
  readonly runtime: string;
  readonly threads?: number;
}

export interface Opened {
  readonly engine: Engine;
  readonly sealed: Sealed;
}

/** A verified, checked and tested model; throws ModelFileError or EngineError, as the device does. */
export async function openModel(data: Uint8Array, name: string, places: Places): Promise<Opened> {
  const sealed = await verify(data, name);
  if (sealed.format !== "onnx") throw new ModelFileError(`${name} is a .pte: a browser runs .onnx files`);
  const manifest = manifestFrom(manifestText(sealed));
  const engine = await OnnxEngine.open(manifest, sealed.data, places);
  try {
    await selfTest(engine);
  } catch (error) {
    engine.close();
    throw error;
  }
  return { engine, sealed };
}

/** The engine gives the manifest's golden logits on this device, for every subset recorded. */
export async function selfTest(engine: Engine): Promise<void> {
  const { golden, modalities } = engine.manifest;
  if (golden === null) return;
  const inputs = Object.fromEntries(modalities.map((m) => [m.name, goldenSample(golden, m)]));
  for (const [subset, expected] of Object.entries(golden.logits)) {
    const present = subset.split("+");
    const { logits } = await engine.infer(Object.fromEntries(present.map((name) => [name, inputs[name]!])), {});
    const given = golden.pixels.length === 0 ? logits : compared(engine.manifest, logits);
    const off = expected.map((value, index) => Math.abs(given[index]! - value));
    if (!off.every((difference) => difference <= golden.tolerance)) {
      throw new EngineError(
        `self-test failed: logits for ${subset} are off by ${Math.max(...off)}, allowed ${golden.tolerance}; ` +
          "this browser computes something else than the exporting machine",
      );
    }
  }
}

/** Of a segmentation's logits those of the golden pixels, in their order. */
function compared(manifest: Manifest, logits: Float32Array): number[] {
  const [classes, height, width] = logitsShape(manifest) as [number, number, number];
  return manifest.golden!.pixels.flatMap(([row, column]) =>
    Array.from({ length: classes }, (_, c) => logits[(c * height + row) * width + column]!),
  );
}

// A worker that the browser ended tells nobody.
const ANSWER_MS = 5000;
// Opening compiles the runtime, and the first inference allocates what it needs.
const FIRST_ANSWERS_MS = 60_000;

class OnnxEngine implements Engine {
  private next = 0;
  private warm = false;
  private readonly waiting = new Map<number, { resolve: (reply: Reply) => void; reject: (error: Error) => void }>();
  private closed = false;

  private constructor(
    readonly manifest: Manifest,
    private readonly worker: Worker,
  ) {
    worker.onmessage = ({ data }: MessageEvent<Reply>) => this.receive(data);
    worker.onerror = (event) => this.fail(event.message || "its script cannot be loaded");
  }

  static async open(manifest: Manifest, model: Uint8Array, places: Places): Promise<OnnxEngine> {
    const engine = new OnnxEngine(manifest, places.worker());
    try {
      const request = { type: "open", model, runtime: places.runtime, threads: places.threads ?? 1 } as const;
      const reply = await engine.ask(request, (message) => new ModelFileError(`onnxruntime refuses the model: ${message}`));
      if (reply.type === "opened") checkSignature(reply.inputs, reply.outputs, manifest);
      return engine;
    } catch (error) {
      engine.close();
      throw error;
    }
  }

  async infer(samples: Readonly<Record<string, Tensor>>, features: Readonly<Record<string, Tensor>>): Promise<Inference> {
    checkRequest(this.manifest, samples, features);
    const begin = performance.now();
    const outputs = ["logits", "router_logits", ...this.manifest.names.map((name) => `f_${name}`)];
    const feeds = this.feeds(samples, features);
    const reply = await this.ask({ type: "run", feeds, outputs }, (message) => new EngineError(`onnxruntime failed: ${message}`));
    if (reply.type !== "ran") throw new EngineError("the worker gave another answer than asked for");
    this.warm = true;
    const [logits, router, ...used] = reply.outputs as [Float32Array, Float32Array, ...Float32Array[]];
    checkFinite("router logits", router);
    checkFinite("logits", logits);
    const shapes = this.manifest.featureShapes;
    const taken = this.manifest.names.map((name, index) => [name, { shape: shapes[name]!, data: used[index]! }] as const);
    return {
      logits,
      experts: topKGates(router, this.manifest.activeExperts),
      features: Object.fromEntries(taken.filter(([name]) => name in samples || name in features)),
      latencyMs: { graph: reply.elapsedMs, worker: performance.now() - begin - reply.elapsedMs },
    };
  }

  close(): void {
    this.closed = true;
    this.worker.terminate();
    this.fail("the engine is closed");
  }

  private feeds(samples: Readonly<Record<string, Tensor>>, features: Readonly<Record<string, Tensor>>): Feed[] {
    return this.manifest.modalities.flatMap((m): Feed[] => {
      const [sample, feature] = [samples[m.name], features[m.name]];
      const [full, cached] = [shapeOf(m), this.manifest.featureShapes[m.name]!];
      return [
        { name: `x_${m.name}`, type: "float32", shape: [1, ...full], data: sample?.data ?? new Float32Array(sizeOf(full)) },
        { name: `fresh_${m.name}`, type: "bool", shape: [], data: Uint8Array.of(sample === undefined ? 0 : 1) },
        { name: `feature_${m.name}`, type: "float32", shape: [1, ...cached], data: feature?.data ?? new Float32Array(sizeOf(cached)) },
      ];
    });
  }

  private ask(request: Unnumbered, failure: (message: string) => Error): Promise<Reply> {
    if (this.closed) return Promise.reject(new EngineError("the engine is closed"));
    const id = (this.next += 1);
    return new Promise<Reply>((resolve, reject) => {
      const limit = this.limit(id);
      this.waiting.set(id, {
        resolve: (reply) => {
          clearTimeout(limit);
          if (reply.type === "failed") reject(failure(reply.message));
          else resolve(reply);
        },
        reject: (error) => {
          clearTimeout(limit);
          reject(error);
        },
      });
      this.worker.postMessage({ id, ...request });
    });
  }

  /** Rejects a request that is not answered in time; an answer that comes later is of no use to anybody. */
  private limit(id: number): ReturnType<typeof setTimeout> {
    const ms = this.warm ? ANSWER_MS : FIRST_ANSWERS_MS;
    return setTimeout(() => {
      this.waiting.get(id)?.reject(new EngineError(`the engine's worker gave no answer within ${ms / 1000} s`));
      this.waiting.delete(id);
    }, ms);
  }

  private receive(reply: Reply): void {
    this.waiting.get(reply.id)?.resolve(reply);
    this.waiting.delete(reply.id);
  }

  private fail(message: string): void {
    for (const { reject } of this.waiting.values()) reject(new EngineError(`the engine's worker failed: ${message}`));
    this.waiting.clear();
  }
}

type Unnumbered = Request extends infer R ? (R extends Request ? Omit<R, "id"> : never) : never;

function checkRequest(m: Manifest, samples: Readonly<Record<string, Tensor>>, features: Readonly<Record<string, Tensor>>): void {
  const given = [...Object.keys(samples), ...Object.keys(features)];
  if (given.length === 0) throw new EngineError(`no modality is present; give at least one of: ${m.names.join(", ")}`);
  const unknown = given.find((name) => !m.names.includes(name));
  if (unknown !== undefined) throw new EngineError(`unknown modality '${unknown}'; this model has: ${m.names.join(", ")}`);
  const both = Object.keys(samples).find((name) => name in features);
  if (both !== undefined) throw new EngineError(`modality '${both}' is given as a new sample and as a cached feature`);
  for (const modality of m.modalities) {
    const { name } = modality;
    if (name in samples) checkTensor(`sample of '${name}'`, samples[name]!, shapeOf(modality));
    if (name in features) checkTensor(`cached feature of '${name}'`, features[name]!, m.featureShapes[name]!);
  }
}

function checkTensor(what: string, { shape, data }: Tensor, wanted: readonly number[]): void {
  if (shape.join() !== wanted.join() || data.length !== sizeOf(wanted)) {
    throw new EngineError(`${what}: has shape (${shape.join(", ")}), expected (${wanted.join(", ")})`);
  }
  checkFinite(what, data);
}

function checkFinite(what: string, values: Float32Array): void {
  if (!values.every(Number.isFinite)) throw new EngineError(`${what}: a value is not finite`);
}

/** The graph takes and gives what the manifest implies, in float32 whatever it computes with inside. */
function checkSignature(inputs: readonly Port[], outputs: readonly Port[], m: Manifest): void {
  const real = (shape: readonly number[]): string => `float32 ${[1, ...shape].join()}`;
  const wanted = new Map<string, string>();
  for (const modality of m.modalities) {
    wanted.set(`x_${modality.name}`, real(shapeOf(modality)));
    wanted.set(`fresh_${modality.name}`, "bool ");
    wanted.set(`feature_${modality.name}`, real(m.featureShapes[modality.name]!));
  }
  const given = signature(inputs);
  if (given.size !== wanted.size || [...wanted].some(([name, kind]) => given.get(name) !== kind)) {
    throw new ModelFileError(`the graph's inputs ${shown(given)} are not those of its manifest ${shown(wanted)}`);
  }
  const promised = new Map([["logits", real(logitsShape(m))], ["router_logits", real([m.experts])]]);
  for (const name of m.names) promised.set(`f_${name}`, real(m.featureShapes[name]!));
  const found = signature(outputs);
  for (const [name, kind] of promised) {
    if (found.get(name) !== kind) {
      throw new ModelFileError(`the graph's output ${name} is ${found.get(name) ?? "missing"}, its manifest promises ${kind}`);
    }
  }
}

function signature(ports: readonly Port[]): Map<string, string> {
  return new Map(ports.map(({ name, type, shape }) => [name, `${type} ${shape.join()}`]));
}

function shown(table: ReadonlyMap<string, string>): string {
  return [...table].map(([name, kind]) => `${name}: ${kind}`).join("; ");
}
