/** What an artifact says about itself, refused where `mars_edge/manifest.py` refuses it. */
import { fromBase64, fromBytes, sizeOf, type Tensor } from "./arrays";
import { ModelFileError } from "./errors";
import { Fraction, parseStrict, plain, tableOf, type Json } from "./json";
import { modalityFrom, shapeOf, type Modality } from "./modality";
import { label } from "./subsets";

export const CONTENT_FAULTS = ["dark", "saturated", "depth-invalid", "covered", "noise", "frozen?"] as const;
const SCHEMA_VERSION = 1;

export interface OperatingPoint {
  readonly threshold: number;
  readonly metric: string;
  readonly value: number;
  readonly certified: boolean;
  readonly temperature: number;
  /** Accepted share of the test samples of each attack species. */
  readonly apcer: Readonly<Record<string, { readonly value: number }>>;
}

export type OnMissing = "continue" | "abstain" | "fail_closed";

export interface Policy {
  readonly require: readonly string[];
  readonly onMissing: OnMissing;
  readonly maskingFaults: readonly string[];
}

export interface Golden {
  readonly inputs: Readonly<Record<string, Tensor>>;
  readonly logits: Readonly<Record<string, readonly number[]>>;
  readonly tolerance: number;
  readonly pixels: readonly (readonly [number, number])[];
}

export interface Manifest {
  readonly name: string;
  readonly task: "classification" | "segmentation";
  readonly labels: readonly string[];
  readonly positiveLabel: string | null;
  readonly modalities: readonly Modality[];
  /** Modality names in fusion order. */
  readonly names: readonly string[];
  readonly experts: number;
  readonly activeExperts: number;
  readonly sharedExpert: boolean;
  readonly featureShapes: Readonly<Record<string, readonly number[]>>;
  readonly methods: readonly string[];
  readonly precision: string;
  readonly operatingPoints: Readonly<Record<string, OperatingPoint>>;
  readonly logitStep: number | null;
  readonly policy: Policy;
  readonly golden: Golden | null;
}

type Reader<T> = (value: Json, where: string) => T;
interface Field {
  readonly read: Reader<unknown>;
  /** Whether it may be left out, and what it then is. */
  readonly otherwise?: unknown;
}

/** The manifest that a document describes; throws ModelFileError for one that is not ours in every entry. */
export function manifestFrom(text: string): Manifest {
  const document = parsed(text);
  if (!isTable(document)) fail(`manifest is ${shown(document)}, expected an object`);
  const version = document["schema_version"];
  if (version !== SCHEMA_VERSION) {
    fail(`manifest schema_version is ${shown(version ?? null)}; this mars-edge reads ${SCHEMA_VERSION}`);
  }
  const table = object(MANIFEST)(document, "manifest") as unknown as Read;
  check(table);
  return {
    name: table.name,
    task: table.task,
    labels: table.labels,
    positiveLabel: table.positive_label,
    modalities: table.modalities,
    names: table.modalities.map((m) => m.name),
    experts: table.experts,
    activeExperts: table.active_experts,
    sharedExpert: table.shared_expert,
    featureShapes: table.feature_shapes,
    methods: table.methods,
    precision: table.precision,
    operatingPoints: table.operating_points,
    logitStep: table.logit_step,
    policy: {
      require: table.policy.require,
      onMissing: table.policy.on_missing,
      maskingFaults: table.policy.masking_faults,
    },
    golden: table.golden,
  };
}

/** Shape of the logits without batch: (classes), or (classes, H, W) with the size of the images. */
export function logitsShape(m: Pick<Manifest, "task" | "labels" | "modalities">): number[] {
  const image = m.modalities.find((modality) => modality.kind === "image");
  return m.task === "classification" ? [m.labels.length] : [m.labels.length, ...image!.size!];
}

/** The golden input of one modality at its full shape. */
export function goldenSample(golden: Golden, modality: Modality): Tensor {
  const stored = golden.inputs[modality.name]!;
  if (modality.kind !== "image") return stored;
  const [channels, height, width] = shapeOf(modality) as [number, number, number];
  const [, rows, columns] = stored.shape as [number, number, number];
  const data = new Float32Array(channels * height * width);
  for (let c = 0, at = 0; c < channels; c += 1) {
    for (let y = 0; y < height; y += 1) {
      const row = (c * rows + Math.floor((y * rows) / height)) * columns;
      for (let x = 0; x < width; x += 1, at += 1) data[at] = stored.data[row + Math.floor((x * columns) / width)]!;
    }
  }
  return { shape: [channels, height, width], data };
}

function fail(message: string): never {
  throw new ModelFileError(message);
}

function need(condition: boolean, message: string): void {
  if (!condition) fail(`manifest: ${message}`);
}

