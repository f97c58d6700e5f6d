import { describe, expect, test } from "vitest";
import { sample, type Tensor } from "../src/core/arrays";
import { EngineError, SensorError } from "../src/core/errors";
import { FactFinder, type Frame } from "../src/core/facts";
import { seen } from "../src/core/health";
import type { Traits } from "../src/core/limits";
import { manifestFrom, type Manifest } from "../src/core/manifest";
import { label } from "../src/core/subsets";
import type { Engine, Inference } from "../src/engine/engine";
import { Connection, PAGE_TIMING, type Sink, type Source, type Timing } from "../src/loop/connection";
import { Mailbox } from "../src/loop/mailbox";
import { Pipeline } from "../src/loop/pipeline";
import { vectors } from "./vectors";

/** A clock that runs only while somebody waits. */
class Clock {
  nowS = 100;
  private readonly sleepers: { untilS: number; wake: () => void }[] = [];

  readonly timing: Timing = {
    clock: () => this.nowS,
    wait: (seconds, stop) =>
      new Promise((resolve) => {
        const wake = (): void => {
          stop.removeEventListener("abort", wake);
          resolve();
        };
        stop.addEventListener("abort", wake);
        this.sleepers.push({ untilS: this.nowS + seconds, wake });
      }),
    uniform: () => 0.5,
  };

  /** Let time pass; whoever waits is woken in order. */
  async pass(seconds: number): Promise<void> {
    const untilS = this.nowS + seconds;
    await settled();
    for (;;) {
      const due = this.sleepers.filter((each) => each.untilS <= untilS + 1e-9).sort((a, b) => a.untilS - b.untilS)[0];
      if (due === undefined) break;
      this.sleepers.splice(this.sleepers.indexOf(due), 1);
      this.nowS = Math.max(this.nowS, due.untilS);
      due.wake();
      await settled();
    }
    this.nowS = untilS;
  }
}

async function settled(): Promise<void> {
  for (let i = 0; i < 20; i += 1) await Promise.resolve();
}

const TRAITS: Traits = { description: "test", rateHz: 10, raw: true };
let shade = 0;

/** A (4, 4) picture that differs from every other one. */
function frame(channels = 1, dtype = "uint8"): Frame {
  shade = (shade + 7) % 101;
  const values = Array.from({ length: 16 * channels }, (_, i) => 50 + ((i * 37 + shade * 13) % 150));
  const data = dtype === "uint16" ? Uint16Array.from(values, (v) => v + 400) : Uint8Array.from(values);
  return { sample: sample(data, channels === 1 ? [4, 4] : [4, 4, channels]), sequence: null, capturedS: null };
}

class FakeSource implements Source {
  readonly traits = TRAITS;
  opened = 0;
  closed = 0;
  sink: Sink | null = null;
  refuses: SensorError | null = null;

  async open(sink: Sink): Promise<void> {
    this.opened += 1;
    if (this.refuses !== null) throw this.refuses;
    this.sink = sink;
  }

  close(): void {
    this.closed += 1;
    this.sink = null;
  }
}

function connect(clock: Clock, source: Source): Connection {
  const connection = new Connection(source, new FactFinder("infrared"), () => 1, clock.timing);
  void connection.run();
  return connection;
}

test("a wait that has ended leaves nothing behind at its signal", async () => {
  const kept = new Set<unknown>();
  const signal = {
    addEventListener: (_type: string, listener: unknown) => kept.add(listener),
    removeEventListener: (_type: string, listener: unknown) => kept.delete(listener),
  } as unknown as AbortSignal;
  await PAGE_TIMING.wait(0.001, signal);
  expect(kept.size).toBe(0);
});

describe("mailbox", () => {
  test("a frame is never handed out twice, and a replaced one is counted", () => {
    const box = new Mailbox();
    box.put({ frame: frame(), atS: 1 }, seen(1));
    const newest = { frame: frame(), atS: 2 };
    box.put(newest, seen(2));
    expect(box.waiting).toBe(true);
    expect(box.take()).toEqual({ sample: newest, events: [seen(1), seen(2)] });
    expect(box.take()).toEqual({ sample: null, events: [] });
    expect([box.received, box.dropped]).toEqual([2, 1]);
  });

  test("events of a loop that does not ask are bounded", () => {
    const box = new Mailbox();
    for (let i = 0; i < 3000; i += 1) box.put(null, seen(i));
    const { events } = box.take();
    expect(events.length).toBeLessThanOrEqual(1024);
    expect(events.at(-1)).toEqual(seen(2999));
  });
});

