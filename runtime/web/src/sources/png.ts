/** Grey 16-bit PNG, which browsers decode to 8 bits (https://www.w3.org/TR/png-3/). */
import { sample, type Sample } from "../core/arrays";
import { SensorError } from "../core/errors";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const MOST_PIXELS = 2 ** 26;

interface Header {
  readonly width: number;
  readonly height: number;
  readonly grey16: boolean;
}

/** Width, height and type of a PNG; null for anything else. */
export function pngHeader(bytes: Uint8Array): Header | null {
  if (bytes.length < 33 || !SIGNATURE.every((byte, index) => bytes[index] === byte)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [depth, colour, interlaced] = [bytes[24], bytes[25], bytes[28]];
  return { width: view.getUint32(16), height: view.getUint32(20), grey16: depth === 16 && colour === 0 && interlaced === 0 };
}

/** The values of a grey 16-bit PNG without interlacing, (H, W) uint16. */
export async function readGrey16(bytes: Uint8Array, name: string): Promise<Sample> {
  const header = pngHeader(bytes);
  if (header === null || !header.grey16) throw new SensorError(`${name}: not a grey 16-bit PNG`);
  const { width, height } = header;
  if (width * height > MOST_PIXELS) throw new SensorError(`${name}: claims ${width} x ${height} pixels, allowed are ${MOST_PIXELS}`);
  const rows = await inflated(imageData(bytes, name), name);
  const stride = 2 * width;
  if (rows.length !== height * (stride + 1)) throw new SensorError(`${name}: holds ${rows.length} bytes of pixels`);
  const out = new Uint16Array(width * height);
  let above: Uint8Array = new Uint8Array(stride);
  for (let y = 0; y < height; y += 1) {
    const start = y * (stride + 1);
    const line = unfiltered(rows[start]!, rows.subarray(start + 1, start + 1 + stride), above, name);
    for (let x = 0; x < width; x += 1) out[y * width + x] = line[2 * x]! * 256 + line[2 * x + 1]!;
    above = line;
  }
  return sample(out, [height, width]);
}

function imageData(bytes: Uint8Array, name: string): Uint8Array<ArrayBuffer>[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const parts: Uint8Array<ArrayBuffer>[] = [];
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    if (at + 12 + length > bytes.length) throw new SensorError(`${name}: the file is cut short`);
    if (view.getUint32(at + 4) === 0x49444154) parts.push(bytes.slice(at + 8, at + 8 + length));
    at += 12 + length;
  }
  return parts;
}

async function inflated(parts: Uint8Array<ArrayBuffer>[], name: string): Promise<Uint8Array> {
  try {
    const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new SensorError(`${name}: its pixels are damaged`);
  }
}

/** One row with its filter undone; two bytes a pixel. */
function unfiltered(filter: number, line: Uint8Array, above: Uint8Array, name: string): Uint8Array {
  if (filter > 4) throw new SensorError(`${name}: its pixels are damaged`);
  const out = new Uint8Array(line.length);
  for (let i = 0; i < line.length; i += 1) {
    const [left, up, corner] = [out[i - 2] ?? 0, above[i]!, above[i - 2] ?? 0];
    out[i] = line[i]! + predicted(filter, left, up, corner);
  }
  return out;
}

function predicted(filter: number, left: number, up: number, corner: number): number {
  if (filter === 0) return 0;
  if (filter === 1) return left;
  if (filter === 2) return up;
  if (filter === 3) return (left + up) >> 1;
  const guess = left + up - corner;
  const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}
