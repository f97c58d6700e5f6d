/** The test vectors of `contract/`, which every implementation reproduces. */
import { readFileSync } from "node:fs";
import { fromBase64, fromBytes, type Sample, type SampleType, type Values } from "../src/core/arrays";

/** A file of vectors. */
export function vectors<T>(name: string): T[] {
  return JSON.parse(readFileSync(new URL(`../../../contract/vectors/${name}.json`, import.meta.url), "utf-8")) as T[];
}

export interface StoredArray {
  dtype: string;
  shape: number[];
  data: string;
}

/** A stored array; element types that no sensor has keep their name and are read as bytes. */
export function stored(array: StoredArray): Sample {
  const known = ["uint8", "uint16", "float32"].includes(array.dtype);
  return { dtype: array.dtype, shape: array.shape, data: fromBytes(fromBase64(array.data), known ? (array.dtype as SampleType) : "uint8") };
}

/** The picture (H, W) that repeats `tile` so often down and across. */
export function repeated(tile: Sample, [down, across]: readonly [number, number]): Sample {
  const [height, width] = [tile.shape[0]! * down, tile.shape[1]! * across];
  const data = Uint8Array.from({ length: height * width }, (_, i) => {
    return tile.data[(Math.floor(i / width) % tile.shape[0]!) * tile.shape[1]! + (i % tile.shape[1]!)]!;
  });
  return { dtype: tile.dtype, shape: [height, width], data };
}

/** The largest absolute difference. */
export function apart(given: Values, wanted: Values): number {
  if (given.length !== wanted.length) return Infinity;
  let largest = 0;
  for (let i = 0; i < given.length; i += 1) {
    const difference = Math.abs(given[i]! - wanted[i]!);
    // Not Math.max: a NaN must not vanish.
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

/** A number, or the infinity that JSON has to write as text. */
export const number = (value: number | string | null): number | null => (value === "inf" ? Infinity : (value as number | null));
