/** One sensor as the decision loop follows it: its health, its newest sample, its cached feature. */
import type { Tensor } from "../core/arrays";
import { UsageError } from "../core/errors";
import { seen, starting, step, summary, isPresent, type Health, type Summary } from "../core/health";
import { excusing, kindOf, limitsOf, staleAfterS, type Limits, type Traits } from "../core/limits";
import type { Modality } from "../core/modality";
import { preprocess } from "../core/preprocess";
import type { Received, Mailbox } from "./mailbox";

/** A running sensor: what a `Connection` gives. */
export interface Feed {
  readonly source: { readonly traits: Traits };
  readonly mailbox: Mailbox;
  readonly lastError: string | null;
}

/** An encoder's output and when the sample it came from was seen. */
export interface Feature {
  readonly value: Tensor;
  readonly shownS: number;
  readonly stampedS: number | null;
}

/** When a sample was seen: its capture, but never after its receipt. */
export function shownS({ frame, atS }: Received): number {
  return frame.capturedS === null ? atS : Math.min(frame.capturedS, atS);
}

export class Track {
  newest: Received | null = null;
  health: Health;
  limits: Limits;
  private feature: Feature | null = null;
  private accepted = false;
  private seenS: number | null = null;
  private traits: Traits;

  constructor(
    readonly modality: Modality,
    readonly feed: Feed,
    private readonly masking: readonly string[],
    nowS: number,
  ) {
    this.traits = feed.source.traits;
    this.limits = limitsOf(kindOf(modality), this.traits, masking);
    this.health = starting(nowS);
  }

  /** Take what is new and judge; the new sample if it may be used. `excusedS` is silence that was the page's own stall. */
  update(nowS: number, excusedS: number): Received | null {
    this.refreshTraits();
    const { sample, events } = this.feed.mailbox.take();
    const limits = excusing(this.limits, excusedS);
    this.health = step(this.health, events, nowS, limits);
    if (sample !== null) [this.newest, this.seenS] = [sample, shownS(sample)];
    if (!isPresent(this.health)) this.feature = null;
    if (sample === null || !isPresent(this.health) || nowS - shownS(sample) > staleAfterS(limits)) return null;
    return sample;
  }

  /** The network's input; null if the sample turned out unusable, which health then knows. */
  preprocess({ frame, atS }: Received, nowS: number): Tensor | null {
    try {
      const tensor = preprocess(this.modality, frame.sample);
      this.accepted = true;
      return tensor;
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      if (!this.accepted) throw new UsageError(`sensor ${this.modality.name} (${this.traits.description}): ${error.message}`);
      this.health = step(this.health, [seen(atS, { usable: false })], nowS, this.limits);
      this.feature = null;
      return null;
    }
  }

  /** Keep the encoder's output for a sample until the age limit. */
  remember(value: Tensor, sample: Received): void {
    this.feature = { value, shownS: shownS(sample), stampedS: sample.frame.capturedS };
  }

  /** The feature of an earlier sample while it is within the age limit. */
  cached(nowS: number): Feature | null {
    if (this.feature !== null && nowS - this.feature.shownS > staleAfterS(this.limits)) this.feature = null;
    return this.feature;
  }

  /** When the sample of the kept feature was seen; null where there is none. */
  get featureShownS(): number | null {
    return this.feature?.shownS ?? null;
  }

  /** What a decision says; a usable sensor without a young feature is missing as well. */
  summary(nowS: number): Summary {
    let found = summary(this.health, nowS);
    if (this.seenS !== null && this.seenS !== this.health.sampleS) {
      found = { ...found, ageS: Math.max(0, nowS - this.seenS) };
    }
    if (isPresent(this.health) && this.feature === null) {
      const limitS = staleAfterS(this.limits);
      if (found.ageS === null || found.ageS <= limitS) {
        return { ...found, status: "missing", reason: "no sample", evidence: {} };
      }
      return { ...found, status: "missing", reason: "stale", evidence: { age_s: found.ageS, limit_s: limitS } };
    }
    return found;
  }

  /** The rate of a source may be known only after opening, and may change. */
  private refreshTraits(): void {
    const traits = this.feed.source.traits;
    if (traits === this.traits) return;
    this.traits = traits;
    this.limits = limitsOf(kindOf(this.modality), traits, this.masking);
  }
}
