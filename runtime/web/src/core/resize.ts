/**
 * Image resize as OpenCV computes it, whole numbers to the last bit: area interpolation when shrinking, else linear.
 * Axes: H height, W width, C channels; pixels are (H, W, C).
 * Source: the definitions of INTER_AREA and INTER_LINEAR of OpenCV 4 (modules/imgproc, resize), its arithmetic included:
 * 11-bit fixed point for linear 8-bit, float32 sums elsewhere, rounding half to even.
 */
import { roundHalfEven, type Values } from "./arrays";

export interface Picture {
  readonly height: number;
  readonly width: number;
  readonly channels: number;
  readonly data: Values;
}

type Size = readonly [number, number];
const fround = Math.fround;
// As OpenCV compares its scales.
const EPSILON = 2 ** -52;
const LINEAR_BITS = 2048;

/** `picture` at another size; 0 in uint16 pictures means "no measurement" and enters no average. */
export function resize(picture: Picture, size: Size): Picture {
  const { data } = picture;
  if (!(data instanceof Uint16Array) || data.every((value) => value !== 0)) return interpolate(picture, size);
  const measured = interpolate({ ...picture, data: Float32Array.from(data, (value) => Number(value > 0)) }, size);
  const total = interpolate({ ...picture, data: Float32Array.from(data) }, size);
  const mean = new Uint16Array(total.data.length);
  // Under half measured is a hole; the mean over the measured part otherwise.
  for (let at = 0; at < mean.length; at += 1) {
    const share = measured.data[at]!;
    if (share >= 0.5) mean[at] = roundHalfEven(fround(total.data[at]! / share));
  }
  return { ...total, data: mean };
}

function interpolate(picture: Picture, [height, width]: Size): Picture {
  const shrinks = picture.height >= height && picture.width >= width;
  const resized = shrinks ? area(picture, height, width) : linear(picture, height, width);
  return { height, width, channels: picture.channels, data: resized };
}

function like(data: Values, length: number): Values {
  if (data instanceof Uint8Array) return new Uint8Array(length);
  return data instanceof Uint16Array ? new Uint16Array(length) : new Float32Array(length);
}

/** What a float32 becomes in the element type of `out`: rounded and saturated for whole numbers. */
function storer(out: Values): (at: number, value: number) => void {
  if (out instanceof Float32Array) {
    return (at, value) => {
      out[at] = value;
    };
  }
  const top = out instanceof Uint8Array ? 255 : 65535;
  return (at, value) => {
    const whole = roundHalfEven(value);
    out[at] = whole < 0 ? 0 : whole > top ? top : whole;
  };
}

function area(picture: Picture, height: number, width: number): Values {
  const [scaleY, scaleX] = [1 / (height / picture.height), 1 / (width / picture.width)];
  const [stepY, stepX] = [roundHalfEven(scaleY), roundHalfEven(scaleX)];
  const whole = Math.abs(scaleX - stepX) < EPSILON && Math.abs(scaleY - stepY) < EPSILON;
  return whole ? wholeArea(picture, height, width, stepY, stepX) : partArea(picture, height, width, scaleY, scaleX);
}

/** Every pixel is the mean of a block of whole pixels. */
function wholeArea(picture: Picture, height: number, width: number, stepY: number, stepX: number): Values {
  const { data, channels } = picture;
  const out = like(data, height * width * channels);
  const store = storer(out);
  const row = picture.width * channels;
  const real = data instanceof Float32Array;
  // The group of channels of a pixel decides the path: OpenCV gets them by fours.
  const factor = fround(1 / (stepX * stepY));
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      for (let c = 0; c < channels; c += 1, at += 1) {
        const first = y * stepY * row + x * stepX * channels + c;
        if (stepX === 2 && stepY === 2 && halves(channels, c)) {
          const [a, b] = [data[first]!, data[first + channels]!];
          const [d, e] = [data[first + row]!, data[first + row + channels]!];
          if (real) store(at, fround(fround(fround(a + b) + fround(d + e)) * 0.25));
          else store(at, (a + b + d + e + 2) >> 2);
          continue;
        }
        let sum = 0;
        for (let k = 0; k < stepY * stepX; k += 4) sum = fround(sum + block(data, first, row, channels, stepX, k, stepY));
        store(at, fround(sum * factor));
      }
    }
  }
  return out;
}

/** Whether OpenCV halves this channel in integers: groups of 1, 3 and 4 channels have a path of their own. */
function halves(channels: number, c: number): boolean {
  const group = Math.min(4, channels - 4 * Math.floor(c / 4));
  return group !== 2;
}

/** The sum of up to four pixels of a block from its `k`-th on, added from the left in float32. */
function block(
  data: Values,
  first: number,
  row: number,
  channels: number,
  stepX: number,
  k: number,
  stepY: number,
): number {
  const end = Math.min(k + 4, stepX * stepY);
  let sum = 0;
  for (let i = k; i < end; i += 1) {
    sum = fround(sum + data[first + Math.floor(i / stepX) * row + (i % stepX) * channels]!);
  }
  return sum;
}

interface Share {
  readonly to: number;
  readonly from: number;
  readonly weight: number;
}

