/** The rows of the fault table that are a measured number, a limit and how long it must hold; each a line of data. */
import type { SampleSeen } from "./health";
import { limit, type LimitName, type Limits } from "./limits";

export type Evidence = Readonly<Record<string, number>>;
type Fact = "dark" | "saturated" | "invalid_depth" | "flat" | "noise" | "still" | "zeros_s" | "loudness_dbfs" | "clipped";

export interface Row {
  readonly reason: string;
  /** Transport faults mask; content faults mask where the model's policy names them; others only degrade. */
  readonly tier: "transport" | "content" | "degraded";
  readonly fact: Fact;
  readonly test: ">=" | ">" | "<=" | "<";
  readonly limit: LimitName;
  /** How long it must hold without interruption; absent: at once. */
  readonly enterS?: LimitName;
  readonly leaveS?: LimitName;
  /** Samples in a row that end it instead of a time. */
  readonly leaveSamples?: LimitName;
  /** Judged by the best of the last `strobe_frames` numbers. */
  readonly bestPhase?: boolean;
}

// The first that holds is the one a degraded sensor names, so the more specific come first.
export const ROWS: readonly Row[] = [
  { reason: "audio-dead", tier: "transport", fact: "zeros_s", test: ">=", limit: "zeros_s", leaveS: "zeros_leave_s" },
  { reason: "dark", tier: "content", fact: "dark", test: ">=", limit: "dark_share", enterS: "dark_s", leaveS: "dark_s",
    bestPhase: true },
  { reason: "saturated", tier: "content", fact: "saturated", test: ">=", limit: "saturated_share",
    enterS: "saturated_s", leaveS: "saturated_s" },
  { reason: "depth-invalid", tier: "content", fact: "invalid_depth", test: ">", limit: "invalid_depth_share",
    enterS: "invalid_depth_s", leaveS: "invalid_depth_s" },
  { reason: "covered", tier: "content", fact: "flat", test: ">=", limit: "covered_share", enterS: "covered_s",
    leaveS: "covered_s", bestPhase: true },
  { reason: "noise", tier: "content", fact: "noise", test: ">", limit: "noise_most", enterS: "noise_s",
    leaveS: "noise_s", bestPhase: true },
  { reason: "frozen?", tier: "content", fact: "still", test: "<=", limit: "still_share", enterS: "still_s",
    leaveSamples: "still_samples" },
  { reason: "audio-silent", tier: "degraded", fact: "loudness_dbfs", test: "<", limit: "silent_dbfs",
    enterS: "silent_s", leaveS: "silent_s" },
  { reason: "audio-clipped", tier: "degraded", fact: "clipped", test: ">", limit: "clipped_share",
    enterS: "clipped_s", leaveS: "clipped_s" },
]; // prettier-ignore

/** How long a row's condition has held, and whether that made it a fault. */
export interface Dwell {
  readonly badSinceS: number | null;
  readonly fineSinceS: number | null;
  readonly fine: number;
  readonly active: boolean;
  readonly recent: readonly number[];
  readonly evidence: Evidence;
}

export type Dwells = Readonly<Record<string, Dwell>>;

const FINE: Dwell = { badSinceS: null, fineSinceS: null, fine: 0, active: false, recent: [], evidence: {} };

/** The dwells after one sample; `gap` says that samples were missing before it, so nothing held without a break. */
export function judged(dwells: Dwells, seen: SampleSeen, limits: Limits, gap: boolean): Dwells {
  const after: Record<string, Dwell> = {};
  for (const row of ROWS) {
    const value = seen[row.fact];
    if (value !== null) after[row.reason] = next(row, dwells[row.reason] ?? FINE, value, seen.at_s, limits, gap);
  }
  return after;
}

function next(row: Row, dwell: Dwell, newest: number, atS: number, limits: Limits, gap: boolean): Dwell {
  let recent: number[] = [];
  if (row.bestPhase && limits.strobe_frames > 1) {
    recent = [...(gap ? [] : dwell.recent), newest].slice(-limits.strobe_frames);
  }
  const value = recent.length > 0 ? Math.min(...recent) : newest;
  const bound = limit(limits, row.limit);
  const off = row.test === "<=" && bound === 0;
  if (!off && holds(row.test, value, bound)) return bad(row, dwell, value, bound, atS, limits, recent, gap);
  if (!dwell.active) return { ...FINE, recent };
  const sinceS = dwell.fineSinceS === null || gap ? atS : dwell.fineSinceS;
  const fine = dwell.fine + 1;
  const left = row.leaveSamples
    ? fine >= limit(limits, row.leaveSamples)
    : atS - sinceS >= (row.leaveS ? limit(limits, row.leaveS) : 0);
  return left ? { ...FINE, recent } : { ...dwell, badSinceS: null, fineSinceS: sinceS, fine, recent };
}

function holds(test: Row["test"], value: number, bound: number): boolean {
  if (test === ">=") return value >= bound;
  if (test === ">") return value > bound;
  return test === "<=" ? value <= bound : value < bound;
}

function bad(
  row: Row,
  dwell: Dwell,
  value: number,
  bound: number,
  atS: number,
  limits: Limits,
  recent: readonly number[],
  gap: boolean,
): Dwell {
  const sinceS = dwell.badSinceS === null || gap ? atS : dwell.badSinceS;
  const heldS = atS - sinceS;
  const found = heldS >= (row.enterS ? limit(limits, row.enterS) : 0);
  const evidence = !dwell.active && found ? { [row.fact]: value, limit: bound, for_s: heldS } : dwell.evidence;
  return { badSinceS: sinceS, fineSinceS: null, fine: 0, active: dwell.active || found, recent, evidence };
}
