/** A camera of this device, or a video file, frame by frame. */
import { SensorError } from "../core/errors";
import type { Traits } from "../core/limits";
import type { Modality } from "../core/modality";
import type { Sink, Source } from "../loop/connection";
import { needPicture, PixelReader } from "./pixels";

const START_S = 15;

/** A `<video>` that plays in the page unseen, and its frames. */
class Frames {
  private readonly video = document.createElement("video");
  private readonly reader: PixelReader;
  private open = true;

  constructor(
    modality: Modality,
    private readonly sink: Sink,
  ) {
    this.reader = new PixelReader(modality);
    this.video.muted = true;
    this.video.playsInline = true;
    this.video.className = "unseen";
    this.video.setAttribute("aria-hidden", "true");
    // A video outside the page gets few frames or none.
    document.body.append(this.video);
  }

  async play(source: MediaStream | string): Promise<void> {
    if (typeof source === "string") this.video.src = source;
    else this.video.srcObject = source;
    this.video.onended = () => this.sink.ended();
    await this.video.play();
    this.next();
  }

  close(): void {
    this.open = false;
    this.video.pause();
    this.video.srcObject = null;
    this.video.removeAttribute("src");
    this.video.remove();
  }

  private next(): void {
    this.video.requestVideoFrameCallback((_now, { presentedFrames, width, height }) => {
      if (!this.open) return;
      if (width > 0) {
        const sample = this.reader.read(this.video, width, height);
        this.sink.frame({ sample, sequence: presentedFrames, capturedS: null });
      }
      this.next();
    });
  }
}

export class CameraSource implements Source {
  traits: Traits;
  private stream: MediaStream | null = null;
  private frames: Frames | null = null;

  constructor(
    private readonly modality: Modality,
    /** null takes the one the browser prefers. */
    private readonly deviceId: string | null,
    private readonly name: string,
  ) {
    needPicture(modality);
    this.traits = { description: name, rateHz: modality.rateHz, startGraceS: START_S };
  }

  /** The running track, for tests that stop it. */
  get track(): MediaStreamTrack | null {
    return this.stream?.getVideoTracks()[0] ?? null;
  }

  async open(sink: Sink): Promise<void> {
    this.close();
    const [height, width] = this.modality.size!;
    const wanted: MediaTrackConstraints = {
      frameRate: { ideal: this.modality.rateHz },
      width: { ideal: Math.max(640, width) },
      height: { ideal: Math.max(480, height) },
      ...(this.deviceId === null ? { facingMode: "user" } : { deviceId: { exact: this.deviceId } }),
    };
    const stream = await devices(this.name, { video: wanted, audio: false });
    this.stream = stream;
    const track = stream.getVideoTracks()[0]!;
    track.onended = () => sink.failed(new SensorError(`${this.name}: the device has gone`, true));
    // Read back: what was asked for is a wish.
    this.traits = { ...this.traits, rateHz: track.getSettings().frameRate ?? this.modality.rateHz };
    this.frames = new Frames(this.modality, sink);
    await this.frames.play(stream);
  }

  close(): void {
    this.frames?.close();
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    [this.frames, this.stream] = [null, null];
  }
}

export class VideoFileSource implements Source {
  readonly traits: Traits;
  private frames: Frames | null = null;
  private url: string | null = null;

  constructor(
    private readonly modality: Modality,
    private readonly file: File,
  ) {
    needPicture(modality);
    this.traits = { description: `video file ${file.name}`, rateHz: modality.rateHz, finite: true };
  }

  async open(sink: Sink): Promise<void> {
    this.close();
    this.url = URL.createObjectURL(this.file);
    this.frames = new Frames(this.modality, sink);
    try {
      await this.frames.play(this.url);
    } catch (error) {
      throw new SensorError(`${this.file.name}: not a video this browser can play (${(error as Error).message})`);
    }
  }

  close(): void {
    this.frames?.close();
    if (this.url !== null) URL.revokeObjectURL(this.url);
    [this.frames, this.url] = [null, null];
  }
}

/** A stream of the wanted devices; throws a SensorError in words for a person. */
export async function devices(name: string, wanted: MediaStreamConstraints): Promise<MediaStream> {
  // Browsers leave it out on pages that came over plain http from another machine.
  if (navigator.mediaDevices === undefined) {
    throw new SensorError(`${name}: the browser gives cameras and microphones to https pages and 127.0.0.1 only`, true);
  }
  try {
    return await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    const { name: kind, message } = error as DOMException;
    const reasons: Record<string, string> = {
      NotAllowedError: "the browser was not allowed to use it",
      NotFoundError: "there is no such device",
      NotReadableError: "another program has it",
      OverconstrainedError: "the device has gone",
    };
    throw new SensorError(`${name}: ${reasons[kind] ?? message}`, kind !== "NotReadableError");
  }
}
