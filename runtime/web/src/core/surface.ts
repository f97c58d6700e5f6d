/**
 * Whether a depth picture shows surfaces at all: how much of it does, and how rough they are; as
 * `mars_runtime/surface.py`. Axes: H and W pixels of a picture, C channels; 0 means "no measurement".
 */
import type { Values } from "./arrays";

const fround = Math.fround;
// Of one surface are two neighbours in a thinned picture that differ by at most this share of their depth.
const STEP_SHARE = fround(0.1);
const ROWS = 16;
const COLUMNS = 160;
// Fewer measured neighbourhoods than this say nothing of roughness.
const FEWEST = 50;
// Mean of |x| of a standard normal variable over the smaller three quarters of its values.
const TRIMMED_MEAN = 0.51483;

/** Share of the pixels that show no surface: no measurement, or unlike both neighbours in their row. */
export function missingShare(data: Values, width: number, channels: number): number {
  const c = Math.min(1, channels - 1);
  const count = data.length / channels;
  const at = (pixel: number): number => data[pixel * channels + c]!;
  const alike = (pixel: number): boolean => {
    const [left, right] = [at(pixel), at(pixel + 1)];
    return left > 0 && Math.abs(left - right) <= fround(STEP_SHARE * left);
  };
  let seen = 0;
  for (let pixel = 0; pixel < count; pixel += 1) {
    const x = pixel % width;
    seen += Number((x + 1 < width && alike(pixel)) || (x > 0 && alike(pixel - 1)));
  }
  return 1 - seen / count;
}

/**
 * Standard deviation of the pixel noise as a share of the depth itself; null where too little is measured.
 * As `noise`, of those 3 x 3 neighbourhoods that are measured throughout.
 */
export function roughness(data: Values, shape: readonly number[]): number | null {
  const [height, width, channels] = [shape[0]!, shape[1]!, shape[2] ?? 1];
  if (Math.min(height, width) < 3) return null;
  const c = Math.min(1, channels - 1);
  const left = Math.max(0, Math.floor((width - COLUMNS) / 2));
  const columns = Math.min(COLUMNS, width - left);
  const at = (y: number, x: number): number => data[(y * width + left + x) * channels + c]!;
  const both: number[] = [];
  for (const row of spread(height, ROWS)) {
    const down = Array.from({ length: columns }, (_, x) => at(row, x) - 2 * at(row + 1, x) + at(row + 2, x));
    const least = Array.from({ length: columns }, (_, x) => Math.min(at(row, x), at(row + 1, x), at(row + 2, x)));
    for (let x = 0; x + 2 < columns; x += 1) {
      if (Math.min(least[x]!, least[x + 1]!, least[x + 2]!) === 0) continue;
      both.push(Math.abs(down[x]! - 2 * down[x + 1]! + down[x + 2]!) / at(row + 1, x + 1));
    }
  }
  if (both.length < FEWEST) return null;
  const kept = Math.floor((3 * both.length) / 4);
  const smallest = Float64Array.from(both).sort().subarray(0, kept);
  return smallest.reduce((a, b) => a + b, 0) / kept / (6 * TRIMMED_MEAN);
}

/** The first of three rows each, at most `most`, spread evenly over the picture. */
export function spread(height: number, most: number): number[] {
  const count = Math.min(most, height - 2);
  const step = (height - 3) / (count - 1);
  return Array.from({ length: count }, (_, i) => (count === 1 ? 0 : Math.trunc(i === count - 1 ? height - 3 : i * step)));
}
