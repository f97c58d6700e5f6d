/** What may be said given who is present: every subset has its own certified operating point. */
import type { Manifest, OperatingPoint, Policy } from "./manifest";
import { label } from "./subsets";

export interface Outcome {
  readonly label: string | null;
  /** Probability of the positive label, or of `label` where there is none. */
  readonly score: number | null;
  readonly threshold: number | null;
  /** accept, reject or abstain; the label for plain classification; map for a segmentation. */
  readonly verdict: string;
  readonly reason: string | null;
  /** Segmentation only: share of the pixels of each label. */
  readonly shares: Readonly<Record<string, number>> | null;
}

export interface Wishes {
  readonly allowUncertified?: boolean;
  /** Why no decision may be made whatever the subset. */
  readonly held?: string | null;
}

/** The outcome for the logits of the modalities in `present`; null logits always abstain. */
export function decide(
  manifest: Manifest,
  policy: Policy,
  present: readonly string[],
  logits: ArrayLike<number> | null,
  wishes: Wishes = {},
): Outcome {
  let why = objection(manifest, policy, present, wishes.allowUncertified ?? false) ?? wishes.held ?? null;
  if (why === null && (logits === null || !Array.from(logits).every(Number.isFinite))) {
    why = "the model gave no finite output";
  }
  const point = manifest.operatingPoints[label(present, manifest.names)];
  if (why !== null || logits === null || point === undefined) return refusal(manifest, policy, point, why);
  if (manifest.task === "segmentation") return segmented(manifest, logits);
  const scores = probabilities(logits, point.temperature);
  if (manifest.positiveLabel !== null) {
    return binary(manifest, point, scores, manifest.labels.indexOf(manifest.positiveLabel));
  }
  const best = argmax(scores);
  const [name, score, threshold] = [manifest.labels[best]!, scores[best]!, point.threshold];
  if (score < threshold) {
    return { ...NOTHING, threshold, verdict: "abstain", reason: "score below the threshold" };
  }
  return { ...NOTHING, label: name, score, threshold, verdict: name };
}

/** Why this subset may not decide, or null if it may; needs no inference. */
export function objection(
  manifest: Manifest,
  policy: Policy,
  present: readonly string[],
  allowUncertified = false,
): string | null {
  if (present.length === 0) return "no sensor is usable";
  const unmet = policy.require.find((entry) => !entry.split("|").some((name) => present.includes(name)));
  if (unmet !== undefined) return `requires ${unmet}`;
  const missing = manifest.names.filter((name) => !present.includes(name));
  if (missing.length > 0 && policy.onMissing !== "continue") return `${missing.join(", ")} missing`;
  const subset = label(present, manifest.names);
  const point = manifest.operatingPoints[subset];
  if (point === undefined) return `subset ${subset} has no operating point`;
  return point.certified || allowUncertified ? null : `subset ${subset} is not certified`;
}

const NOTHING: Omit<Outcome, "verdict"> = { label: null, score: null, threshold: null, reason: null, shares: null };

function refusal(manifest: Manifest, policy: Policy, point: OperatingPoint | undefined, why: string | null): Outcome {
  const closes = policy.onMissing === "fail_closed" && manifest.positiveLabel !== null;
  return { ...NOTHING, threshold: point?.threshold ?? null, verdict: closes ? "reject" : "abstain", reason: why };
}

function binary(manifest: Manifest, point: OperatingPoint, scores: readonly number[], positive: number): Outcome {
  const score = scores[positive]!;
  const accepted = score >= point.threshold;
  const others = scores.map((value, index) => (index === positive ? -1 : value));
  const name = manifest.labels[accepted ? positive : argmax(others)]!;
  return { ...NOTHING, label: name, score, threshold: point.threshold, verdict: accepted ? "accept" : "reject" };
}

function segmented(manifest: Manifest, logits: ArrayLike<number>): Outcome {
  const counts = new Array<number>(manifest.labels.length).fill(0);
  const map = labelMap(logits, manifest.labels.length);
  for (const index of map) counts[index]! += 1;
  const shares = Object.fromEntries(manifest.labels.map((name, index) => [name, counts[index]! / map.length]));
  return { ...NOTHING, verdict: "map", shares };
}

/** The index of the likeliest label of each pixel, from logits (classes, H, W). */
export function labelMap(logits: ArrayLike<number>, classes: number): Uint8Array {
  const pixels = logits.length / classes;
  const map = new Uint8Array(pixels);
  for (let at = 0; at < pixels; at += 1) {
    for (let c = 1; c < classes; c += 1) {
      if (logits[c * pixels + at]! > logits[map[at]! * pixels + at]!) map[at] = c;
    }
  }
  return map;
}

/** Softmax of logits / `temperature`: what thresholds are compared with. */
export function probabilities(logits: ArrayLike<number>, temperature: number): number[] {
  const scaled = Array.from(logits, (value) => value / temperature);
  const top = Math.max(...scaled);
  const powers = scaled.map((value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

function argmax(values: readonly number[]): number {
  return values.reduce((best, value, index) => (value > values[best]! ? index : best), 0);
}
