import { describe, expect, test } from "vitest";
import { sample, type Sample, type Tensor } from "../src/core/arrays";
import { EngineError } from "../src/core/errors";
import { seen, type Event } from "../src/core/health";
import type { Traits } from "../src/core/limits";
import { manifestFrom, type Manifest, type OnMissing } from "../src/core/manifest";
import { label } from "../src/core/subsets";
import type { Engine, Inference } from "../src/engine/engine";
import { PAGE_TIMING } from "../src/loop/connection";
import { Mailbox } from "../src/loop/mailbox";
import { Pipeline } from "../src/loop/pipeline";
import { vectors } from "./vectors";

interface Step {
  now_s: number;
  excused_s: number;
  engine_fails: boolean;
  given: Record<string, { events: Event[]; fits: boolean | null }>;
  asked: { encoded: string; cached: string } | null;
  decision: {
    subset: string;
    modalities: Record<string, { status: string; reason: string | null; age_s: number | null }>;
    verdict: string;
    reason: string | null;
    age_ms: number | null;
    alarm: string[];
  };
}

interface Case {
  name: string;
  policy: { require: string[]; on_missing: OnMissing; masking_faults: string[] };
  latch_s: number;
  started_s: number;
  rate_hz: number;
  steps: Step[];
}

const MANIFEST = manifestFrom(vectors<{ name: string; text: string }>("models")[0]!.text);
const FITTING: Record<string, Sample> = {
  rgb: sample(new Uint8Array(48).fill(100), [4, 4, 3]),
  depth: sample(new Uint16Array(16).fill(500), [4, 4]),
  ir: sample(new Uint8Array(16).fill(100), [4, 4]),
};
const UNFIT = sample(new Uint8Array(16), [2, 2, 2, 2]);

class NotingEngine implements Engine {
  asked: Step["asked"] = null;
  failing = false;

  constructor(readonly manifest: Manifest) {}

  async infer(samples: Record<string, Tensor>, features: Record<string, Tensor>): Promise<Inference> {
    if (this.failing) throw new EngineError("on purpose");
    const named = (table: Record<string, Tensor>): string => label(Object.keys(table), this.manifest.names);
    this.asked = { encoded: named(samples), cached: named(features) };
    const used = [...Object.keys(samples), ...Object.keys(features)];
    const feature = { shape: [2, 2, 2], data: new Float32Array(8) };
    return {
      logits: Float32Array.of(0, 2),
      experts: [{ id: 1, gate: 1 }],
      features: Object.fromEntries(used.map((name) => [name, feature])),
      latencyMs: {},
    };
  }

  close(): void {}
}

describe("the decision loop", () => {
  test.each(vectors<Case>("loop"))("$name", async ({ policy, latch_s, started_s, rate_hz, steps }) => {
    let nowS = started_s;
    const engine = new NotingEngine(MANIFEST);
    const wanted = { require: policy.require, onMissing: policy.on_missing, maskingFaults: policy.masking_faults };
    const refused: string[] = [];
    const timing = { ...PAGE_TIMING, clock: () => nowS };
    const pipeline = new Pipeline(engine, wanted, (name, message) => refused.push(`${name}: ${message}`), timing, latch_s);
    const traits: Traits = { description: "contract", rateHz: rate_hz, raw: true, startGraceS: 1 };
    const boxes = Object.fromEntries(Object.keys(steps[0]!.given).map((name) => [name, new Mailbox()]));
    for (const [name, mailbox] of Object.entries(boxes)) pipeline.connect(name, { source: { traits }, mailbox, lastError: null });
    for (const step of steps) {
      nowS = step.now_s;
      [engine.failing, engine.asked] = [step.engine_fails, null];
      for (const [name, { events, fits }] of Object.entries(step.given)) deliver(boxes[name]!, name, events, fits);
      const { subset, modalities, outcome, ageMs, alarm } = await pipeline.decide(step.excused_s);
      const told = Object.entries(modalities).map(([name, { status, reason, ageS }]) => [name, { status, reason, age_s: ageS }]);
      expect({ at: nowS, asked: engine.asked }).toEqual({ at: nowS, asked: step.asked });
      expect({ at: nowS, subset, modalities: Object.fromEntries(told), verdict: outcome.verdict, reason: outcome.reason, age_ms: ageMs, alarm })
        .toEqual({ at: nowS, ...step.decision });
    }
    expect(refused).toEqual([]);
  });
});

function deliver(box: Mailbox, name: string, events: readonly Event[], fits: boolean | null): void {
  const full = events.map((event) => (event.type === "sample" ? seen(event.at_s, event) : event));
  const last = full.find((event) => event.type === "sample");
  if (fits === null || last === undefined) return box.put(null, ...full);
  const given = fits ? FITTING[name]! : UNFIT;
  box.put({ frame: { sample: given, sequence: null, capturedS: last.stamped_s }, atS: last.at_s }, ...full);
}
