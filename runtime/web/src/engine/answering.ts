/** One onnxruntime session in a worker, so that the page stays responsive while it computes. */
import type * as Runtime from "onnxruntime-web/wasm";
import type { Feed, Port, Reply, Request } from "./messages";

type Ort = typeof Runtime;

/** Answer the page's requests with this build of onnxruntime. */
export function answer(ort: Ort, provider: "wasm" | "webgpu"): void {
  let session: Runtime.InferenceSession | null = null;
  self.onmessage = async ({ data }: MessageEvent<Request>): Promise<void> => {
    try {
      if (data.type === "open") session = await load(ort, provider, data);
      const reply = data.type === "open" ? opened(data.id, session!) : await run(ort, session, data);
      const moved = reply.type === "ran" ? reply.outputs.map((output) => output.buffer) : [];
      self.postMessage(reply, { transfer: moved });
    } catch (error) {
      const message = String((error as Error).message ?? error).split("\n")[0]!;
      self.postMessage({ id: data.id, type: "failed", message } satisfies Reply);
    }
  };
}

type Open = Extract<Request, { type: "open" }>;

async function load(ort: Ort, provider: "wasm" | "webgpu", { model, runtime, threads }: Open): Promise<Runtime.InferenceSession> {
  ort.env.wasm.wasmPaths = runtime;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  return ort.InferenceSession.create(model, {
    executionProviders: [provider],
    logSeverityLevel: 3,
    // A pool that spins between two decisions takes the processors from the page and the battery from the phone.
    extra: { session: { intra_op: { allow_spinning: "0" } } },
  });
}

function opened(id: number, session: Runtime.InferenceSession): Reply {
  return { id, type: "opened", inputs: session.inputMetadata.map(port), outputs: session.outputMetadata.map(port) };
}

function port(given: Runtime.InferenceSession.ValueMetadata): Port {
  return given.isTensor ? { name: given.name, type: given.type, shape: given.shape } : { name: given.name, type: "other", shape: [] };
}

async function run(ort: Ort, session: Runtime.InferenceSession | null, request: Extract<Request, { type: "run" }>): Promise<Reply> {
  if (session === null) throw new Error("no model is open");
  const feeds = Object.fromEntries(request.feeds.map((feed) => [feed.name, tensor(ort, feed)]));
  const begin = performance.now();
  const found = await session.run(feeds, request.outputs);
  const elapsedMs = performance.now() - begin;
  // Copied out: a view into the module's memory cannot be handed over.
  const outputs = request.outputs.map((name) => (found[name]!.data as Float32Array).slice());
  return { id: request.id, type: "ran", outputs, elapsedMs };
}

function tensor(ort: Ort, { type, shape, data }: Feed): Runtime.Tensor {
  return type === "bool" ? new ort.Tensor("bool", data as Uint8Array, shape) : new ort.Tensor("float32", data as Float32Array, shape);
}
