import { deflateSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { SensorError } from "../src/core/errors";
import type { Frame } from "../src/core/facts";
import type { Sink } from "../src/loop/connection";
import { readNpy } from "../src/sources/npy";
import { fromRgba } from "../src/sources/pixels";
import { pngHeader, readGrey16 } from "../src/sources/png";
import { RigSource, RigStream } from "../src/sources/rig";
import { hopS, Windows } from "../src/sources/windows";

function npy(header: string, content: Uint8Array): Uint8Array {
  const text = new TextEncoder().encode(header.padEnd(117) + "\n");
  return Uint8Array.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length, 0, ...text, ...content]);
}

describe(".npy", () => {
  const header = "{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }";

  test("an array keeps its type, shape and values", () => {
    const values = Uint16Array.of(1, 2, 3, 400, 50000, 65535);
    expect(readNpy(npy(header, new Uint8Array(values.buffer)), "a.npy")).toEqual({ dtype: "uint16", shape: [2, 3], data: values });
  });

  test("a vector has one dimension", () => {
    const given = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", new Uint8Array(Float32Array.of(0.5).buffer));
    expect(readNpy(given, "a.npy")).toEqual({ dtype: "float32", shape: [1], data: Float32Array.of(0.5) });
  });

  test.each([
    ["another type", npy(header.replace("<u2", "<i8"), new Uint8Array(48)), "a.npy: is <i8, allowed: |u1, <u2, <f4"],
    ["Fortran order", npy(header.replace("False", "True"), new Uint8Array(12)), "a.npy: is <u2 in Fortran order, allowed: |u1, <u2, <f4"],
    ["fewer bytes than its shape", npy(header, new Uint8Array(11)), "a.npy: holds 11 bytes, its shape needs 12"],
    ["no array", npy("{'descr': [('a', '<u2')]}", new Uint8Array(2)), "a.npy: not a .npy file of a plain array"],
    ["another file", new Uint8Array(100), "a.npy: not a .npy file"],
  ])("%s is refused", (_name, bytes, message) => {
    expect(() => readNpy(bytes, "a.npy")).toThrow(new SensorError(message));
  });
});

/** A grey 16-bit PNG whose rows have the filters given, made by the definition of each. */
function png(rows: readonly (readonly number[])[], filters: readonly number[], colour = 0): Uint8Array {
  const bytes = rows.map((row) => row.flatMap((value) => [value >> 8, value & 255]));
  const filtered = bytes.flatMap((row, y) => {
    const at = (line: number[] | undefined, i: number): number => line?.[i] ?? 0;
    const above = bytes[y - 1];
    return [filters[y]!, ...row.map((value, i) => {
      const [a, b, c] = [at(row, i - 2), at(above, i), at(above, i - 2)];
      const p = a + b - c;
      const nearest = [a, b, c].reduce((best, each) => (Math.abs(p - each) < Math.abs(p - best) ? each : best));
      return (value - [0, a, b, (a + b) >> 1, nearest][filters[y]!]! + 256) & 255;
    })];
  });
  const chunk = (type: string, data: Uint8Array): number[] => {
    const length = new Uint8Array(4);
    new DataView(length.buffer).setUint32(0, data.length);
    return [...length, ...new TextEncoder().encode(type), ...data, 0, 0, 0, 0];
  };
  const head = new Uint8Array(13);
  new DataView(head.buffer).setUint32(0, rows[0]!.length);
  new DataView(head.buffer).setUint32(4, rows.length);
  head.set([16, colour, 0, 0, 0], 8);
  const packed = new Uint8Array(deflateSync(Uint8Array.from(filtered)));
  const half = packed.length >> 1;
  return Uint8Array.from([
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, ...chunk("IHDR", head),
    ...chunk("IDAT", packed.subarray(0, half)), ...chunk("IDAT", packed.subarray(half)), ...chunk("IEND", new Uint8Array()),
  ]); // prettier-ignore
}

describe("16-bit PNG", () => {
  const rows = [[1, 500, 65535], [300, 301, 0], [40000, 2, 3], [256, 255, 254], [9, 8, 7]];

  test.each([[[0, 0, 0, 0, 0]], [[1, 2, 3, 4, 4]], [[4, 3, 2, 1, 0]], [[3, 3, 3, 3, 3]]])("keeps its 16 bits under the filters %j", async (filters) => {
    const { data, shape } = await readGrey16(png(rows, filters), "a.png");
    expect(shape).toEqual([5, 3]);
    expect([...data]).toEqual(rows.flat());
  });

  test("colour is left to the browser", () => {
    expect(pngHeader(png(rows, [0, 0, 0, 0, 0], 2))!.grey16).toBe(false);
    expect(pngHeader(new Uint8Array(40))).toBeNull();
  });

  test("a file cut short is refused", async () => {
    const whole = png(rows, [0, 0, 0, 0, 0]);
    await expect(readGrey16(whole.subarray(0, whole.length - 20), "a.png")).rejects.toThrow(SensorError);
  });
});

