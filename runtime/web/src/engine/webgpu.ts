/** The worker that computes on the graphics processor; what it cannot do there, it does in WebAssembly. */
import * as ort from "onnxruntime-web/webgpu";
import { answer } from "./answering";

answer(ort, "webgpu");
