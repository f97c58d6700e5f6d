import { describe, expect, test } from "vitest";
import { fromBase64, type Sample } from "../src/core/arrays";
import { manifestText, verify } from "../src/core/artifact";
import { criticalSensors } from "../src/core/downgrade";
import { UsageError, ModelFileError } from "../src/core/errors";
import { FactFinder } from "../src/core/facts";
import { topKGates } from "../src/core/gates";
import { seen, starting, step, summary, type Event } from "../src/core/health";
import { kindOf, limitsOf, lostAfterS, noiseMost, skewAfterS, staleAfterS, type Limits, type SensorKind } from "../src/core/limits";
import { manifestFrom, type OnMissing } from "../src/core/manifest";
import { modalityFrom, shapeOf } from "../src/core/modality";
import type { Json } from "../src/core/json";
import { parseStrict } from "../src/core/json";
import { decide } from "../src/core/policy";
import { preprocess } from "../src/core/preprocess";
import { skewed } from "../src/core/skew";
import { apart, number, repeated, stored, vectors, type StoredArray } from "./vectors";

type Table = Record<string, unknown>;
// Whole numbers and fractions are told apart by how they are written.
const modality = (table: Table) => modalityFrom(parseStrict(JSON.stringify(table)) as { [key: string]: Json });

interface Preprocessed {
  name: string;
  modality: Table;
  raw: StoredArray | string;
  tensor?: StoredArray;
  refused?: string;
}

describe("preprocessing", () => {
  test.each(vectors<Preprocessed>("preprocess"))("$name", (given) => {
    const raw: Sample | string = typeof given.raw === "string" ? given.raw : stored(given.raw);
    if (given.tensor === undefined) {
      expect(() => preprocess(modality(given.modality), raw)).toThrow(UsageError);
      return;
    }
    const wanted = stored(given.tensor);
    const tensor = preprocess(modality(given.modality), raw);
    expect(tensor.shape).toEqual(wanted.shape);
    expect(apart(tensor.data, wanted.data)).toBeLessThanOrEqual(1e-5);
  });
});

interface Frames {
  name: string;
  kind: SensorKind;
  audio_rate_hz: number;
  traits: { rate_hz: number; raw: boolean; static: boolean; finite: boolean };
  repeats?: [number, number];
  frames: { data: StoredArray; sequence: number | null; at_s: number; facts: Record<string, number | boolean> }[];
}

describe("facts", () => {
  test.each(vectors<Frames>("facts"))("$name", ({ kind, audio_rate_hz, traits, repeats, frames }) => {
    const finder = new FactFinder(kind, audio_rate_hz);
    const known = { description: "", rateHz: traits.rate_hz, raw: traits.raw, still: traits.static, finite: traits.finite };
    for (const { data, sequence, at_s, facts } of frames) {
      const sample = repeats === undefined ? stored(data) : repeated(stored(data), repeats);
      const found = finder.facts({ sample, sequence, capturedS: null }, known, at_s);
      const wanted = seen(at_s, facts);
      for (const [key, value] of Object.entries(wanted)) {
        const measured = found[key as keyof typeof found];
        if (typeof value === "number") expect(measured, key).toBeCloseTo(value, 5);
        else expect(measured, key).toBe(value);
      }
    }
  });
});

interface LimitsCase {
  modality: Table;
  traits: { rate_hz: number; finite: boolean; start_grace_s: number };
  kind: string;
  limits: Record<string, number | string | null | string[]>;
}

function limitsFrom(table: LimitsCase["limits"]): Limits {
  const entries = Object.entries(table).map(([key, value]) => [key, Array.isArray(value) ? value : number(value)]);
  return Object.fromEntries(entries) as unknown as Limits;
}

test.each(vectors<LimitsCase>("limits"))("limits of $kind, finite $traits.finite", (given) => {
  const m = modality(given.modality);
  expect(kindOf(m)).toBe(given.kind);
  const traits = { description: "", rateHz: given.traits.rate_hz, finite: given.traits.finite, startGraceS: given.traits.start_grace_s };
  const limits = limitsOf(kindOf(m), traits, ["dark"]);
  const derived = { skew_after_s: skewAfterS(limits), stale_after_s: staleAfterS(limits), lost_after_s: lostAfterS(limits), noise_most: noiseMost(limits) };
  expect({ ...limits, ...derived }).toEqual(limitsFrom(given.limits));
});

interface HealthCase {
  name: string;
  limits: LimitsCase["limits"];
  started_s: number;
  steps: { events: Event[]; now_s: number; summary: { status: string; reason: string | null; age_s: number | null; evidence?: Record<string, number | string> } }[];
}

