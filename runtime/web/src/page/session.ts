/** A model with its sensors, running: what is bound to what, and the decision loop. */
import { FactFinder } from "../core/facts";
import { kindOf, limitsOf, lostAfterS } from "../core/limits";
import type { Modality } from "../core/modality";
import type { Opened } from "../engine/engine";
import { Connection, PAGE_TIMING, type Source } from "../loop/connection";
import type { Received } from "../loop/mailbox";
import { Pipeline, type Decision } from "../loop/pipeline";
import { CameraSource, VideoFileSource } from "../sources/camera";
import { MicrophoneSource, SoundFileSource } from "../sources/microphone";
import { RigSource, type Fault, type RigStream } from "../sources/rig";
import { StillSource } from "../sources/still";
import type { Choice } from "./chooser";

export interface Told {
  decided(decision: Decision): void;
  refused(name: string, message: string): void;
  failed(message: string): void;
}

export class Session {
  private readonly pipeline: Pipeline;
  private closed = false;
  private readonly connections = new Map<string, Connection>();
  /** By modality, the file that was opened last; it can be chosen again. */
  private readonly files = new Map<string, File>();
  /** By modality, the value of its choice. */
  readonly chosen = new Map<string, string>();

  constructor(
    readonly opened: Opened,
    /** Of the model's file. */
    readonly name: string,
    /** What it computes on: wasm or webgpu. */
    readonly device: string,
    readonly rig: RigStream | null,
    private readonly told: Told,
  ) {
    const { engine } = opened;
    this.pipeline = new Pipeline(engine, engine.manifest.policy, (name, message) => {
      this.release(name);
      told.refused(name, message);
    });
    for (const modality of engine.manifest.modalities) this.choose(modality, this.fitsRig(modality) ? "rig" : "none");
  }

  /** Decide until closed. */
  async run(): Promise<void> {
    try {
      await this.pipeline.run((decision) => this.told.decided(decision));
    } catch (error) {
      if (!this.closed) this.told.failed((error as Error).message);
    }
  }

  close(): void {
    this.closed = true;
    this.pipeline.stop();
    for (const connection of this.connections.values()) connection.stop();
    this.opened.engine.close();
  }

  /** Bind a modality to a source by the value of its choice. */
  choose(modality: Modality, value: string): void {
    const file = this.files.get(modality.name);
    if (value === "file" && file !== undefined) this.open(modality, file);
    else this.bind(modality, value, () => this.source(modality, value));
  }

  /** Bind a modality to a file: picture, array, video or sound. */
  open(modality: Modality, file: File): void {
    this.files.set(modality.name, file);
    this.bind(modality, "file", () => {
      if (modality.kind === "audio" && !file.name.endsWith(".npy")) return new SoundFileSource(modality, file);
      return file.type.startsWith("video/") ? new VideoFileSource(modality, file) : new StillSource(modality, file);
    });
  }

  /** Break a simulated sensor, or mend it with null. */
  breakIt(name: string, fault: Fault | null): void {
    const source = this.connections.get(name)?.source;
    if (source instanceof RigSource) source.broken = fault;
  }

  /** How a simulated sensor is broken; null for one that works, and for every other. */
  fault(name: string): Fault | null {
    const source = this.connections.get(name)?.source;
    return source instanceof RigSource ? source.broken : null;
  }

  latest(name: string): Received | null {
    return this.pipeline.latest(name);
  }

  /** Why the source of a sensor fails, in its own words. */
  error(name: string): string | null {
    return this.connections.get(name)?.lastError ?? null;
  }

  /** What a modality can be bound to, devices as the browser lists them. */
  choices(modality: Modality, devices: readonly MediaDeviceInfo[]): Choice[] {
    const picture = modality.kind === "image" && modality.dtype === "uint8" && [1, 3].includes(modality.channels);
    const choices: Choice[] = [];
    if (this.fitsRig(modality)) choices.push({ value: "rig", text: "simulated rig" });
    if (picture) choices.push(...listed("camera", devices.filter((device) => device.kind === "videoinput")));
    if (modality.kind === "audio") choices.push(...listed("microphone", devices.filter((device) => device.kind === "audioinput")));
    const file = this.files.get(modality.name);
    if (file !== undefined) choices.push({ value: "file", text: file.name });
    return [...choices, { value: "none", text: "nothing" }];
  }

  private bind(modality: Modality, value: string, make: () => Source | null): void {
    const { name } = modality;
    this.release(name);
    try {
      const source = make();
      this.chosen.set(name, value);
      if (source === null) return;
      const limits = (traits: Source["traits"]) => lostAfterS(limitsOf(kindOf(modality), traits));
      const connection = new Connection(source, FactFinder.of(modality), limits, PAGE_TIMING);
      this.connections.set(name, connection);
      this.pipeline.connect(name, connection);
      void connection.run();
    } catch (error) {
      this.told.refused(name, (error as Error).message);
    }
  }

  private release(name: string): void {
    this.connections.get(name)?.stop();
    this.connections.delete(name);
    this.chosen.set(name, "none");
    this.pipeline.connect(name, null);
  }

  private source(modality: Modality, value: string): Source | null {
    const [kind, device] = [value.split(":")[0], value.split(":").slice(1).join(":") || null];
    if (kind === "rig") return new RigSource(this.rig!, modality.name);
    if (kind === "camera") return new CameraSource(modality, device, "camera");
    if (kind === "microphone") return new MicrophoneSource(modality, device, "microphone", new URL("./worklet.js", location.href).href);
    return null;
  }

  private fitsRig(modality: Modality): boolean {
    const given = this.rig?.header.sensors.find(({ name }) => name === modality.name);
    return given !== undefined && given.dtype === modality.dtype && (given.shape[2] ?? 1) === modality.channels;
  }
}

function listed(kind: string, devices: readonly MediaDeviceInfo[]): Choice[] {
  // Names are empty until the page was allowed to use a device.
  const known = devices.filter((device) => device.label !== "" && device.deviceId !== "");
  return [{ value: `${kind}:`, text: kind }, ...known.map(({ deviceId, label }) => ({ value: `${kind}:${deviceId}`, text: label }))];
}