function parsed(text: string): Json {
  try {
    return parseStrict(text);
  } catch (error) {
    return fail(`manifest is not JSON: ${(error as Error).message}`);
  }
}

function shown(value: Json): string {
  return JSON.stringify(plain(value))?.slice(0, 80) ?? "nothing";
}

function isTable(value: Json): value is { [key: string]: Json } {
  return value !== null && typeof value === "object" && !Array.isArray(value) && !(value instanceof Fraction);
}

function expecting<T>(allowed: string, fits: (value: Json) => boolean, take: (value: Json) => T): Reader<T> {
  return (value, where) => (fits(value) ? take(value) : fail(`${where} is ${shown(value)}, expected ${allowed}`));
}

const isWhole = (value: Json): boolean => typeof value === "number" && Number.isInteger(value) && Math.abs(value) < 2 ** 63;
const text: Reader<string> = expecting("a string", (v) => typeof v === "string", (v) => v as string);
const whole: Reader<number> = expecting("a whole number", isWhole, (v) => v as number);
const flag: Reader<boolean> = expecting("true or false", (v) => typeof v === "boolean", (v) => v as boolean);
const real: Reader<number> = expecting(
  "a number",
  (v) => v instanceof Fraction || isWhole(v),
  (v) => (v instanceof Fraction ? v.value : (v as number)),
);
const anything: Reader<unknown> = plain;

function oneOf<T extends string>(...allowed: T[]): Reader<T> {
  return expecting(`one of ${allowed.join(", ")}`, (v) => allowed.includes(v as T), (v) => v as T);
}

function optional<T>(read: Reader<T>): Reader<T | null> {
  return (value, where) => (value === null ? null : read(value, where));
}

function list<T>(read: Reader<T>): Reader<T[]> {
  return (value, where) => {
    if (!Array.isArray(value)) return fail(`${where} is ${shown(value)}, expected a list`);
    return value.map((item, index) => read(item, `${where}[${index}]`));
  };
}

function mapping<T>(read: Reader<T>): Reader<Record<string, T>> {
  return (value, where) => {
    if (!isTable(value)) return fail(`${where} is ${shown(value)}, expected an object`);
    return tableOf(Object.entries(value).map(([key, item]) => [key, read(item, `${where}.${key}`)]));
  };
}

function object(known: Record<string, Field>): Reader<Record<string, unknown>> {
  return (value, where) => {
    if (!isTable(value)) return fail(`${where} is ${shown(value)}, expected an object`);
    const unknown = Object.keys(value).filter((key) => !Object.hasOwn(known, key)).sort()[0];
    if (unknown !== undefined) {
      fail(`${where} has the unknown key '${unknown}'; known keys: ${Object.keys(known).join(", ")}`);
    }
    const entries = Object.entries(known).map(([key, field]) => {
      if (Object.hasOwn(value, key)) return [key, field.read(value[key]!, `${where}.${key}`)];
      return "otherwise" in field ? [key, field.otherwise] : fail(`${where} lacks the key '${key}'`);
    });
    return Object.fromEntries(entries) as Record<string, unknown>;
  };
}

/** An object whose entries must also agree with each other. */
function sound<T>(known: Record<string, Field>, agree: (table: T) => void): Reader<T> {
  const read = object(known);
  return (value, where) => {
    const table = read(value, where) as T;
    agree(table);
    return table;
  };
}

const modality: Reader<Modality> = (value, where) => {
  if (!isTable(value)) return fail(`${where} is ${shown(value)}, expected an object`);
  try {
    return modalityFrom(value);
  } catch (error) {
    return fail(`${where}: ${(error as Error).message}`);
  }
};

interface Rate {
  value: number;
  low: number;
  high: number;
  errors: number;
  n: number;
}

const inOrder = (low: number, value: number, high: number): boolean =>
  0 <= low && low <= value && value <= high && high <= 1;
const rate: Reader<Rate> = sound(
  { value: { read: real }, low: { read: real }, high: { read: real }, errors: { read: whole }, n: { read: whole } },
  (r: Rate) => need(inOrder(r.low, r.value, r.high) && 0 <= r.errors && r.errors <= r.n, "a rate contradicts itself"),
);

type Point = OperatingPoint & { low: number; high: number; n: number };
const point: Reader<Point> = sound(
  {
    threshold: { read: real },
    metric: { read: text },
    value: { read: real },
    low: { read: real },
    high: { read: real },
    n: { read: whole },
    certified: { read: flag },
    target: { read: optional(real), otherwise: null },
    temperature: { read: real, otherwise: 1 },
    bpcer: { read: optional(rate), otherwise: null },
    apcer: { read: mapping(rate), otherwise: {} },
  },
  (p: Point) => {
    need(inOrder(p.low, p.value, p.high), `operating point ${p.metric} is ${p.value} in ${p.low}..${p.high}`);
    need(p.n >= 0, `operating point n is ${p.n}, expected at least 0`);
    need(p.temperature > 0, `operating point temperature is ${p.temperature}, expected above 0`);
  },
);

