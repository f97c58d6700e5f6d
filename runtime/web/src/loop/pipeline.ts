/** The decision loop: samples in, health says who is present, only they are encoded, one decision out. */
import type { Tensor } from "../core/arrays";
import { CALM, criticalSensors, holding, watched } from "../core/downgrade";
import { EngineError, UsageError } from "../core/errors";
import type { Expert } from "../core/gates";
import { suspected, type Summary } from "../core/health";
import type { Evidence } from "../core/healthTable";
import type { Policy } from "../core/manifest";
import { decide, type Outcome } from "../core/policy";
import { skewed, type Stamp } from "../core/skew";
import { label } from "../core/subsets";
import type { Engine, Inference } from "../engine/engine";
import { PAGE_TIMING, type Timing } from "./connection";
import type { Received } from "./mailbox";
import { Track, type Feed } from "./track";

/** What was decided, on what, by whom and how fast; the fields of the device's decision line. */
export interface Decision {
  readonly seq: number;
  readonly outcome: Outcome;
  /** Canonical label of the modalities used, "none" if there was none. */
  readonly subset: string;
  readonly modalities: Readonly<Record<string, Summary>>;
  readonly experts: readonly Expert[];
  readonly latencyMs: Readonly<Record<string, number>>;
  /** Age of the oldest sample used; null if none was. */
  readonly ageMs: number | null;
  /** Sensors that liveness depends on, that were used before in this session, and that are missing now. */
  readonly alarm: readonly string[];
}

const RATE_LIMIT_HZ = 60;
const GATHER_S = 2;
const ENGINE_FAILURES = 10;
const NOT_CONFIGURED: Summary = { status: "missing", reason: "not configured", ageS: null, evidence: {} };

export class Pipeline {
  private readonly tracks = new Map<string, Track>();
  private readonly stopping = new AbortController();
  private readonly critical: readonly string[];
  private watch = CALM;
  private seq = 0;
  private failures = 0;

  constructor(
    private readonly engine: Engine,
    private readonly policy: Policy,
    /** Told of a sensor whose first sample does not fit its modality; it is no longer followed. */
    private readonly refused: (name: string, message: string) => void,
    private readonly timing: Timing = PAGE_TIMING,
    /** How long no decision is made after a sensor that liveness depends on went missing. */
    private readonly latchS = 0,
  ) {
    this.critical = criticalSensors(engine.manifest, policy);
  }

  /** Follow a sensor from now on, in the place of any other that feeds the modality; null: none feeds it. */
  connect(name: string, feed: Feed | null): void {
    const modality = this.engine.manifest.modalities.find((m) => m.name === name)!;
    if (feed === null) this.tracks.delete(name);
    else this.tracks.set(name, new Track(modality, feed, this.policy.maskingFaults, this.timing.clock()));
  }

  /** The newest sample the loop was given of a sensor, used or not. */
  latest(name: string): Received | null {
    return this.tracks.get(name)?.newest ?? null;
  }

  /** End `run` before its next decision. */
  stop(): void {
    this.stopping.abort();
  }

  /** One decision per period of the fastest sensor until stopped; `each` is told of every one. */
  async run(each: (decision: Decision) => void): Promise<void> {
    const { clock, wait } = this.timing;
    const stop = this.stopping.signal;
    await this.gather();
    let dueS = clock();
    let lateS = 0;
    while (!stop.aborted) {
      const before = lateS;
      lateS = Math.max(0, clock() - dueS);
      // A sample delayed by a stall may arrive one decision after it.
      const decision = await this.decide(Math.max(lateS, before));
      if (stop.aborted) return;
      each(decision);
      const periodS = 1 / this.rateHz();
      dueS += (1 + Math.floor(Math.max(0, clock() - dueS) / periodS)) * periodS;
      await wait(Math.max(0, dueS - clock()), stop);
    }
  }

  /** Wait a moment for every sensor's first sample; not for one that failed. */
  private async gather(): Promise<void> {
    const { clock, wait } = this.timing;
    const endS = clock() + GATHER_S;
    const waited = (feed: Feed): boolean => feed.mailbox.received === 0 && feed.lastError === null;
    while (clock() < endS && !this.stopping.signal.aborted) {
      const feeds = [...this.tracks.values()].map((track) => track.feed);
      if (feeds.length > 0 && !feeds.some(waited)) return;
      await wait(0.02, this.stopping.signal);
    }
  }

  private rateHz(): number {
    const rates = [...this.tracks.values()].map((track) => track.feed.source.traits.rateHz);
    return Math.min(RATE_LIMIT_HZ, Math.max(5, ...rates));
  }

