/**
 * From a raw sample to the network's tensor, equal to `mars_edge/preprocess.py` within 1e-5.
 * Axes: H height, W width, C channels, T time, F frequency bands, L words.
 */
import { sizeOf, type Sample, type Tensor, type Values } from "./arrays";
import { UsageError } from "./errors";
import { shapeOf, windowSamples, type Modality } from "./modality";
import { resize, type Picture } from "./resize";
import { logMel } from "./sound";
import { wordNumbers } from "./words";

const fround = Math.fround;

/** The tensor of the modality's shape; throws UsageError for a sample that is not what the modality declares. */
export function preprocess(modality: Modality, raw: Sample | string): Tensor {
  if (modality.kind === "text") {
    if (typeof raw !== "string") throw new UsageError(`${modality.name}: sample is an array, expected a text`);
    return tensor(modality, wordNumbers(raw, modality.length!, modality.vocabulary!));
  }
  if (typeof raw === "string") throw new UsageError(`${modality.name}: sample is a text, expected an array`);
  needFinite(modality, raw);
  return tensor(modality, { image, audio, sequence, vector }[modality.kind](modality, raw));
}

function tensor(modality: Modality, data: Float32Array): Tensor {
  return { shape: shapeOf(modality), data };
}

function needFinite(modality: Modality, { data }: Sample): void {
  if (!(data instanceof Float32Array)) return;
  const bad = data.reduce((count, value) => count + Number(!Number.isFinite(value)), 0);
  if (bad > 0) throw new UsageError(`${modality.name}: ${bad} of ${data.length} values are not finite`);
}

function needType(modality: Modality, raw: Sample): void {
  if (raw.dtype !== modality.dtype) {
    throw new UsageError(`${modality.name}: sample is ${raw.dtype}, expected ${modality.dtype}`);
  }
}

/** Clipped to the range and mapped to 0..1, step by step in float32. */
function scaler(modality: Modality): (value: number) => number {
  const [low, high] = modality.range;
  const [from, to, factor] = [fround(low), fround(high), fround(1 / (high - low))];
  const clip = (value: number, a: number, b: number): number => (value < a ? a : value > b ? b : value);
  // Clipped before the subtraction, which can overflow, and after it: the factor is rounded.
  return (value) => clip(fround(fround(clip(value, from, to) - from) * factor), 0, 1);
}

function image(modality: Modality, raw: Sample): Float32Array {
  needType(modality, raw);
  const [height, width, channels] = raw.shape.length === 2 ? [...raw.shape, 1] : raw.shape;
  if (raw.shape.length < 2 || raw.shape.length > 3 || channels !== modality.channels || raw.data.length === 0) {
    const grey = modality.channels === 1 ? " or (H, W)" : "";
    throw new UsageError(
      `${modality.name}: image has shape (${raw.shape.join(", ")}), expected (H, W, ${modality.channels})${grey}`,
    );
  }
  const picture: Picture = { height: height!, width: width!, channels, data: raw.data };
  const [rows, columns] = modality.size!;
  const fits = height === rows && width === columns;
  return planes(fits ? picture : resize(clipped(modality, picture), [rows, columns]), scaler(modality));
}

/** Floats are clipped before they are averaged: the mean of two huge ones of opposite sign could be NaN. */
function clipped(modality: Modality, picture: Picture): Picture {
  if (modality.dtype !== "float32") return picture;
  const [low, high] = modality.range.map(fround) as [number, number];
  return { ...picture, data: Float32Array.from(picture.data, (value) => Math.min(Math.max(value, low), high)) };
}

/** (H, W, C) to scaled (C, H, W). */
function planes({ height, width, channels, data }: Picture, scale: (value: number) => number): Float32Array {
  const area = height * width;
  const out = new Float32Array(channels * area);
  const levels = data instanceof Uint8Array ? Float32Array.from({ length: 256 }, (_, value) => scale(value)) : null;
  for (let c = 0; c < channels; c += 1) {
    for (let at = 0; at < area; at += 1) {
      const value = data[at * channels + c]!;
      out[c * area + at] = levels === null ? scale(value) : levels[value]!;
    }
  }
  return out;
}

function audio(modality: Modality, raw: Sample): Float32Array {
  if (raw.shape.length !== 1 || raw.data.length === 0) {
    throw new UsageError(
      `${modality.name}: audio has shape (${raw.shape.join(", ")}), expected (T) mono samples, T >= 1`,
    );
  }
  if (!(raw.data instanceof Float32Array)) {
    throw new UsageError(`${modality.name}: audio is ${raw.dtype}, expected float32 in -1..1`);
  }
  const window = new Float32Array(windowSamples(modality));
  window.set(raw.data.subarray(Math.max(0, raw.data.length - window.length)));
  return logMel(modality, window);
}

function sequence(modality: Modality, raw: Sample): Float32Array {
  needType(modality, raw);
  const [rows, columns] = raw.shape;
  if (raw.shape.length !== 2 || columns !== modality.channels || rows! < 1) {
    throw new UsageError(
      `${modality.name}: sequence has shape (${raw.shape.join(", ")}), expected (T, ${modality.channels}), T >= 1`,
    );
  }
  const scale = scaler(modality);
  const resampled = resample(raw.data, rows!, columns, modality.length!);
  const out = new Float32Array(sizeOf(shapeOf(modality)));
  for (let at = 0; at < modality.length!; at += 1) {
    for (let c = 0; c < columns; c += 1) out[c * modality.length! + at] = scale(resampled[at * columns + c]!);
  }
  return out;
}

/** Linear interpolation in time, first and last row kept; (T, C) to (length, C). */
function resample(data: Values, rows: number, columns: number, length: number): Float32Array {
  if (rows === length) return Float32Array.from(data);
  const out = new Float32Array(length * columns);
  const step = (rows - 1) / (length - 1);
  for (let i = 0; i < length; i += 1) {
    const at = length === 1 ? 0 : i === length - 1 ? rows - 1 : i * step;
    const before = Math.min(Math.floor(at), rows - 1);
    const after = Math.min(before + 1, rows - 1);
    for (let c = 0; c < columns; c += 1) {
      const [low, high] = [data[before * columns + c]!, data[after * columns + c]!];
      out[i * columns + c] = (high - low) * (at - before) + low;
    }
  }
  return out;
}

function vector(modality: Modality, raw: Sample): Float32Array {
  needType(modality, raw);
  if (raw.shape.length !== 1 || raw.shape[0] !== modality.length) {
    throw new UsageError(
      `${modality.name}: vector has shape (${raw.shape.join(", ")}), expected (${modality.length})`,
    );
  }
  return Float32Array.from(raw.data, scaler(modality));
}