describe("connection", () => {
  test("silence for longer than its limit opens the source again", async () => {
    const [clock, source] = [new Clock(), new FakeSource()];
    const connection = connect(clock, source);
    await clock.pass(0.05);
    source.sink!.frame(frame());
    await clock.pass(0.9);
    expect(source.opened).toBe(1);
    await clock.pass(0.3);
    expect(source.opened).toBe(2);
    connection.stop();
  });

  test("a device that has gone is tried again after 1, 2, 4 seconds", async () => {
    const [clock, source] = [new Clock(), new FakeSource()];
    source.refuses = new SensorError("no such device", true);
    const connection = connect(clock, source);
    const counts = [];
    for (const seconds of [0.5, 0.6, 1.8, 0.4, 3.5, 0.6]) {
      await clock.pass(seconds);
      counts.push(source.opened);
    }
    expect(counts).toEqual([1, 2, 2, 3, 3, 4]);
    expect(connection.lastError).toBe("no such device");
    const events = connection.mailbox.take().events;
    expect(events.every((event) => event.type === "failed" && event.gone)).toBe(true);
    connection.stop();
  });

  test("the back-off ends with the first sample", async () => {
    const [clock, source] = [new Clock(), new FakeSource()];
    source.refuses = new SensorError("busy");
    const connection = connect(clock, source);
    await clock.pass(6.5);
    expect(source.opened).toBe(3);
    source.refuses = null;
    await clock.pass(1);
    source.sink!.frame(frame());
    await clock.pass(0.2);
    source.sink!.failed(new SensorError("pulled", true));
    await clock.pass(1.3);
    expect(source.opened).toBe(5);
    connection.stop();
  });

  test("one error is reported and the source stays open; three in a row open it again", async () => {
    const [clock, source] = [new Clock(), new FakeSource()];
    const connection = connect(clock, source);
    await clock.pass(0.05);
    source.sink!.failed(new SensorError("glitch"));
    source.sink!.failed(new SensorError("glitch"));
    source.sink!.frame(frame());
    source.sink!.failed(new SensorError("glitch"));
    await clock.pass(0.5);
    expect(source.opened).toBe(1);
    source.sink!.failed(new SensorError("glitch"));
    source.sink!.failed(new SensorError("glitch"));
    await clock.pass(1.5);
    expect(source.opened).toBe(2);
    connection.stop();
  });

  test("a source that has ended is not opened again, and late frames of a closed one are dropped", async () => {
    const [clock, source] = [new Clock(), new FakeSource()];
    const connection = connect(clock, source);
    await clock.pass(0.05);
    const sink = source.sink!;
    sink.frame(frame());
    sink.ended();
    sink.frame(frame());
    await clock.pass(5);
    expect([source.opened, connection.mailbox.received]).toEqual([1, 1]);
    expect(connection.mailbox.take().events.map(({ type }) => type)).toEqual(["sample", "ended"]);
  });

  test("stopping closes the source", async () => {
    const [clock, source] = [new Clock(), new FakeSource()];
    const connection = connect(clock, source);
    await clock.pass(0.05);
    connection.stop();
    await clock.pass(5);
    expect(source.opened).toBe(1);
    expect(source.closed).toBeGreaterThan(0);
  });
});

interface Asked {
  readonly fresh: string;
  readonly cached: string;
}

/** Answers at once; the features of a modality are its own mark. */
class FakeEngine implements Engine {
  readonly asked: Asked[] = [];
  failing = false;

  constructor(readonly manifest: Manifest) {}

  async infer(samples: Record<string, Tensor>, features: Record<string, Tensor>): Promise<Inference> {
    if (this.failing) throw new EngineError("on purpose");
    const names = (table: Record<string, Tensor>) => label(Object.keys(table), this.manifest.names);
    this.asked.push({ fresh: names(samples), cached: names(features) });
    const used = [...Object.keys(samples), ...Object.keys(features)];
    const mark = (name: string): Tensor => ({ shape: [2, 2, 2], data: new Float32Array(8).fill(name.length) });
    return {
      logits: Float32Array.of(0, 2),
      experts: [{ id: 1, gate: 1 }],
      features: Object.fromEntries(used.map((name) => [name, mark(name)])),
      latencyMs: { graph: 1 },
    };
  }

