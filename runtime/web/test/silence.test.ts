import { expect, test } from "vitest";
import { SILENT_MS, Silence } from "../src/page/silence";

test("before the first decision there is no verdict to take back", () => {
  expect(new Silence().reason(1e9)).toBeNull();
});

test("a verdict older than the limit is taken back and the next decision gives it again", () => {
  const silence = new Silence();
  silence.decided(500);
  expect(silence.reason(500 + SILENT_MS)).toBeNull();
  expect(silence.reason(500 + SILENT_MS + 1)).toBe("no decision for 1 s");
  expect(silence.reason(4600)).toBe("no decision for 4 s");
  silence.decided(4600);
  expect(silence.reason(4700)).toBeNull();
});

test("decisions that ended are taken back at once, until another model begins", () => {
  const silence = new Silence();
  silence.decided(500);
  silence.end("the engine failed");
  expect(silence.reason(501)).toBe("decisions have stopped: the engine failed");
  silence.begin();
  expect(silence.reason(1e9)).toBeNull();
});
