/** What one modality is: kind, shape, value range, rate; as `mars_edge/modality.py` checks it. */
import { roundHalfEven, type SampleType } from "./arrays";
import { UsageError } from "./errors";
import { Fraction, type Json } from "./json";

export type Kind = "image" | "audio" | "sequence" | "vector" | "text";

export interface Modality {
  readonly name: string;
  readonly kind: Kind;
  readonly channels: number;
  /** Height and width of an image in pixels after preprocessing. */
  readonly size: readonly [number, number] | null;
  readonly dtype: SampleType;
  readonly range: readonly [number, number];
  readonly rateHz: number;
  readonly windowS: number | null;
  readonly melBands: number;
  readonly frameS: number;
  readonly length: number | null;
  readonly vocabulary: number | null;
}

const KEYS = {
  name: "name", kind: "kind", channels: "channels", size: "size", dtype: "dtype", range: "range", rate_hz: "rateHz",
  window_s: "windowS", mel_bands: "melBands", frame_s: "frameS", length: "length", vocabulary: "vocabulary",
} as const satisfies Record<string, keyof Modality>; // prettier-ignore
const DEFAULTS: Omit<Modality, "name" | "kind"> = {
  channels: 1, size: null, dtype: "float32", range: [0, 1], rateHz: 15, windowS: null, melBands: 40, frameS: 0.032,
  length: null, vocabulary: null,
}; // prettier-ignore
const FIELDS_OF_KIND: Record<Kind, readonly string[]> = {
  image: ["channels", "size", "dtype", "range"],
  audio: ["window_s", "mel_bands", "frame_s"],
  sequence: ["channels", "length", "dtype", "range"],
  vector: ["length", "dtype", "range"],
  text: ["length", "vocabulary"],
};
const LARGEST = 2 ** 31;
// A narrower range overflows the float32 factor that scales it to 0..1.
const NARROWEST = 1e-30;

/** Audio samples in one window. */
export const windowSamples = (m: Modality): number => roundHalfEven(m.windowS! * m.rateHz);
/** Audio samples in one analysis frame. */
export const frameSamples = (m: Modality): number => roundHalfEven(m.frameS * m.rateHz);
/** Audio samples between the starts of two analysis frames. */
export const hopSamples = (m: Modality): number => Math.floor(frameSamples(m) / 2);
/** Analysis frames that fit wholly into one window. */
export const audioFrames = (m: Modality): number =>
  1 + Math.floor((windowSamples(m) - frameSamples(m)) / hopSamples(m));

/** Shape of the preprocessed tensor without the batch axis. */
export function shapeOf(m: Modality): number[] {
  switch (m.kind) {
    case "image":
      return [m.channels, ...m.size!];
    case "audio":
      return [1, m.melBands, audioFrames(m)];
    case "text":
      return [2, m.length!];
    case "sequence":
      return [m.channels, m.length!];
    case "vector":
      return [m.length!];
  }
}

/** The modality that a JSON object describes; throws UsageError for an unknown key or a value that is not allowed. */
export function modalityFrom(table: { [key: string]: Json }): Modality {
  const unknown = Object.keys(table).filter((key) => !Object.hasOwn(KEYS, key)).sort()[0];
  if (unknown !== undefined) {
    throw new UsageError(`unknown modality key '${unknown}'; known keys: ${Object.keys(KEYS).join(", ")}`);
  }
  for (const key of ["name", "kind"]) {
    if (!Object.hasOwn(table, key)) throw new UsageError(`modality table lacks '${key}'; it needs name and kind`);
  }
  check(table);
  const given = Object.entries(table).map(([key, value]) => [KEYS[key as keyof typeof KEYS], numbers(value)]);
  return { ...DEFAULTS, ...(Object.fromEntries(given) as Pick<Modality, "name" | "kind">) };
}

function numbers(value: Json): unknown {
  return value instanceof Fraction ? value.value : Array.isArray(value) ? value.map(numbers) : value;
}