  close(): void {}
}

const TEXT = vectors<{ name: string; text: string }>("models")[0]!.text;
const MANIFEST = manifestFrom(TEXT);

class Rig {
  readonly clock = new Clock();
  readonly engine: FakeEngine;
  readonly refused: string[] = [];
  readonly boxes = new Map<string, Mailbox>();
  readonly pipeline: Pipeline;
  private readonly finders = new Map<string, FactFinder>();

  constructor(names = MANIFEST.names, policy = MANIFEST.policy, manifest = MANIFEST) {
    this.engine = new FakeEngine(manifest);
    this.pipeline = new Pipeline(this.engine, policy, (name, message) => this.refused.push(`${name}: ${message}`), this.clock.timing);
    for (const name of names) {
      const mailbox = new Mailbox();
      this.boxes.set(name, mailbox);
      this.finders.set(name, FactFinder.of(manifest.modalities.find((m) => m.name === name)!));
      this.pipeline.connect(name, { source: { traits: TRAITS }, mailbox, lastError: null });
    }
  }

  give(...names: string[]): void {
    for (const name of names) {
      const given = name === "rgb" ? frame(3) : frame(1, name === "depth" ? "uint16" : "uint8");
      const atS = this.clock.nowS;
      this.boxes.get(name)!.put({ frame: given, atS }, this.finders.get(name)!.facts(given, TRAITS, atS));
    }
  }
}

