/** NumPy's file format (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), the types sensors give. */
import { fromBytes, sizeOf, type Sample, type SampleType } from "../core/arrays";
import { SensorError } from "../core/errors";

const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
const TYPES: Record<string, SampleType> = { "|u1": "uint8", "<u2": "uint16", "<f4": "float32" };

/** The array of a file; throws SensorError for one that is damaged, of another type or in Fortran order. */
export function readNpy(bytes: Uint8Array, name: string): Sample {
  if (bytes.length < 12 || !MAGIC.every((byte, index) => bytes[index] === byte)) throw new SensorError(`${name}: not a .npy file`);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [lengthAt, headerAt] = [8, bytes[6] === 1 ? 10 : 12];
  const length = bytes[6] === 1 ? view.getUint16(lengthAt, true) : view.getUint32(lengthAt, true);
  const header = new TextDecoder().decode(bytes.subarray(headerAt, headerAt + length));
  const match = /^\{'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \}\s*$/.exec(header);
  if (match === null) throw new SensorError(`${name}: not a .npy file of a plain array`);
  const [, descr, fortran, dimensions] = match as unknown as [string, string, string, string];
  const dtype = TYPES[descr];
  if (dtype === undefined || fortran === "True") {
    throw new SensorError(`${name}: is ${descr}${fortran === "True" ? " in Fortran order" : ""}, allowed: ${Object.keys(TYPES).join(", ")}`);
  }
  const shape = dimensions.split(",").filter((part) => part.trim() !== "").map(Number);
  const content = bytes.subarray(headerAt + length);
  const needed = sizeOf(shape) * { uint8: 1, uint16: 2, float32: 4 }[dtype];
  if (content.length !== needed) throw new SensorError(`${name}: holds ${content.length} bytes, its shape needs ${needed}`);
  return { dtype, shape, data: fromBytes(content, dtype) };
}
