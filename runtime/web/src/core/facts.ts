/**
 * What a sample says, measured once where it was captured: the facts that health judges, as `mars_runtime/facts.py`.
 * Axes: H and W pixels of a picture, C channels, T audio samples. Shares are 0..1 of the range of the element type.
 */
import { roundHalfEven, type Sample, type Values } from "./arrays";
import { seen, type SampleSeen } from "./health";
import { kindOf, type SensorKind, type Traits } from "./limits";
import type { Modality } from "./modality";
import { missingShare, roughness, spread } from "./surface";

/** One raw sample as it came from the source. */
export interface Frame {
  readonly sample: Sample;
  /** The source's own frame number, or null where it has none. */
  readonly sequence: number | null;
  /** When it was taken by the device's own stamp, on our clock; null where unknown. */
  readonly capturedS: number | null;
}

type Facts = Partial<Omit<SampleSeen, "type" | "at_s">>;

const BLOCKS = 5;
const TEXTURE_SHARE = 0.008;
const STILL_SHARE = 0.001;
const THINNED_SIDE = 120;
const TEXTURE_SIDE = 180;
const BLOCK_CELLS = 12;
const NOISE_ROWS = 24;
const NOISE_COLUMNS = 320;
// Mean of |x| of a standard normal variable over the smaller three quarters of its values.
const TRIMMED_MEAN = 0.51483;
const FULL_SCALE_AUDIO = 0.999;
// Less than this between the ends of the range is hot pixels, which are the same in every picture.
const UNCLIPPED_SHARE = 0.01;

/** Measures the facts about a sample; remembers the frame before and one reference picture. */
export class FactFinder {
  private before: Frame | null = null;
  private reference: Values | null = null;
  private zerosS = 0;

  constructor(
    private readonly kind: SensorKind,
    private readonly rateHz = 16000,
  ) {}

  /** The finder for a sensor that feeds `modality`. */
  static of(modality: Modality): FactFinder {
    return new FactFinder(kindOf(modality), modality.rateHz);
  }

  /** Receipt and stamp, repetition, finiteness, and what the kind of sensor allows to be measured. */
  facts(frame: Frame, traits: Traits, atS: number): SampleSeen {
    const before = this.before;
    this.before = frame;
    const { data } = frame.sample;
    return seen(atS, {
      stamped_s: frame.capturedS,
      repeated: before !== null && !traits.still && repeats(before, frame, traits.raw ?? false),
      usable: !(data instanceof Float32Array) || data.every(Number.isFinite),
      ...this.measured(frame.sample, traits),
    });
  }

  private measured(sample: Sample, traits: Traits): Facts {
    const { data, shape } = sample;
    if (this.kind === "audio" && shape.length === 1 && data.length > 0) return this.sound(data, traits);
    const picture = shape.length >= 2 && data.length > 0;
    if (this.kind === "depth" && picture) {
      if (!(data instanceof Uint16Array)) return { invalid_depth: shareOf(thinned(sample).data, (v) => v === 0) };
      const few = thinned(sample);
      return {
        invalid_depth: missingShare(few.data, few.width, few.channels),
        saturated: saturated(few.data),
        noise: roughness(data, shape),
      };
    }
    if ((this.kind === "colour" || this.kind === "infrared") && picture && data instanceof Uint8Array) {
      const few = thinned(sample).data;
      return {
        dark: shareOf(few, (v) => v < 25.5),
        saturated: saturated(few),
        flat: flatShare(sample),
        noise: noise(sample),
        still: this.still(few, traits),
      };
    }
    return {};
  }

  /** Mean absolute difference to the reference; null where standing still is told by the payload or no fault. */
  private still(now: Values, traits: Traits): number | null {
    if (traits.raw || traits.still || traits.finite) return null;
    const reference = this.reference;
    if (reference === null || reference.length !== now.length) {
      this.reference = now;
      return null;
    }
    let sum = 0;
    for (let i = 0; i < now.length; i += 1) sum += Math.abs(now[i]! - reference[i]!);
    const difference = sum / now.length / 255;
    if (difference > STILL_SHARE) this.reference = now;
    return difference;
  }

  /** Of the newest part of a window: what the windows before did not have. */
  private sound(data: Values, traits: Traits): Facts {
    const hop = Math.min(data.length, Math.max(1, roundHalfEven(this.rateHz / traits.rateHz)));
    const fresh = data.subarray(data.length - hop);
    let silence = 0;
    while (silence < hop && fresh[hop - 1 - silence] === 0) silence += 1;
    this.zerosS = silence / this.rateHz + (silence < hop ? 0 : this.zerosS);
    let [energy, full] = [0, 0];
    for (const value of fresh) {
      energy += value * value;
      full += Number(Math.abs(value) >= FULL_SCALE_AUDIO);
    }
    return {
      // A file may hold digital silence; the noise of a live microphone cannot.
      zeros_s: traits.raw ? this.zerosS : null,
      loudness_dbfs: 20 * Math.log10(Math.max(Math.sqrt(energy / hop), 1e-6)),
      clipped: full / hop,
    };
  }
}

function repeats(before: Frame, frame: Frame, raw: boolean): boolean {
  if (frame.sequence !== null && before.sequence !== null && frame.sequence <= before.sequence) return true;
  return raw && equal(before.sample, frame.sample) && couldDiffer(frame.sample.data);
}

function equal(a: Sample, b: Sample): boolean {
  if (a.data.length !== b.data.length || a.shape.some((side, i) => side !== b.shape[i])) return false;
  for (let i = 0; i < a.data.length; i += 1) if (a.data[i] !== b.data[i]) return false;
  return true;
}