describe("windows", () => {
  test("the newest samples, once one window is full", () => {
    const windows = new Windows(5);
    expect(windows.push(Float32Array.of(1, 2))).toBeNull();
    expect(windows.push(Float32Array.of(3, 4))).toBeNull();
    expect([...windows.push(Float32Array.of(5, 6))!]).toEqual([2, 3, 4, 5, 6]);
    expect([...windows.push(Float32Array.of(7, 8, 9, 10, 11, 12))!]).toEqual([8, 9, 10, 11, 12]);
  });

  test("a hop is a tenth of the window, 50 to 250 ms", () => {
    expect([0.1, 1, 2, 10].map(hopS)).toEqual([0.05, 0.1, 0.2, 0.25]);
  });
});

test("canvas pixels become colour without opacity, or brightness", () => {
  const rgba = Uint8ClampedArray.of(10, 20, 30, 255, 255, 255, 255, 0);
  expect(fromRgba(rgba, 2, 1, 3)).toEqual({ dtype: "uint8", shape: [1, 2, 3], data: Uint8Array.of(10, 20, 30, 255, 255, 255) });
  expect(fromRgba(rgba, 2, 1, 1)).toEqual({ dtype: "uint8", shape: [1, 2], data: Uint8Array.of(18, 255) });
});

describe("the simulated rig", () => {
  // Two turns of three frames: a (1, 2) uint8 sensor whose first value is the frame's number, and a uint16 one.
  function stream(clock: () => number): RigStream {
    const header = {
      rate_hz: 10, seed: 7, species: ["bona_fide", "flat_print"], frames_per_turn: 3, turn_s: 1,
      sensors: [{ name: "ir", dtype: "uint8", shape: [1, 2] }, { name: "depth", dtype: "uint16", shape: [1] }],
    }; // prettier-ignore
    const text = new TextEncoder().encode(JSON.stringify(header));
    const length = new Uint8Array(4);
    new DataView(length.buffer).setUint32(0, text.length, true);
    const ir = Array.from({ length: 6 }, (_, i) => [i, 100 + i]).flat();
    const depth = new Uint8Array(Uint16Array.of(300, 301, 302, 303, 304, 305).buffer);
    return RigStream.from(Uint8Array.from([...length, ...text, ...ir, ...depth]), clock);
  }

  test("frames go forwards and backwards within a turn, and no frame comes twice in a row", () => {
    const play = stream(() => 0);
    const shown = Array.from({ length: 22 }, (_, index) => play.frame("ir", index).data[0]);
    expect(shown).toEqual([0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 3, 4, 5, 4, 3, 4, 5, 4, 3, 4, 0, 1]);
    expect(play.frame("depth", 11).data).toEqual(Uint16Array.of(304));
  });

  test("time alone says which frame is due and who is on stage", () => {
    let nowS = 5;
    const play = stream(() => nowS);
    expect([play.now, play.species]).toEqual([0, "bona_fide"]);
    nowS = 6.25;
    expect([play.now, play.species]).toEqual([12, "flat_print"]);
    expect(play.untilNextMs).toBeCloseTo(50, 6);
  });

  test("a recording that is cut short is refused", () => {
    expect(() => RigStream.from(Uint8Array.of(2, 0, 0, 0, 123, 125), () => 0)).toThrow();
  });

  async function frames(break_: "freeze" | "dark" | null): Promise<Frame[]> {
    let nowS = 0;
    const source = new RigSource(stream(() => nowS), "ir");
    const found: Frame[] = [];
    const sink: Sink = { frame: (frame) => found.push(frame), ended: () => undefined, failed: () => undefined };
    source.broken = break_;
    for (let i = 0; i < 3; i += 1) {
      nowS = 0.1 * i + 0.01;
      await source.open(sink);
    }
    source.close();
    return found;
  }

  test("a sensor that is well counts its frames", async () => {
    expect((await frames(null)).map(({ sequence, sample }) => [sequence, sample.data[0]])).toEqual([[0, 0], [1, 1], [2, 2]]);
  });

  test("a frozen sensor repeats its frame and its number", async () => {
    expect((await frames("freeze")).map(({ sequence, sample }) => [sequence, sample.data[0]])).toEqual([[0, 0], [0, 0], [0, 0]]);
  });

  test("a darkened sensor goes on in black", async () => {
    expect((await frames("dark")).map(({ sequence, sample }) => [sequence, ...sample.data])).toEqual([[0, 0, 0], [1, 0, 0], [2, 0, 0]]);
  });

  test("an unplugged sensor fails at once and cannot be opened until it is mended", async () => {
    const source = new RigSource(stream(() => 0), "ir");
    const failures: SensorError[] = [];
    const sink: Sink = { frame: () => undefined, ended: () => undefined, failed: (error) => failures.push(error) };
    await source.open(sink);
    source.broken = "unplug";
    expect(failures.map(({ gone, message }) => [gone, message])).toEqual([[true, "simulated ir (seed 7): unplugged (on request)"]]);
    await expect(source.open(sink)).rejects.toThrow(SensorError);
    source.broken = null;
    await source.open(sink);
    source.close();
  });
});