const cost: Reader<unknown> = sound(
  { macs: { read: whole }, weight_bytes: { read: whole }, activation_bytes: { read: optional(whole), otherwise: null } },
  (c: { macs: number; weight_bytes: number; activation_bytes: number | null }) =>
    need(Math.min(c.macs, c.weight_bytes, c.activation_bytes ?? 0) >= 0, "a cost has a negative entry"),
);

const tensor: Reader<Tensor> = (value, where) => {
  const read = object({ shape: { read: list(whole) }, dtype: { read: oneOf("float32", "uint8") }, data: { read: text } });
  const table = read(value, where) as { shape: number[]; dtype: "float32" | "uint8"; data: string };
  need(table.shape.length <= 8 && table.shape.every((side) => side >= 0), `tensor shape ${shown(table.shape)}`);
  const bytes = decoded(table.data);
  const needed = (table.dtype === "uint8" ? 1 : 4) * sizeOf(table.shape);
  need(bytes.length === needed, `tensor holds ${bytes.length} bytes, ${table.dtype} of its shape needs ${needed}`);
  if (table.dtype === "float32") return { shape: table.shape, data: fromBytes(bytes, "float32") as Float32Array };
  // Both are float32 values, so one division in float64 rounds as one in float32.
  return { shape: table.shape, data: Float32Array.from(bytes, (byte) => byte / 255) };
};

function decoded(data: string): Uint8Array {
  try {
    return fromBase64(data);
  } catch {
    return fail("manifest: tensor data is not base64");
  }
}

const golden: Reader<Golden> = sound(
  {
    inputs: { read: mapping(tensor) },
    logits: { read: mapping(list(real)) },
    tolerance: { read: real },
    pixels: { read: list(list(whole)), otherwise: [] },
  },
  () => undefined,
);

const policy = object({
  require: { read: list(text), otherwise: [] },
  on_missing: { read: oneOf("continue", "abstain", "fail_closed"), otherwise: "continue" },
  masking_faults: { read: list(text), otherwise: [] },
});

const MANIFEST: Record<string, Field> = {
  name: { read: text },
  task: { read: oneOf("classification", "segmentation") },
  labels: { read: list(text) },
  positive_label: { read: optional(text) },
  modalities: { read: list(modality) },
  experts: { read: whole },
  active_experts: { read: whole },
  feature_shapes: { read: mapping(list(whole)) },
  z_shape: { read: list(whole) },
  precision: { read: oneOf("fp32", "fp16", "int8") },
  methods: { read: list(text) },
  operating_points: { read: mapping(point) },
  provenance: { read: mapping(anything) },
  shared_expert: { read: flag, otherwise: false },
  logit_step: { read: optional(real), otherwise: null },
  policy: { read: policy, otherwise: { require: [], on_missing: "continue", masking_faults: [] } },
  golden: { read: optional(golden), otherwise: null },
  parity: { read: optional(mapping(anything)), otherwise: null },
  target: { read: optional(text), otherwise: null },
  costs: { read: mapping(cost), otherwise: {} },
  subset_costs: { read: mapping(cost), otherwise: {} },
  parameters: { read: optional(whole), otherwise: null },
  schema_version: { read: whole, otherwise: SCHEMA_VERSION },
};

/** The document's entries by the names they have there. */
interface Read {
  name: string;
  task: "classification" | "segmentation";
  labels: string[];
  positive_label: string | null;
  modalities: Modality[];
  experts: number;
  active_experts: number;
  feature_shapes: Record<string, number[]>;
  z_shape: number[];
  precision: string;
  methods: string[];
  operating_points: Record<string, Point>;
  shared_expert: boolean;
  logit_step: number | null;
  policy: { require: string[]; on_missing: OnMissing; masking_faults: string[] };
  golden: Golden | null;
  costs: Record<string, unknown>;
  subset_costs: Record<string, unknown>;
  parameters: number | null;
}

const repeats = (items: readonly string[]): boolean => new Set(items).size !== items.length;
const sameSet = (a: readonly string[], b: readonly string[]): boolean =>
  new Set([...a, ...b]).size === new Set(a).size && new Set(a).size === new Set(b).size;

