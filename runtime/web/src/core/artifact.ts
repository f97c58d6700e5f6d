/**
 * Artifacts that verify themselves, as `mars_edge/artifact.py` seals them: the digest is checked before any parser sees
 * a byte. It finds damage, not malice.
 */
import { ModelFileError } from "./errors";

export interface Sealed {
  readonly format: "onnx" | "pte";
  /** SHA-256 of everything before it, as 64 hexadecimal characters. */
  readonly digest: string;
  /** The file as it was verified; load this. */
  readonly data: Uint8Array;
  /** Length of the model without its seal. */
  readonly payloadBytes: number;
}

const MAGIC = [...new TextEncoder().encode("MARSEDGE")];
const ONNX_HEAD = [0x72, 0x4a, 0x0a, 0x06, ...new TextEncoder().encode("digest"), 0x12, 0x40];
const HEX_BYTES = 64;
const ONNX_TAIL = ONNX_HEAD.length + HEX_BYTES;
const PTE_TAIL = 8 + 1 + 8 + 32;
const METADATA_FIELD = 14;

/** The file proven whole; throws ModelFileError for one that is damaged or not ours. */
export async function verify(data: Uint8Array, name: string): Promise<Sealed> {
  if (startsWith(data, data.length - PTE_TAIL, MAGIC)) return verifyPte(data, name);
  if (startsWith(data, data.length - ONNX_TAIL, ONNX_HEAD)) return verifyOnnx(data, name);
  if (isExecutorch(data)) {
    throw new ModelFileError(`${name} is an ExecuTorch program without the mars-edge trailer: truncated or foreign`);
  }
  throw new ModelFileError(
    `${name} is not a mars-edge model: ${data.length} bytes without a .pte trailer or .onnx digest`,
  );
}

/** The manifest document of a verified .onnx, found without loading the model. */
export function manifestText(sealed: Sealed): string {
  const text = metadata(sealed.data.subarray(0, sealed.payloadBytes)).get("manifest");
  if (text === undefined) {
    throw new ModelFileError("the .onnx model has no manifest property: not exported by mars-edge");
  }
  return text;
}

function startsWith(data: Uint8Array, at: number, wanted: readonly number[]): boolean {
  return at >= 0 && wanted.every((byte, index) => data[at + index] === byte);
}

function isExecutorch(data: Uint8Array): boolean {
  const digit = (byte: number | undefined): boolean => byte !== undefined && byte >= 0x30 && byte <= 0x39;
  return data.length > 8 && data[4] === 0x45 && data[5] === 0x54 && digit(data[6]) && digit(data[7]);
}

async function sha256(data: Uint8Array): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function verifyOnnx(data: Uint8Array, name: string): Promise<Sealed> {
  const body = data.subarray(0, data.length - HEX_BYTES);
  const digest = new TextDecoder("latin1").decode(data.subarray(data.length - HEX_BYTES));
  if ((await sha256(body)) !== digest) {
    throw new ModelFileError(`${name} is damaged: its SHA-256 is not the one in its digest property`);
  }
  return { format: "onnx", digest, data, payloadBytes: data.length - ONNX_TAIL };
}

async function verifyPte(data: Uint8Array, name: string): Promise<Sealed> {
  const body = data.subarray(0, data.length - 32);
  const digest = Array.from(data.subarray(-32), (byte) => byte.toString(16).padStart(2, "0")).join("");
  if ((await sha256(body)) !== digest) {
    throw new ModelFileError(`${name} is damaged: its SHA-256 is not the one in its trailer`);
  }
  const payloadBytes = data.length - PTE_TAIL;
  const head = new DataView(data.buffer, data.byteOffset + payloadBytes + 8, 9);
  const length = head.getBigUint64(1, true);
  if (head.getUint8(0) !== 1 || length !== BigInt(payloadBytes) || !isExecutorch(data)) {
    throw new ModelFileError(`${name} has a trailer this mars-edge cannot read (version ${head.getUint8(0)})`);
  }
  return { format: "pte", digest, data, payloadBytes };
}

/** The metadata_props of a serialised ModelProto (https://protobuf.dev/programming-guides/encoding). */
function metadata(model: Uint8Array): Map<string, string> {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const entries = new Map<string, string>();
  for (const [number, value] of fields(model)) {
    if (number !== METADATA_FIELD) continue;
    const parts = new Map(fields(value));
    const [key, text] = [1, 2].map((part) => decoder.decode(parts.get(part) ?? new Uint8Array()));
    entries.set(key!, text!);
  }
  return entries;
}

/** Number and content of every field; the content of fixed-size and varint fields is empty. */
function* fields(message: Uint8Array): Generator<[number, Uint8Array]> {
  let at = 0;
  while (at < message.length) {
    const [key, afterKey] = varint(message, at);
    const kind = key % 8;
    let length = 0;
    at = afterKey;
    if (kind === 0) [, at] = varint(message, at);
    else if (kind === 2) [length, at] = varint(message, at);
    else if (kind === 1 || kind === 5) length = kind === 1 ? 8 : 4;
    else throw new ModelFileError(`not an ONNX model: protobuf wire type ${kind} at byte ${at}`);
    if (at + length > message.length) {
      throw new ModelFileError(`not an ONNX model: a field of ${length} bytes ends beyond the file`);
    }
    yield [Math.floor(key / 8), kind === 2 ? message.subarray(at, at + length) : message.subarray(0, 0)];
    at += length;
  }
}

function varint(message: Uint8Array, start: number): [number, number] {
  let value = 0;
  for (let at = start, shift = 0; shift < 70 && at < message.length; at += 1, shift += 7) {
    const byte = message[at]!;
    // Multiplied, not shifted: a shift keeps 32 bits.
    value += (byte & 0x7f) * 2 ** shift;
    if (byte < 0x80) return [value, at + 1];
  }
  throw new ModelFileError("not an ONNX model: a protobuf number does not end");
}
