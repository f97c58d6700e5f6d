/** What the page and the worker that holds the model say to each other. */

export type Type = "float32" | "bool";

export interface Port {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly (number | string)[];
}

export interface Feed {
  readonly name: string;
  readonly type: Type;
  readonly shape: readonly number[];
  readonly data: Float32Array | Uint8Array;
}

export type Request =
  | { readonly id: number; readonly type: "open"; readonly model: Uint8Array; readonly runtime: string; readonly threads: number }
  | { readonly id: number; readonly type: "run"; readonly feeds: readonly Feed[]; readonly outputs: readonly string[] };

export type Reply =
  | { readonly id: number; readonly type: "opened"; readonly inputs: readonly Port[]; readonly outputs: readonly Port[] }
  | { readonly id: number; readonly type: "ran"; readonly outputs: readonly Float32Array[]; readonly elapsedMs: number }
  | { readonly id: number; readonly type: "failed"; readonly message: string };