function check(m: Read): void {
  const names = m.modalities.map((each) => each.name);
  need(names.length >= 1, "no modality");
  need(!repeats(names), `modality names repeat: ${names.join(", ")}`);
  need(m.labels.length >= 2, `${m.labels.length} labels, at least 2 are needed`);
  need(!repeats(m.labels), `labels repeat: ${m.labels.join(", ")}`);
  for (const each of [m.name, ...m.labels]) need(isPrintable(each), "a name or label is empty or not printable");
  need(m.positive_label === null || m.labels.includes(m.positive_label), "positive_label is no label");
  need(1 <= m.active_experts && m.active_experts <= m.experts, `active_experts ${m.active_experts} of ${m.experts}`);
  need(sameSet(Object.keys(m.feature_shapes), names), "feature_shapes must name exactly the modalities");
  for (const shape of [...Object.values(m.feature_shapes), m.z_shape]) {
    need(shape.length >= 1 && shape.every((side) => side >= 1), "a shape has a side below 1");
  }
  checkMethods(m, names);
  need(m.task === "classification" || m.modalities.some((each) => each.kind === "image"), "a segmentation needs an image");
  for (const key of [...Object.keys(m.operating_points), ...Object.keys(m.subset_costs)]) checkSubset(key, names);
  const priced = Object.keys(m.costs);
  need(priced.length === 0 || sameSet(priced, m.methods), "costs must be of every method or none");
  need((m.parameters ?? 0) >= 0, `parameters is ${m.parameters}, expected at least 0`);
  for (const entry of m.policy.require) {
    need(entry.split("|").every((name) => names.includes(name)), `policy.require '${entry}' names an unknown modality`);
  }
  for (const fault of m.policy.masking_faults) {
    need((CONTENT_FAULTS as readonly string[]).includes(fault), `policy.masking_faults '${fault}' is no content fault`);
  }
  need(m.logit_step === null || m.logit_step > 0, `logit_step is ${m.logit_step}, expected above 0`);
  if (m.golden !== null) checkGolden(m.golden, m, names);
}

function checkMethods(m: Read, names: readonly string[]): void {
  // Counted first: a file that claims 10^9 experts must not make us list them.
  const expected = names.length + m.experts + Number(m.shared_expert) + 2;
  need(m.methods.length === expected, `${m.methods.length} methods, its modalities and experts need ${expected}`);
  const experts = Array.from({ length: m.experts }, (_, index) => `expert_${index}`);
  const shared = m.shared_expert ? ["expert_shared"] : [];
  const wanted = [...names.map((name) => `encode_${name}`), "route", ...experts, ...shared, "head"];
  need(sameSet(m.methods, wanted), `methods are not ${wanted.join(", ")}`);
}

function checkSubset(key: string, names: readonly string[]): void {
  const parts = key.split("+");
  const known = parts.every((name) => names.includes(name)) && label(parts, names) === key;
  need(known, `unknown subset '${key}'; its members in order: ${names.join("+")}`);
}

function checkGolden(g: Golden, m: Read, names: readonly string[]): void {
  need(g.tolerance >= 0, `golden.tolerance is ${g.tolerance}, expected at least 0`);
  need(sameSet(Object.keys(g.inputs), names), "golden.inputs must name exactly the modalities");
  for (const each of m.modalities) {
    need(stores(g.inputs[each.name]!.shape, each), `golden input ${each.name} has another shape`);
  }
  const size = logitsShape(m).slice(1);
  need(g.pixels.length > 0 === size.length > 0, "golden.pixels must name pixels for a segmentation and nothing else");
  for (const pixel of g.pixels) {
    need(pixel.length === 2 && pixel.every((at, i) => 0 <= at && at < size[i]!), "a golden pixel is outside the image");
  }
  need(Object.keys(g.logits).length >= 1, "golden.logits is empty: a self-test without answers proves nothing");
  for (const [key, logits] of Object.entries(g.logits)) {
    checkSubset(key, names);
    const needed = m.labels.length * Math.max(g.pixels.length, 1);
    need(logits.length === needed, `golden logits of ${key} are ${logits.length} for ${m.labels.length} labels`);
  }
}

/** Whether a tensor can stand for an input of the modality: its shape, or an image of fewer pixels. */
function stores(shape: readonly number[], m: Modality): boolean {
  const full = shapeOf(m);
  if (shape.length !== full.length) return false;
  if (m.kind !== "image") return shape.every((side, index) => side === full[index]);
  return shape[0] === full[0] && shape.every((side, index) => 1 <= side && side <= full[index]!);
}

/** As Python's str.isprintable: no control, format, surrogate, private or unassigned character, no separator but space. */
function isPrintable(value: string): boolean {
  return value !== "" && !/[\p{C}\p{Zl}\p{Zp}]/u.test(value) && !/(?! )\p{Zs}/u.test(value);
}
