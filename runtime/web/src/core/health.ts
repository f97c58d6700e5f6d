/**
 * Whether a sensor may be used: a pure state machine, (state, events, now) -> state, as `mars_runtime/health.py`.
 * Nothing here reads a clock or looks at pixels. Times are seconds on one monotonic clock.
 */
import { judged, ROWS, type Dwells, type Evidence } from "./healthTable";
import { lostAfterS, staleAfterS, type Limits } from "./limits";

export type Status = "ok" | "degraded" | "missing";
type Recovery = "first" | "distinct" | "good";

/** Facts about one sample, measured where it was captured; null where the notion does not apply. */
export interface SampleSeen {
  readonly type: "sample";
  readonly at_s: number;
  readonly stamped_s: number | null;
  readonly repeated: boolean;
  readonly usable: boolean;
  readonly dark: number;
  readonly saturated: number;
  readonly invalid_depth: number;
  readonly flat: number | null;
  readonly noise: number | null;
  readonly still: number | null;
  readonly zeros_s: number | null;
  readonly loudness_dbfs: number | null;
  readonly clipped: number | null;
}

/** A read or an open failed; `gone` means the device itself has vanished. */
export interface ReadFailed {
  readonly type: "failed";
  readonly at_s: number;
  readonly gone: boolean;
}

/** A finite source handed out its last sample. */
export interface Ended {
  readonly type: "ended";
  readonly at_s: number;
}

export type Event = SampleSeen | ReadFailed | Ended;

interface DeviceClock {
  readonly stampedS: number;
  readonly offsetS: number;
  readonly wrong: number;
  readonly jumpS: number;
}

/** All that is remembered about one sensor. */
export interface Health {
  readonly startedS: number;
  /** Why it is missing, null while it may be used. */
  readonly reason: string | null;
  readonly recovery: Recovery;
  readonly evidence: Evidence;
  readonly sampleS: number | null;
  readonly errors: number;
  readonly gone: boolean;
  readonly ended: boolean;
  readonly unusable: boolean;
  readonly repeats: number;
  readonly repeatsSinceS: number;
  readonly distinct: number;
  readonly good: number;
  readonly goodSinceS: number;
  readonly changesS: readonly number[];
  readonly heldUntilS: number;
  readonly clock: DeviceClock | null;
  readonly partStartS: number | null;
  readonly parts: readonly number[];
  readonly slow: boolean;
  readonly rate: Evidence;
  readonly content: Dwells;
}

export interface Summary {
  readonly status: Status;
  readonly reason: string | null;
  readonly ageS: number | null;
  readonly evidence: Evidence;
}

const RATE_PARTS = 10;
const BREAKS = ["disconnected", "stale", "lost", "unusable", "clock", "audio-dead"];
const STRICTNESS: readonly Recovery[] = ["first", "distinct", "good"];

/** A sample of which nothing is known but its receipt and what `facts` says. */
export function seen(atS: number, facts: Partial<Omit<SampleSeen, "type" | "at_s">> = {}): SampleSeen {
  return {
    type: "sample", at_s: atS, stamped_s: null, repeated: false, usable: true, dark: 0, saturated: 0, invalid_depth: 0,
    flat: null, noise: null, still: null, zeros_s: null, loudness_dbfs: null, clipped: null, ...facts,
  }; // prettier-ignore
}

/** A sensor that is starting. */
export function starting(startedS: number): Health {
  return {
    startedS, reason: "starting", recovery: "first", evidence: {}, sampleS: null, errors: 0, gone: false, ended: false,
    unusable: false, repeats: 0, repeatsSinceS: 0, distinct: 0, good: 0, goodSinceS: 0, changesS: [],
    heldUntilS: -Infinity, clock: null, partStartS: null, parts: [], slow: false, rate: {}, content: {},
  }; // prettier-ignore
}

/** Whether the modality mask is 1. */
export const isPresent = (state: Health): boolean => state.reason === null;

/** Seconds since the newest sample arrived; null if none ever did. */
export function ageS(state: Health, nowS: number): number | null {
  return state.sampleS === null ? null : Math.max(0, nowS - state.sampleS);
}

/** The state after `events` (oldest first) and the passing of time up to `nowS`. */
export function step(state: Health, events: readonly Event[], nowS: number, limits: Limits): Health {
  for (const event of events) {
    // Silence before a late sample is judged with the clock at that sample, or a gap between two decisions is unseen.
    state = judge(state, event.at_s, limits);
    state = judge(observe(state, event, limits), event.at_s, limits);
  }
  return judge(state, nowS, limits);
}

/** Status, reason, age and evidence; a degraded sensor is used and names its first content fault. */
export function summary(state: Health, nowS: number): Summary {
  const age = ageS(state, nowS);
  if (state.reason !== null) return { status: "missing", reason: state.reason, ageS: age, evidence: state.evidence };
  for (const [reason, dwell] of Object.entries(state.content)) {
    if (dwell.active) return { status: "degraded", reason, ageS: age, evidence: dwell.evidence };
  }
  if (state.slow) return { status: "degraded", reason: "rate-low", ageS: age, evidence: state.rate };
  return { status: "ok", reason: null, ageS: age, evidence: {} };
}

