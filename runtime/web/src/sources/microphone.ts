/** A microphone of this device, or a sound file, as a stream of overlapping windows at the modality's rate. */
import { sample } from "../core/arrays";
import { SensorError } from "../core/errors";
import type { Traits } from "../core/limits";
import { windowSamples, type Modality } from "../core/modality";
import type { Sink, Source } from "../loop/connection";
import { devices } from "./camera";
import { hopS, Windows } from "./windows";

const START_S = 2;

export class MicrophoneSource implements Source {
  traits: Traits;
  private stream: MediaStream | null = null;
  private context: AudioContext | null = null;

  constructor(
    private readonly modality: Modality,
    private readonly deviceId: string | null,
    private readonly name: string,
    /** Address of the worklet's script. */
    private readonly worklet: string,
  ) {
    needSound(modality);
    const hop = hopS(windowSamples(modality) / modality.rateHz);
    this.traits = { description: name, rateHz: 1 / hop, raw: true, startGraceS: START_S };
  }

  async open(sink: Sink): Promise<void> {
    this.close();
    // What a browser does to please the ear would hide a dead microphone and change what the model hears.
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const device = this.deviceId === null ? {} : { deviceId: { exact: this.deviceId } };
    const stream = await devices(this.name, { audio: { ...plain, ...device }, video: false });
    this.stream = stream;
    const track = stream.getAudioTracks()[0]!;
    const gone = (): void => sink.failed(new SensorError(`${this.name}: the device has gone`, true));
    track.onended = gone;
    const context = new AudioContext({ sampleRate: this.modality.rateHz });
    this.context = context;
    await context.audioWorklet.addModule(this.worklet);
    const block = Math.round(this.modality.rateHz / this.traits.rateHz);
    const node = new AudioWorkletNode(context, "blocks", { numberOfOutputs: 0, processorOptions: { block } });
    const windows = new Windows(windowSamples(this.modality));
    node.port.onmessage = ({ data }: MessageEvent<Float32Array>) => {
      // A track that has ended is heard as zeros for ever.
      if (track.readyState === "ended") return gone();
      const window = windows.push(data);
      if (window !== null) sink.frame({ sample: sample(window, [window.length]), sequence: null, capturedS: null });
    };
    context.createMediaStreamSource(stream).connect(node);
    await context.resume();
  }

  close(): void {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    void this.context?.close();
    [this.stream, this.context] = [null, null];
  }
}

export class SoundFileSource implements Source {
  readonly traits: Traits;
  private timer: ReturnType<typeof setInterval> | null = null;

  constructor(
    private readonly modality: Modality,
    private readonly file: File,
  ) {
    needSound(modality);
    const hop = hopS(windowSamples(modality) / modality.rateHz);
    this.traits = { description: `sound file ${file.name}`, rateHz: 1 / hop, finite: true };
  }

  async open(sink: Sink): Promise<void> {
    this.close();
    const heard = await this.decoded();
    const length = windowSamples(this.modality);
    const hop = Math.round(this.modality.rateHz / this.traits.rateHz);
    let end = Math.min(length, heard.length);
    this.timer = setInterval(() => {
      const window = heard.slice(Math.max(0, end - length), end);
      sink.frame({ sample: sample(window, [window.length]), sequence: null, capturedS: null });
      if (end >= heard.length) {
        this.close();
        sink.ended();
      }
      end = Math.min(end + hop, heard.length);
    }, 1000 / this.traits.rateHz);
  }

  close(): void {
    if (this.timer !== null) clearInterval(this.timer);
    this.timer = null;
  }

  /** The mean of the channels, at the modality's rate. */
  private async decoded(): Promise<Float32Array> {
    const context = new OfflineAudioContext(1, 1, this.modality.rateHz);
    try {
      const buffer = await context.decodeAudioData(await this.file.arrayBuffer());
      const channels = Array.from({ length: buffer.numberOfChannels }, (_, c) => buffer.getChannelData(c));
      return Float32Array.from({ length: buffer.length }, (_, i) => channels.reduce((sum, c) => sum + c[i]!, 0) / channels.length);
    } catch {
      throw new SensorError(`${this.file.name}: not a sound file this browser can read`);
    }
  }
}

function needSound(modality: Modality): void {
  if (modality.kind !== "audio") throw new SensorError(`${modality.name} takes ${modality.kind}, not sound`, true);
}