/** Which share of each source pixel falls into each target pixel, along one axis. */
function shares(from: number, to: number, scale: number): Share[] {
  const found: Share[] = [];
  for (let at = 0; at < to; at += 1) {
    const begin = at * scale;
    const end = begin + scale;
    const cell = Math.min(scale, from - begin);
    const last = Math.min(Math.floor(end), from - 1);
    const first = Math.min(Math.ceil(begin), last);
    if (first - begin > 1e-3) found.push({ to: at, from: first - 1, weight: fround((first - begin) / cell) });
    for (let i = first; i < last; i += 1) found.push({ to: at, from: i, weight: fround(1 / cell) });
    if (end - last > 1e-3) {
      found.push({ to: at, from: last, weight: fround(Math.min(Math.min(end - last, 1), cell) / cell) });
    }
  }
  return found;
}

function partArea(picture: Picture, height: number, width: number, scaleY: number, scaleX: number): Values {
  const { data, channels } = picture;
  const [columns, rows] = [shares(picture.width, width, scaleX), shares(picture.height, height, scaleY)];
  const out = like(data, height * width * channels);
  const store = storer(out);
  const length = width * channels;
  const [buffer, sum] = [new Float32Array(length), new Float32Array(length)];
  let before = 0;
  const flush = (y: number): void => {
    for (let i = 0; i < length; i += 1) store(y * length + i, sum[i]!);
  };
  for (const { to, from, weight } of rows) {
    buffer.fill(0);
    const row = from * picture.width * channels;
    for (const column of columns) {
      const [target, source] = [column.to * channels, row + column.from * channels];
      for (let c = 0; c < channels; c += 1) {
        buffer[target + c] = buffer[target + c]! + fround(data[source + c]! * column.weight);
      }
    }
    if (to !== before) {
      flush(before);
      sum.fill(0);
      before = to;
      for (let i = 0; i < length; i += 1) sum[i] = weight * buffer[i]!;
    } else {
      for (let i = 0; i < length; i += 1) sum[i] = sum[i]! + fround(weight * buffer[i]!);
    }
  }
  flush(before);
  return out;
}

interface Pair {
  readonly first: number;
  readonly second: number;
  /** Weight of the second, float32. */
  readonly part: number;
}

/** The two source pixels of each target pixel along one axis. */
function pairs(from: number, to: number, clampWeight: boolean): Pair[] {
  const scale = 1 / (to / from);
  return Array.from({ length: to }, (_, at) => {
    const centre = fround((at + 0.5) * scale - 0.5);
    let first = Math.floor(centre);
    let part = fround(centre - first);
    if (clampWeight && first < 0) [first, part] = [0, 0];
    if (clampWeight && first >= from - 1) [first, part] = [from - 1, 0];
    const inside = (i: number): number => Math.min(Math.max(i, 0), from - 1);
    return { first: inside(first), second: inside(first + 1), part };
  });
}

function linear(picture: Picture, height: number, width: number): Values {
  const columns = pairs(picture.width, width, true);
  const rows = pairs(picture.height, height, false);
  const out = like(picture.data, height * width * picture.channels);
  if (out instanceof Uint8Array) linearFixed(picture, columns, rows, out);
  else linearReal(picture, columns, rows, out);
  return out;
}

/** 8-bit pictures: weights of 11 bits, sums of 32, as OpenCV's vector code shifts them. */
function linearFixed(picture: Picture, columns: readonly Pair[], rows: readonly Pair[], out: Uint8Array): void {
  const { data, channels } = picture;
  const row = picture.width * channels;
  const fixed = (weight: number): number => roundHalfEven(fround(weight * LINEAR_BITS));
  let at = 0;
  for (const y of rows) {
    const [up, down] = [fixed(fround(1 - y.part)), fixed(y.part)];
    for (const x of columns) {
      const [left, right] = [fixed(fround(1 - x.part)), fixed(x.part)];
      for (let c = 0; c < channels; c += 1, at += 1) {
        const [a, b] = [x.first * channels + c, x.second * channels + c];
        const above = data[y.first * row + a]! * left + data[y.first * row + b]! * right;
        const below = data[y.second * row + a]! * left + data[y.second * row + b]! * right;
        out[at] = (((up * (above >> 4)) >> 16) + ((down * (below >> 4)) >> 16) + 2) >> 2;
      }
    }
  }
}

function linearReal(picture: Picture, columns: readonly Pair[], rows: readonly Pair[], out: Values): void {
  const { data, channels } = picture;
  const row = picture.width * channels;
  const store = storer(out);
  const along = (line: number, x: Pair, c: number): number =>
    fround(
      fround(data[line + x.first * channels + c]! * fround(1 - x.part)) +
        fround(data[line + x.second * channels + c]! * x.part),
    );
  let at = 0;
  for (const y of rows) {
    const [up, down] = [fround(1 - y.part), y.part];
    for (const x of columns) {
      for (let c = 0; c < channels; c += 1, at += 1) {
        const above = along(y.first * row, x, c);
        const below = along(y.second * row, x, c);
        store(at, fround(fround(above * up) + fround(below * down)));
      }
    }
  }
}
