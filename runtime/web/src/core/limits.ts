/** Every number of the fault table for one sensor, as `mars_runtime/limits.py` has it; seconds, counts, shares. */
import type { Modality } from "./modality";

export type SensorKind = "colour" | "infrared" | "depth" | "audio" | "other";

/** What health must know about a source. */
export interface Traits {
  readonly description: string;
  readonly rateHz: number;
  /** It has an end (a file). */
  readonly finite?: boolean;
  /** The same sample for ever (a still image). */
  readonly still?: boolean;
  /** Uncompressed sensor data: noise makes two equal frames in a row impossible in health. */
  readonly raw?: boolean;
  readonly simulated?: boolean;
  /** How long it may take to deliver its first frame before it counts as absent. */
  readonly startGraceS?: number;
}

// Depth errs in proportion to itself.
const DEPTH_NOISE_FLOOR = 0.004;
const NUMBERS = {
  start_grace_s: 15, errors_in_a_row: 3, frozen_frames: 5, frozen_s: 0.5, distinct_frames: 3, good_samples: 10,
  good_s: 1, flap_changes: 5, flap_window_s: 60, flap_hold_s: 30, slow_share: 0.6, normal_share: 0.8, rate_window_s: 5,
  clock_jump_s: 0.1, clock_samples: 3, dark_share: 0.98, dark_s: 1, saturated_share: 0.5, saturated_s: 1,
  covered_share: 0.8, covered_s: 2, noise_floor: 0.03, noise_ratio: 4, noise_s: 1, invalid_depth_share: 0.9,
  invalid_depth_s: 1, still_share: 0.001, still_s: 2, still_samples: 3, strobe_frames: 1, callback_s: Infinity,
  zeros_s: 0.5, zeros_leave_s: 1, silent_dbfs: -60, silent_s: 2, clipped_share: 0.01, clipped_s: 1,
}; // prettier-ignore

export type LimitName = keyof typeof NUMBERS | "noise_most";

export interface Limits extends Readonly<typeof NUMBERS> {
  readonly period_s: number;
  /** null follows from the period. */
  readonly stale_s: number | null;
  readonly lost_s: number | null;
  readonly skew_s: number | null;
  /** Content faults that mask instead of degrade. */
  readonly masking: readonly string[];
}

/** What faults a sensor of this modality can show. */
export function kindOf(modality: Modality): SensorKind {
  if (modality.kind === "audio") return "audio";
  if (modality.kind !== "image") return "other";
  if (modality.dtype === "uint16") return "depth";
  return modality.dtype === "uint8" && modality.channels === 1 ? "infrared" : "colour";
}

/** The defaults for one kind of sensor at its rate. */
export function limitsOf(kind: SensorKind, traits: Traits, masking: readonly string[] = []): Limits {
  const periodS = 1 / traits.rateHz;
  const limits: Limits = {
    ...NUMBERS, period_s: periodS, start_grace_s: traits.startGraceS ?? NUMBERS.start_grace_s, stale_s: null,
    lost_s: null, skew_s: null, masking,
  }; // prettier-ignore
  // The brightest phase of an emitter that strobes over 2, 3 or 4 frames.
  if (kind === "infrared") return { ...limits, strobe_frames: 4, dark_s: 2 };
  if (kind === "depth") return { ...limits, noise_floor: DEPTH_NOISE_FLOOR };
  if (kind === "audio" && !traits.finite) return { ...limits, callback_s: Math.max(0.5, 2 * periodS) };
  return limits;
}

/** Difference to the reference sensor's stamp above which a sample is left out of a decision. */
export const skewAfterS = (l: Limits): number => l.skew_s ?? Math.max(0.05, 1.5 * l.period_s);
/** Age at which a sensor is stale; also the age limit of a cached feature. */
export const staleAfterS = (l: Limits): number => l.stale_s ?? Math.max(3 * l.period_s, 0.2);
/** Age at which a sensor is lost and its source is opened again. */
export const lostAfterS = (l: Limits): number => l.lost_s ?? Math.max(10 * l.period_s, 1);
/** Noise above this is a fault: share of the range. */
export const noiseMost = (l: Limits): number => l.noise_ratio * l.noise_floor;
/** A number of the fault table by its name. */
export const limit = (l: Limits, name: LimitName): number => (name === "noise_most" ? noiseMost(l) : l[name]);

/** Limits on silence that are longer by what was the page's own stall and not the sensor's. */
export function excusing(l: Limits, excusedS: number): Limits {
  if (excusedS <= 0) return l;
  return {
    ...l,
    stale_s: staleAfterS(l) + excusedS,
    lost_s: lostAfterS(l) + excusedS,
    callback_s: l.callback_s + excusedS,
  };
}