  /** One decision on what the sensors have delivered up to now. */
  async decide(excusedS = 0): Promise<Decision> {
    const beginS = this.timing.clock();
    const tracks = [...this.tracks];
    const fresh = new Map<string, Received>();
    for (const [name, track] of tracks) {
      const sample = track.update(beginS, excusedS);
      if (sample !== null) fresh.set(name, sample);
    }
    const apart = this.skewed(tracks, fresh, beginS);
    const tensors: Record<string, Tensor> = {};
    const features: Record<string, Tensor> = {};
    for (const [name, track] of tracks) {
      if (Object.hasOwn(apart, name)) continue;
      const sample = fresh.get(name);
      const tensor = sample === undefined ? null : this.preprocess(name, track, sample, beginS);
      const feature = tensor === null ? track.cached(beginS) : null;
      if (tensor !== null) tensors[name] = tensor;
      else if (feature !== null) features[name] = feature.value;
    }
    // Without those that were refused just now.
    const followed = tracks.filter(([name, track]) => this.tracks.get(name) === track);
    const preparedS = this.timing.clock();
    const { inference, failure } = await this.infer(tensors, features);
    for (const [name, track] of tracks) {
      const value = Object.hasOwn(tensors, name) ? inference?.features[name] : undefined;
      if (value !== undefined) track.remember(value, fresh.get(name)!);
    }
    const present = this.engine.manifest.names.filter((name) => Object.hasOwn(tensors, name) || Object.hasOwn(features, name));
    return this.decision(new Map(followed), present, apart, inference, failure, [beginS, preparedS, this.timing.clock()]);
  }

  private preprocess(name: string, track: Track, sample: Received, nowS: number): Tensor | null {
    try {
      return track.preprocess(sample, nowS);
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      this.tracks.delete(name);
      this.refused(name, error.message);
      return null;
    }
  }

  private skewed(tracks: [string, Track][], fresh: ReadonlyMap<string, Received>, nowS: number): Record<string, Evidence> {
    const stamps: Record<string, Stamp> = {};
    for (const [name, track] of tracks) {
      const cached = track.cached(nowS);
      const stampedS = fresh.has(name) ? fresh.get(name)!.frame.capturedS : (cached?.stampedS ?? null);
      if (stampedS !== null) stamps[name] = { stampedS, limits: track.limits };
    }
    return skewed(stamps);
  }

  /** The inference, or why there is none although something is present. */
  private async infer(
    tensors: Record<string, Tensor>,
    features: Record<string, Tensor>,
  ): Promise<{ inference: Inference | null; failure: string | null }> {
    if (Object.keys(tensors).length + Object.keys(features).length === 0) return { inference: null, failure: null };
    try {
      const inference = await this.engine.infer(tensors, features);
      this.failures = 0;
      return { inference, failure: null };
    } catch (error) {
      this.failures += 1;
      if (!(error instanceof EngineError) || this.failures >= ENGINE_FAILURES) throw error;
      return { inference: null, failure: `the engine failed: ${error.message}` };
    }
  }

  private decision(
    followed: ReadonlyMap<string, Track>,
    present: readonly string[],
    apart: Record<string, Evidence>,
    inference: Inference | null,
    failure: string | null,
    [beginS, preparedS, endS]: [number, number, number],
  ): Decision {
    const { manifest } = this.engine;
    const modalities = manifest.names.map((name): [string, Summary] => {
      const found = followed.get(name)?.summary(endS) ?? NOT_CONFIGURED;
      return [name, Object.hasOwn(apart, name) ? { ...found, status: "missing", reason: "skew", evidence: apart[name]! } : found];
    });
    const used = present.flatMap((name) => followed.get(name)!.featureShownS ?? []);
    const reasons = Object.fromEntries(modalities.map(([name, { reason }]) => [name, reason]));
    this.watch = watched(this.watch, this.critical, present, reasons, endS, this.latchS);
    const held = failure ?? holding(this.watch, this.latchS) ?? suspicion(present, followed);
    const outcome = decide(manifest, this.policy, present, inference?.logits ?? null, { held });
    this.seq += 1;
    return {
      seq: this.seq - 1,
      outcome,
      subset: label(present, manifest.names),
      modalities: Object.fromEntries(modalities),
      experts: inference?.experts ?? [],
      latencyMs: {
        preprocess: 1000 * (preparedS - beginS),
        ...inference?.latencyMs,
        total: 1000 * (endS - beginS),
      },
      alarm: this.watch.missing,
      ageMs: used.length === 0 ? null : 1000 * (endS - Math.min(...used)),
    };
  }
}

/** Why sensors that are used may not be believed yet; null while none shows a fault that would mask it. */
function suspicion(present: readonly string[], followed: ReadonlyMap<string, Track>): string | null {
  const found = present.flatMap((name) => {
    const track = followed.get(name)!;
    const fault = suspected(track.health, track.limits);
    return fault === null ? [] : [`${name} may be ${fault}: wait and see`];
  });
  return found.length === 0 ? null : found.join("; ");
}