/** The fault that will mask this usable sensor if what its newest sample shows goes on; null where nothing does. */
export function suspected(state: Health, limits: Limits): string | null {
  const found = Object.entries(state.content).find(
    ([name, each]) => limits.masking.includes(name) && each.badSinceS !== null && !each.active,
  );
  return found === undefined ? null : found[0];
}

function observe(state: Health, event: Event, limits: Limits): Health {
  if (event.type === "sample") return observeSample(state, event, limits);
  if (event.type === "ended") return { ...state, ended: true };
  return { ...state, errors: state.errors + 1, gone: state.gone || event.gone, good: 0 };
}

function observeSample(state: Health, event: SampleSeen, limits: Limits): Health {
  const clock = observeClock(state.clock, event, limits);
  const good = event.usable && !event.repeated && (clock === null || clock.wrong === 0);
  const repeats = event.repeated ? state.repeats + 1 : 0;
  // The first repeat shows a picture that was already there at the sample before it.
  const beforeS = state.sampleS ?? event.at_s;
  const gap = event.at_s - beforeS > staleAfterS(limits);
  return {
    ...state,
    ...observeRate(state, event.at_s, limits),
    sampleS: event.at_s,
    errors: 0,
    gone: false,
    unusable: !event.usable,
    repeats,
    repeatsSinceS: repeats > 1 ? state.repeatsSinceS : beforeS,
    distinct: event.repeated ? 0 : state.distinct + 1,
    good: good ? state.good + 1 : 0,
    goodSinceS: state.good === 0 ? event.at_s : state.goodSinceS,
    clock,
    content: judged(state.content, event, limits, gap),
  };
}

/** Stamps against receipt. A jump is measured from how late samples usually are, so a lasting one is seen. */
function observeClock(clock: DeviceClock | null, event: SampleSeen, limits: Limits): DeviceClock | null {
  const stampedS = event.stamped_s;
  if (stampedS === null) return clock === null ? null : { ...clock, wrong: 0, jumpS: 0 };
  const offsetS = event.at_s - stampedS;
  if (clock === null) {
    const zero = stampedS <= 0;
    return { stampedS, offsetS, wrong: Number(zero), jumpS: zero ? Infinity : 0 };
  }
  const stands = stampedS <= 0 || stampedS <= clock.stampedS;
  const jumpS = stands ? Infinity : Math.abs(offsetS - clock.offsetS);
  if (jumpS <= limits.clock_jump_s) {
    return { stampedS, offsetS: clock.offsetS + 0.1 * (offsetS - clock.offsetS), wrong: 0, jumpS: 0 };
  }
  const wrong = clock.wrong + 1;
  // Once it is a fault the new offset is the usual one: a clock that was set anew and now runs well comes back.
  return { stampedS, offsetS: wrong >= limits.clock_samples ? offsetS : clock.offsetS, wrong, jumpS };
}

type Rate = Pick<Health, "partStartS" | "parts" | "slow" | "rate">;

/** Samples over the last `rate_window_s` against the nominal rate, judged each time a part of it is complete. */
function observeRate(state: Health, atS: number, limits: Limits): Rate {
  let { partStartS, parts, slow, rate } = state;
  if (partStartS === null || atS < partStartS) return { partStartS: atS, parts: [0], slow, rate };
  const partS = limits.rate_window_s / RATE_PARTS;
  const passed = Math.trunc((atS - partStartS) / partS);
  if (passed > 0) {
    parts = [...parts, ...new Array<number>(Math.min(passed, RATE_PARTS)).fill(0)].slice(-RATE_PARTS - 1);
    partStartS += passed * partS;
    if (parts.length > RATE_PARTS) {
      const sum = parts.slice(0, -1).reduce((a, b) => a + b, 0);
      const share = (sum / limits.rate_window_s) * limits.period_s;
      const found = slow ? rate : { rate_share: share, limit: limits.slow_share };
      slow = share < (slow ? limits.normal_share : limits.slow_share);
      rate = slow ? found : {};
    }
  }
  return { partStartS, parts: [...parts.slice(0, -1), parts.at(-1)! + 1], slow, rate };
}

function judge(state: Health, nowS: number, limits: Limits): Health {
  const fault = faultOf(state, nowS, limits);
  if (fault !== null) return mask(state, fault[0], fault[1], nowS, limits);
  if (state.reason === null) return state;
  if (nowS < state.heldUntilS) return { ...state, reason: "flapping", evidence: flapping(limits) };
  if (recovered(state, nowS, limits)) return unmask(state, nowS, limits);
  return { ...state, reason: state.recovery === "first" ? state.reason : "recovering" };
}

type Fault = readonly [string, Evidence];

