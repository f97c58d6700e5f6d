/** The simulated rig as a stream: frames that the device rendered, played in the page, and broken on request. */
import { fromBytes, sizeOf, type Sample, type SampleType } from "../core/arrays";
import { SensorError } from "../core/errors";
import type { Traits } from "../core/limits";
import type { Sink, Source } from "../loop/connection";

export const FAULTS = ["unplug", "freeze", "dark"] as const;
export type Fault = (typeof FAULTS)[number];

// A frame handed out later than this after its instant is late because the machine is busy, not because of the camera.
const LONGEST_LATENCY_S = 0.05;

interface Header {
  readonly rate_hz: number;
  readonly seed: number;
  /** Who is on stage in each turn; a turn's frames are shown forwards and backwards until it is over. */
  readonly species: readonly string[];
  readonly frames_per_turn: number;
  readonly turn_s: number;
  readonly sensors: readonly { readonly name: string; readonly dtype: SampleType; readonly shape: readonly number[] }[];
}

/** One recorded play, shared by all its sensors; its time starts when it is made. */
export class RigStream {
  private readonly frames: ReadonlyMap<string, Sample[]>;

  private constructor(
    readonly header: Header,
    content: Uint8Array,
    private readonly clock: () => number,
    private readonly beginS: number,
  ) {
    const frames = new Map<string, Sample[]>();
    const count = header.species.length * header.frames_per_turn;
    let at = 0;
    for (const { name, dtype, shape } of header.sensors) {
      const bytes = sizeOf(shape) * (dtype === "uint16" ? 2 : dtype === "float32" ? 4 : 1);
      frames.set(name, Array.from({ length: count }, (_, index) => {
        const begin = at + index * bytes;
        return { dtype, shape, data: fromBytes(content.subarray(begin, begin + bytes), dtype) };
      }));
      at += count * bytes;
    }
    if (at !== content.length) throw new SensorError(`the rig's recording holds ${content.length} bytes, expected ${at}`);
    this.frames = frames;
  }

  /** The play of a file: 4 bytes length, a JSON header, then every sensor's frames. */
  static from(file: Uint8Array, clock: () => number): RigStream {
    const length = new DataView(file.buffer, file.byteOffset).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(file.subarray(4, 4 + length))) as Header;
    return new RigStream(header, file.subarray(4 + length), clock, clock());
  }

  get names(): string[] {
    return this.header.sensors.map(({ name }) => name);
  }

  /** Number of the newest frame that is due. */
  get now(): number {
    return Math.floor((this.clock() - this.beginS) * this.header.rate_hz);
  }

  /** When a frame was taken: its instant, or a little before now where a busy machine shows it late. */
  stampedS(index: number): number {
    return Math.max(this.beginS + index / this.header.rate_hz, this.clock() - LONGEST_LATENCY_S);
  }

  /** Milliseconds until the next frame is due. */
  get untilNextMs(): number {
    return Math.max(1, 1000 * (this.beginS + (this.now + 1) / this.header.rate_hz - this.clock()));
  }

  /** The truth about who is on stage; for people to watch, never an input. */
  get species(): string {
    return this.header.species[this.turnOf(this.now)]!;
  }

  frame(name: string, index: number): Sample {
    const { frames_per_turn, rate_hz, turn_s } = this.header;
    const within = index % Math.round(turn_s * rate_hz);
    // Forwards and backwards, no frame twice in a row: 0 1 2 3 2 1 0 1 ...
    const period = 2 * frames_per_turn - 2;
    const shown = Math.min(within % period, period - (within % period));
    return this.frames.get(name)![this.turnOf(index) * frames_per_turn + shown]!;
  }

  private turnOf(index: number): number {
    return Math.floor(index / Math.round(this.header.turn_s * this.header.rate_hz)) % this.header.species.length;
  }
}

/** One camera of the play; late timers skip frames. */
export class RigSource implements Source {
  readonly traits: Traits;
  private fault: Fault | null = null;
  private held: { index: number; sample: Sample } | null = null;
  private sink: Sink | null = null;
  private timer: ReturnType<typeof setTimeout> | null = null;
  private last = -1;

  constructor(
    private readonly stream: RigStream,
    private readonly name: string,
  ) {
    const { rate_hz, seed } = stream.header;
    this.traits = { description: `simulated ${name} (seed ${seed})`, rateHz: rate_hz, raw: true, simulated: true };
  }

  /** Break the sensor, or mend it. */
  set broken(fault: Fault | null) {
    this.fault = fault;
    this.held = null;
    if (fault === "unplug") this.sink?.failed(this.gone());
  }

  get broken(): Fault | null {
    return this.fault;
  }

  async open(sink: Sink): Promise<void> {
    this.close();
    if (this.fault === "unplug") throw this.gone();
    this.sink = sink;
    this.tick();
  }

  close(): void {
    if (this.timer !== null) clearTimeout(this.timer);
    [this.timer, this.sink] = [null, null];
  }

  private tick(): void {
    const index = this.stream.now;
    // A timer may fire a little early: the same frame twice would be a frozen sensor.
    if (this.fault !== "unplug" && index !== this.last) this.sink?.frame({ ...this.shown(index), capturedS: this.stream.stampedS(index) });
    this.last = index;
    if (this.sink !== null) this.timer = setTimeout(() => this.tick(), this.stream.untilNextMs);
  }

  private shown(index: number): { sample: Sample; sequence: number } {
    const sample = this.stream.frame(this.name, index);
    if (this.fault === "dark") return { sample: { ...sample, data: sample.data.slice().fill(0) }, sequence: index };
    if (this.fault !== "freeze") return { sample, sequence: index };
    this.held ??= { index, sample };
    return { sample: this.held.sample, sequence: this.held.index };
  }

  private gone(): SensorError {
    return new SensorError(`${this.traits.description}: unplugged (on request)`, true);
  }
}
