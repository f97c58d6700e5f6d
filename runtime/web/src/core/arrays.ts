/** Raw samples and tensors: an element type, a shape and the values in C order. */

export type SampleType = "uint8" | "uint16" | "float32";
export type Values = Uint8Array | Uint16Array | Float32Array;

export interface Sample {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: Values;
}

export interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

const KINDS = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array } as const;

/** Number of values that a shape holds. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, side) => product * side, 1);
}

/** A sample over the values of its element type. */
export function sample(data: Values, shape: readonly number[]): Sample {
  const dtype = data instanceof Uint8Array ? "uint8" : data instanceof Uint16Array ? "uint16" : "float32";
  return { dtype, shape, data };
}

/** The bytes of base64 text; throws on anything that is no canonical base64. */
export function fromBase64(text: string): Uint8Array {
  if (!/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text)) throw new Error("not base64");
  const binary = atob(text);
  return Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
}

/** Little-endian bytes as values of an element type; this code runs on little-endian machines only, as WebAssembly. */
export function fromBytes(bytes: Uint8Array, dtype: SampleType): Values {
  const copy = bytes.slice();
  return new KINDS[dtype](copy.buffer, 0, copy.byteLength / KINDS[dtype].BYTES_PER_ELEMENT);
}

/** Rounds half to even, as Python's round and IEEE 754 do. */
export function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}