describe("health", () => {
  test.each(vectors<HealthCase>("health"))("$name", ({ limits: table, started_s, steps }) => {
    const limits = limitsFrom(table);
    let state = starting(started_s);
    for (const { events, now_s, summary: wanted } of steps) {
      const full = events.map((event) => (event.type === "sample" ? seen(event.at_s, event) : event));
      state = step(state, full, now_s, limits);
      const found = summary(state, now_s);
      const evidence = Object.fromEntries(Object.entries(wanted.evidence ?? {}).map(([key, value]) => [key, number(value)]));
      expect({ ...found, at: now_s }).toEqual({ status: wanted.status, reason: wanted.reason, ageS: wanted.age_s, evidence, at: now_s });
    }
  });
});

test.each(vectors<{ logits: number[]; k: number; experts: number[]; gates: number[] }>("gates"))("gates $#", (given) => {
  const found = topKGates(given.logits, given.k);
  expect(found.map(({ id }) => id)).toEqual(given.experts);
  found.forEach(({ gate }, index) => expect(gate).toBeCloseTo(given.gates[index]!, 6));
});

interface SkewCase {
  stamps: Record<string, { stamped_s: number; rate_hz: number }>;
  skewed: Record<string, Record<string, number>>;
}

test.each(vectors<SkewCase>("skew"))("skew $#", ({ stamps, skewed: wanted }) => {
  const given = Object.entries(stamps).map(([name, { stamped_s, rate_hz }]) => {
    return [name, { stampedS: stamped_s, limits: limitsOf("other", { description: "", rateHz: rate_hz }) }];
  });
  expect(skewed(Object.fromEntries(given))).toEqual(wanted);
});

interface ManifestCase {
  name: string;
  text: string;
  refused?: string;
  accepted?: { name: string; shapes: Record<string, number[]>; methods: string[] };
}

describe("manifest", () => {
  test.each(vectors<ManifestCase>("manifest"))("$name", ({ text, accepted }) => {
    if (accepted === undefined) {
      expect(() => manifestFrom(text)).toThrow(ModelFileError);
      return;
    }
    const manifest = manifestFrom(text);
    const shapes = Object.fromEntries(manifest.modalities.map((m) => [m.name, shapeOf(m)]));
    expect({ name: manifest.name, shapes, methods: manifest.methods }).toEqual(accepted);
  });
});

interface ArtifactCase {
  name: string;
  data: string;
  format?: string;
  digest?: string;
  manifest?: string;
  refused?: string;
}

describe("artifact", () => {
  test.each(vectors<ArtifactCase>("artifact"))("$name", async ({ data, format, digest, manifest, refused }) => {
    const bytes = fromBase64(data);
    if (format === undefined) {
      const open = async () => manifestText(await verify(bytes, "the file"));
      await expect(open()).rejects.toThrow(new ModelFileError(refused!));
      return;
    }
    const sealed = await verify(bytes, "the file");
    expect(sealed.format).toBe(format);
    expect(sealed.digest).toBe(digest);
    if (format === "onnx") expect(manifestText(sealed)).toBe(manifest);
  });
});

interface PolicyCase {
  manifest: string;
  policy: { require: string[]; on_missing: OnMissing; masking_faults: string[] };
  present: string[];
  logits: (number | null)[] | null;
  allow_uncertified?: boolean;
  held?: string;
  outcome: Record<string, string | number | null>;
}

describe("policy", () => {
  const models = new Map(vectors<{ name: string; text: string }>("models").map(({ name, text }) => [name, manifestFrom(text)]));
  test.each(vectors<PolicyCase>("policy"))("$# $outcome.verdict", (given) => {
    const policy = { require: given.policy.require, onMissing: given.policy.on_missing, maskingFaults: given.policy.masking_faults };
    const logits = given.logits === null ? null : Float32Array.from(given.logits, (value) => value ?? NaN);
    const wishes = { allowUncertified: given.allow_uncertified ?? false, held: given.held ?? null };
    const { shares, score, ...found } = decide(models.get(given.manifest)!, policy, given.present, logits, wishes);
    const { score: wanted, ...rest } = given.outcome;
    expect(found).toEqual(rest);
    expect(shares).toBeNull();
    if (wanted === null) expect(score).toBeNull();
    else expect(score).toBeCloseTo(wanted as number, 12);
  });
});

interface CriticalCase {
  name: string;
  text: string;
  policy: PolicyCase["policy"];
  critical: string[];
}

test.each(vectors<CriticalCase>("critical"))("critical sensors: $name", ({ text, policy, critical }) => {
  const wanted = { require: policy.require, onMissing: policy.on_missing, maskingFaults: policy.masking_faults };
  expect(criticalSensors(manifestFrom(text), wanted)).toEqual(critical);
});