/** The fault that is there right now, the most specific first, and what shows it. */
function faultOf(state: Health, nowS: number, limits: Limits): Fault | null {
  const age = ageS(state, nowS);
  if (age === null) return neverSeen(state, nowS, limits);
  return silent(state, age, limits) ?? wrong(state, nowS, limits);
}

function neverSeen(state: Health, nowS: number, limits: Limits): Fault {
  if (state.ended) return ["ended", {}];
  const waitedS = nowS - state.startedS;
  if (waitedS < limits.start_grace_s) return ["starting", {}];
  return ["absent", { waited_s: waitedS, limit_s: limits.start_grace_s }];
}

/** Nothing arrives. */
function silent(state: Health, age: number, limits: Limits): Fault | null {
  if (state.ended && age > staleAfterS(limits)) return ["ended", { age_s: age }];
  if (state.gone) return ["disconnected", { gone: 1 }];
  if (state.errors >= limits.errors_in_a_row) {
    return ["disconnected", { errors: state.errors, limit: limits.errors_in_a_row }];
  }
  const silences: [string, number][] = [
    ["lost", lostAfterS(limits)],
    ["audio-dead", limits.callback_s],
    ["stale", staleAfterS(limits)],
  ];
  const passed = silences.filter(([, limitS]) => age > limitS);
  if (passed.length === 0) return null;
  // Of the limits that have passed the longest says most.
  const [name, limitS] = passed.reduce((best, each) => (each[1] > best[1] ? each : best));
  return [name, { age_s: age, limit_s: limitS }];
}

/** Something arrives that must not be used. */
function wrong(state: Health, nowS: number, limits: Limits): Fault | null {
  if (state.unusable) return ["unusable", {}];
  for (const row of ROWS) {
    const dwell = state.content[row.reason];
    if (row.tier === "transport" && dwell?.active) return [row.reason, dwell.evidence];
  }
  const clock = state.clock;
  if (clock !== null && clock.wrong >= limits.clock_samples) {
    const jump: Evidence = Number.isFinite(clock.jumpS) ? { jump_s: clock.jumpS } : { stamp_s: clock.stampedS };
    return ["clock", { ...jump, limit_s: limits.clock_jump_s, samples: clock.wrong }];
  }
  const stoodS = nowS - state.repeatsSinceS;
  if (state.repeats >= limits.frozen_frames && stoodS >= limits.frozen_s) {
    return ["frozen", { repeats: state.repeats, for_s: stoodS, limit_s: limits.frozen_s }];
  }
  const masking = Object.entries(state.content).find(([name, each]) => each.active && limits.masking.includes(name));
  return masking === undefined ? null : [masking[0], masking[1].evidence];
}

function mask(state: Health, fault: string, evidence: Evidence, nowS: number, limits: Limits): Health {
  const masked: Health = {
    ...state,
    reason: fault,
    recovery: recoveryAfter(fault, state),
    // The numbers at the moment the fault was found, not those of every moment it lasts.
    evidence: fault === state.reason ? state.evidence : evidence,
    // Time without samples breaks the run of good ones.
    good: BREAKS.includes(fault) ? 0 : state.good,
    // A gap must not count as a low rate once the samples are back.
    partStartS: null,
    parts: [],
    slow: false,
    rate: {},
  };
  return state.reason === null ? changed(masked, nowS, limits) : masked;
}

/** What this fault asks for, never less than what an earlier one still asks for. */
function recoveryAfter(fault: string, state: Health): Recovery {
  let asked: Recovery = "good";
  if (fault === "starting" || fault === "absent") asked = "first";
  else if (fault === "frozen" || ROWS.some((row) => row.reason === fault)) asked = "distinct";
  const pending = state.reason === null ? "first" : state.recovery;
  return STRICTNESS.indexOf(asked) >= STRICTNESS.indexOf(pending) ? asked : pending;
}

function recovered(state: Health, nowS: number, limits: Limits): boolean {
  if (state.recovery === "first") return state.good >= 1;
  if (state.recovery === "distinct") return state.distinct >= limits.distinct_frames;
  return state.good >= limits.good_samples && nowS - state.goodSinceS >= limits.good_s;
}

function unmask(state: Health, nowS: number, limits: Limits): Health {
  const used: Health = { ...state, reason: null, evidence: {} };
  return state.recovery === "first" ? used : changed(used, nowS, limits);
}

/** Count one change between usable and missing; too many hold the sensor missing for a while. */
function changed(state: Health, nowS: number, limits: Limits): Health {
  const recent = [...state.changesS.filter((t) => nowS - t < limits.flap_window_s), nowS];
  if (recent.length <= limits.flap_changes) return { ...state, changesS: recent };
  return {
    ...state,
    reason: state.reason ?? "flapping",
    recovery: "good",
    evidence: state.reason === null ? flapping(limits) : state.evidence,
    changesS: [],
    heldUntilS: nowS + limits.flap_hold_s,
  };
}

function flapping(limits: Limits): Evidence {
  return { changes: limits.flap_changes + 1, limit: limits.flap_changes, window_s: limits.flap_window_s };
}