function check(table: { [key: string]: Json }): void {
  const { name, kind } = table;
  if (typeof name !== "string" || !/^[a-z][a-z0-9_]*$/.test(name) || name === "none") {
    throw new UsageError(`modality name ${JSON.stringify(name)} is not a lower-case identifier, e.g. depth`);
  }
  const need = (condition: boolean, message: string): void => {
    if (!condition) throw new UsageError(`modality '${name}': ${message}`);
  };
  need(typeof kind === "string" && Object.hasOwn(FIELDS_OF_KIND, kind), `unknown kind ${JSON.stringify(kind)}`);
  const used = ["name", "kind", "rate_hz", ...FIELDS_OF_KIND[kind as Kind]];
  for (const key of Object.keys(table)) {
    const isDefault = same(numbers(table[key]!), DEFAULTS[KEYS[key as keyof typeof KEYS] as keyof typeof DEFAULTS]);
    need(used.includes(key) || isDefault, `${key} has no meaning for kind ${String(kind)}`);
  }
  const value = (key: keyof typeof KEYS): Json =>
    Object.hasOwn(table, key) ? table[key]! : (DEFAULTS[KEYS[key] as keyof typeof DEFAULTS] as Json);
  checkCommon(value, need);
  CHECKS[kind as Kind](value, need);
}

type Get = (key: keyof typeof KEYS) => Json;
type Need = (condition: boolean, message: string) => void;

function checkCommon(value: Get, need: Need): void {
  need(["uint8", "uint16", "float32"].includes(value("dtype") as string), `unknown dtype ${String(value("dtype"))}`);
  const range = value("range");
  const sound = Array.isArray(range) && range.length === 2 && range.every(isNumber);
  need(sound && real(range[1]!) - real(range[0]!) >= NARROWEST, "range must be two finite numbers, low < high");
  need(isNumber(value("rate_hz")) && real(value("rate_hz")) > 0, "rate_hz must be a finite number above 0");
}

const CHECKS: Record<Kind, (value: Get, need: Need) => void> = {
  image(value, need) {
    need(isWhole(value("channels"), 1) && (value("channels") as number) <= 16, "channels must be 1 to 16");
    const size = value("size");
    need(Array.isArray(size) && size.length === 2 && size.every((v) => isWhole(v, 1)), "size must be [height, width]");
  },
  audio(value, need) {
    const frame = value("frame_s");
    need(isNumber(frame) && real(frame) > 0, "frame_s must be a finite number above 0");
    const window = value("window_s");
    need(isNumber(window) && real(window) >= real(frame), "window_s must be at least frame_s");
    need(isWhole(value("mel_bands"), 1), "mel_bands must be a whole number from 1");
    need(roundHalfEven(real(frame) * real(value("rate_hz"))) >= 2, "frame_s is under 2 samples");
  },
  sequence(value, need) {
    need(isWhole(value("length"), 1), "length must be a whole number from 1");
    need(isWhole(value("channels"), 1), "channels must be a whole number from 1");
  },
  vector(value, need) {
    need(isWhole(value("length"), 1), "length must be a whole number from 1");
  },
  text(value, need) {
    need(isWhole(value("length"), 1), "length must be a whole number from 1");
    // Beyond 2^24 a float32, which every tensor is, no longer holds every whole number.
    const buckets = value("vocabulary");
    need(isWhole(buckets, 2) && (buckets as number) <= 2 ** 24, "vocabulary must be a whole number from 2 to 2^24");
  },
};

function real(value: Json): number {
  return value instanceof Fraction ? value.value : (value as number);
}

function isNumber(value: Json): boolean {
  return (typeof value === "number" || value instanceof Fraction) && Math.abs(real(value)) <= LARGEST;
}

function isWhole(value: Json, low: number): boolean {
  return typeof value === "number" && Number.isInteger(value) && value >= low && value <= LARGEST;
}

function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
