/** Holds one onnxruntime session, so that the page stays responsive while it computes. */
import * as ort from "onnxruntime-web/wasm";
import type { Feed, Port, Reply, Request } from "./messages";

let session: ort.InferenceSession | null = null;

self.onmessage = async ({ data }: MessageEvent<Request>): Promise<void> => {
  try {
    const reply = data.type === "open" ? await open(data) : await run(data);
    const moved = reply.type === "ran" ? reply.outputs.map((output) => output.buffer) : [];
    self.postMessage(reply, { transfer: moved });
  } catch (error) {
    const message = String((error as Error).message ?? error).split("\n")[0]!;
    self.postMessage({ id: data.id, type: "failed", message } satisfies Reply);
  }
};

async function open(request: Extract<Request, { type: "open" }>): Promise<Reply> {
  ort.env.wasm.wasmPaths = request.runtime;
  ort.env.wasm.numThreads = request.threads;
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(request.model, { executionProviders: ["wasm"] });
  return {
    id: request.id,
    type: "opened",
    inputs: session.inputMetadata.map(port),
    outputs: session.outputMetadata.map(port),
  };
}

function port(given: ort.InferenceSession.ValueMetadata): Port {
  return given.isTensor ? { name: given.name, type: given.type, shape: given.shape } : { name: given.name, type: "other", shape: [] };
}

async function run(request: Extract<Request, { type: "run" }>): Promise<Reply> {
  if (session === null) throw new Error("no model is open");
  const feeds = Object.fromEntries(request.feeds.map((feed) => [feed.name, tensor(feed)]));
  const begin = performance.now();
  const found = await session.run(feeds, request.outputs);
  const elapsedMs = performance.now() - begin;
  // Copied out: a view into the module's memory cannot be handed over.
  const outputs = request.outputs.map((name) => (found[name]!.data as Float32Array).slice());
  return { id: request.id, type: "ran", outputs, elapsedMs };
}

function tensor({ type, shape, data }: Feed): ort.Tensor {
  return type === "bool" ? new ort.Tensor("bool", data as Uint8Array, shape) : new ort.Tensor("float32", data as Float32Array, shape);
}
