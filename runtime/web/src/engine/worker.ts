/** The worker that computes on the processor, in WebAssembly with SIMD. */
import * as ort from "onnxruntime-web/wasm";
import { answer } from "./answering";

answer(ort, "wasm");