/** Whether noise could show in it: in total darkness or glare a healthy sensor gives the same clipped values too. */
function couldDiffer(data: Values): boolean {
  const most = topOf(data);
  return shareOf(data, (value) => value !== 0 && value !== most) >= UNCLIPPED_SHARE;
}

function topOf(data: Values): number {
  return data instanceof Uint8Array ? 255 : data instanceof Uint16Array ? 65535 : Infinity;
}

function shareOf(data: Values, test: (value: number) => boolean): number {
  let count = 0;
  for (let i = 0; i < data.length; i += 1) count += Number(test(data[i]!));
  return count / data.length;
}

/** Every fourth pixel each way, of large pictures fewer: enough for a share, and cheap at full HD. */
function thinned({ data, shape }: Sample): { data: Values; width: number; channels: number } {
  const [height, width, channels] = [shape[0]!, shape[1]!, shape[2] ?? 1];
  const step = Math.max(4, Math.floor(Math.min(height, width) / THINNED_SIDE));
  const [rows, columns] = [Math.ceil(height / step), Math.ceil(width / step)];
  const out = data.slice(0, rows * columns * channels);
  let at = 0;
  for (let y = 0; y < height; y += step) {
    for (let x = 0; x < width; x += step) {
      for (let c = 0; c < channels; c += 1, at += 1) out[at] = data[(y * width + x) * channels + c]!;
    }
  }
  return { data: out, width: columns, channels };
}

/** Share of the values at 98 % of the range or above. */
function saturated(few: Values): number {
  const bound = 0.98 * topOf(few);
  return shareOf(few, (value) => value >= bound);
}

interface Plane {
  readonly height: number;
  readonly width: number;
  at(y: number, x: number): number;
}

/** (H, W): a grey picture itself, of a colour one its green, which is nearest to its brightness. */
function planeOf({ data, shape }: Sample, thin = 1): Plane {
  const [height, width, channels] = [shape[0]!, shape[1]!, shape[2] ?? 1];
  const c = Math.min(1, channels - 1);
  return {
    height: Math.ceil(height / thin),
    width: Math.ceil(width / thin),
    at: (y, x) => data[(y * thin * width + x * thin) * channels + c]!,
  };
}

/**
 * Share of the 25 blocks of a picture that have no texture; null for one too small to be cut into blocks.
 * Averaging over small areas first makes noise vanish and leaves texture.
 */
export function flatShare(sample: Sample): number | null {
  const [height, width] = sample.shape as [number, number];
  const plane = planeOf(sample, Math.max(1, Math.floor(Math.min(height, width) / TEXTURE_SIDE)));
  const side = Math.min(plane.height, plane.width);
  const cells = BLOCKS * Math.min(BLOCK_CELLS, Math.floor(side / (2 * BLOCKS)));
  if (cells < 2 * BLOCKS) return null;
  const areas = meansOfAreas(plane, cells);
  const per = cells / BLOCKS;
  let flat = 0;
  for (let block = 0; block < BLOCKS * BLOCKS; block += 1) {
    const [top, left] = [Math.floor(block / BLOCKS) * per, (block % BLOCKS) * per];
    const values = Array.from({ length: per * per }, (_, i) => {
      return areas[(top + Math.floor(i / per)) * cells + left + (i % per)]!;
    });
    flat += Number(deviation(values) < 255 * TEXTURE_SHARE);
  }
  return flat / (BLOCKS * BLOCKS);
}

function meansOfAreas(plane: Plane, cells: number): Float64Array {
  const [tall, wide] = [Math.floor(plane.height / cells), Math.floor(plane.width / cells)];
  const means = new Float64Array(cells * cells);
  for (let y = 0; y < tall * cells; y += 1) {
    const row = Math.floor(y / tall) * cells;
    for (let x = 0; x < wide * cells; x += 1) {
      const cell = row + Math.floor(x / wide);
      means[cell] = means[cell]! + plane.at(y, x);
    }
  }
  return means.map((sum) => sum / (tall * wide));
}

function deviation(values: readonly number[]): number {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}

/**
 * Standard deviation of the pixel noise as a share of the range; null for a picture below 3 x 3.
 * Second differences across and along cancel gradients and edges along either axis (Immerkaer, Fast Noise Variance
 * Estimation, 1996); the mean over the smaller three quarters of them leaves out what is texture.
 */
export function noise(sample: Sample): number | null {
  const plane = planeOf(sample);
  if (Math.min(plane.height, plane.width) < 3) return null;
  const left = Math.max(0, Math.floor((plane.width - NOISE_COLUMNS) / 2));
  const columns = Math.min(NOISE_COLUMNS, plane.width - left);
  const both: number[] = [];
  for (const row of spread(plane.height, NOISE_ROWS)) {
    const down = Array.from({ length: columns }, (_, x) => {
      return plane.at(row, left + x) - 2 * plane.at(row + 1, left + x) + plane.at(row + 2, left + x);
    });
    for (let x = 0; x + 2 < columns; x += 1) both.push(Math.abs(down[x]! - 2 * down[x + 1]! + down[x + 2]!));
  }
  const sorted = Float64Array.from(both).sort();
  const kept = Math.max(1, Math.floor((3 * sorted.length) / 4));
  const mean = sorted.subarray(0, kept).reduce((a, b) => a + b, 0) / kept;
  return mean / (6 * TRIMMED_MEAN * topOf(sample.data));
}