describe("pipeline", () => {
  test("only new samples are encoded, and a young feature is used again", async () => {
    const rig = new Rig();
    rig.give("rgb", "depth", "ir");
    expect((await rig.pipeline.decide()).subset).toBe("rgb+depth+ir");
    rig.clock.nowS += 0.1;
    rig.give("ir");
    const decision = await rig.pipeline.decide();
    expect(decision.subset).toBe("rgb+depth+ir");
    expect(rig.engine.asked).toEqual([{ fresh: "rgb+depth+ir", cached: "none" }, { fresh: "ir", cached: "rgb+depth" }]);
    expect(decision.ageMs).toBeCloseTo(100, 6);
  });

  test("a silent sensor is masked at its age limit, and its feature is never used again", async () => {
    const rig = new Rig();
    rig.give("rgb", "depth", "ir");
    await rig.pipeline.decide();
    for (let i = 0; i < 2; i += 1) {
      rig.clock.nowS += 0.1;
      rig.give("rgb", "ir");
      expect((await rig.pipeline.decide()).subset).toBe("rgb+depth+ir");
    }
    rig.clock.nowS += 0.12;
    rig.give("rgb", "ir");
    const decision = await rig.pipeline.decide();
    expect(decision.subset).toBe("rgb+ir");
    expect(decision.modalities["depth"]).toMatchObject({ status: "missing", reason: "stale" });
    expect(rig.engine.asked.at(-1)).toEqual({ fresh: "rgb+ir", cached: "none" });
    expect(decision.outcome.verdict).toBe("accept");
  });

  test("a sensor that was not named is not configured, and the policy decides what that means", async () => {
    const rig = new Rig(["rgb"]);
    rig.give("rgb");
    const decision = await rig.pipeline.decide();
    expect(decision.modalities["ir"]).toMatchObject({ status: "missing", reason: "not configured" });
    expect(decision.outcome).toMatchObject({ verdict: "abstain", reason: "subset rgb is not certified" });
  });

  test("nothing present runs nothing", async () => {
    const rig = new Rig();
    const decision = await rig.pipeline.decide();
    expect(rig.engine.asked).toEqual([]);
    expect(decision).toMatchObject({ subset: "none", ageMs: null, experts: [] });
    expect(decision.outcome.reason).toBe("no sensor is usable");
  });

  test("the loop's own stall is not the sensors' silence, but no feature outlives its limit", async () => {
    const rig = new Rig();
    rig.give("rgb", "depth", "ir");
    await rig.pipeline.decide();
    rig.clock.nowS += 0.6;
    const stalled = await rig.pipeline.decide(0.5);
    expect(stalled.subset).toBe("none");
    expect(stalled.modalities["ir"]).toMatchObject({ status: "missing", reason: "stale" });
    rig.give("rgb", "depth", "ir");
    // Had the silence been the sensors' own, ten good samples would have to come first.
    expect((await rig.pipeline.decide(0.5)).subset).toBe("rgb+depth+ir");
  });

  test("an engine that fails abstains, and ends the loop when it goes on failing", async () => {
    const rig = new Rig();
    rig.engine.failing = true;
    for (let i = 0; i < 9; i += 1) {
      rig.give("ir");
      const { outcome } = await rig.pipeline.decide();
      expect(outcome).toMatchObject({ verdict: "abstain", reason: "the engine failed: on purpose" });
      rig.clock.nowS += 0.05;
    }
    rig.give("ir");
    await expect(rig.pipeline.decide()).rejects.toThrow(EngineError);
  });

  test("a first sample that does not fit is refused with its reason; the others go on", async () => {
    const rig = new Rig();
    const wrong: Frame = { sample: sample(new Uint8Array(4), [2, 2]), sequence: null, capturedS: null };
    rig.boxes.get("depth")!.put({ frame: wrong, atS: rig.clock.nowS }, seen(rig.clock.nowS));
    rig.give("ir");
    const decision = await rig.pipeline.decide();
    expect(rig.refused).toEqual(["depth: sensor depth (test): depth: sample is uint8, expected uint16"]);
    expect(decision.subset).toBe("ir");
    expect(decision.modalities["depth"]).toMatchObject({ reason: "not configured" });
  });

  test("a later sample that does not fit is unusable, and its sensor missing", async () => {
    const rig = new Rig(["ir"]);
    rig.give("ir");
    await rig.pipeline.decide();
    rig.clock.nowS += 0.1;
    const wrong: Frame = { sample: sample(new Uint8Array(12), [2, 2, 3]), sequence: null, capturedS: null };
    rig.boxes.get("ir")!.put({ frame: wrong, atS: rig.clock.nowS }, seen(rig.clock.nowS));
    const decision = await rig.pipeline.decide();
    expect(decision.modalities["ir"]).toMatchObject({ status: "missing", reason: "unusable" });
    expect(rig.refused).toEqual([]);
  });

  test("a stamp of another moment takes no part in that decision", async () => {
    const rig = new Rig(["rgb", "ir"]);
    const nowS = rig.clock.nowS;
    const stamped = (name: string, capturedS: number): void => {
      const given = { ...frame(name === "rgb" ? 3 : 1), capturedS };
      rig.boxes.get(name)!.put({ frame: given, atS: nowS }, seen(nowS, { stamped_s: capturedS }));
    };
    stamped("rgb", nowS - 0.19);
    stamped("ir", nowS - 0.01);
    const decision = await rig.pipeline.decide();
    expect(decision.subset).toBe("ir");
    expect(decision.modalities["rgb"]).toMatchObject({ status: "missing", reason: "skew" });
  });

  test("a sensor by the name of something every object inherits is one like any other", async () => {
    const manifest = manifestFrom(TEXT.replaceAll(/(?<=["+_])depth(?=["+|])/g, "constructor"));
    expect(manifest.names).toEqual(["rgb", "constructor", "ir"]);
    const rig = new Rig(["constructor"], manifest.policy, manifest);
    const given = frame(1, "uint16");
    rig.boxes.get("constructor")!.put({ frame: given, atS: rig.clock.nowS }, seen(rig.clock.nowS));
    const decision = await rig.pipeline.decide();
    expect(decision.subset).toBe("constructor");
    expect(decision.modalities["constructor"]).toMatchObject({ status: "ok", reason: null });
    expect(decision.outcome).toMatchObject({ verdict: "abstain", reason: "subset constructor has no operating point" });
  });

  test("it decides at the rate of its fastest sensor until it is stopped", async () => {
    const rig = new Rig();
    rig.give("rgb", "depth", "ir");
    let count = 0;
    const running = rig.pipeline.run(() => (count += 1));
    await rig.clock.pass(1.05);
    expect(count).toBe(11);
    rig.pipeline.stop();
    await rig.clock.pass(1);
    await running;
    expect(count).toBe(11);
  });
});
