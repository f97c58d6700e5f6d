/** One picture or array repeated at the nominal rate for ever; standing still is legitimate here. */
import type { Sample } from "../core/arrays";
import { SensorError } from "../core/errors";
import type { Traits } from "../core/limits";
import type { Modality } from "../core/modality";
import type { Sink, Source } from "../loop/connection";
import { readNpy } from "./npy";
import { needPicture, PixelReader } from "./pixels";
import { pngHeader, readGrey16 } from "./png";

export class StillSource implements Source {
  readonly traits: Traits;
  private timer: ReturnType<typeof setInterval> | null = null;
  private sample: Sample | null = null;

  constructor(
    private readonly modality: Modality,
    private readonly file: File,
  ) {
    this.traits = { description: `file ${file.name}`, rateHz: modality.rateHz, still: true };
  }

  async open(sink: Sink): Promise<void> {
    this.close();
    const sample = (this.sample ??= await load(this.file, this.modality));
    const show = (): void => sink.frame({ sample, sequence: null, capturedS: null });
    show();
    this.timer = setInterval(show, 1000 / this.traits.rateHz);
  }

  close(): void {
    if (this.timer !== null) clearInterval(this.timer);
    this.timer = null;
  }
}

/** A file's content as a raw sample: .npy and 16-bit grey PNG as they are, other pictures as the browser decodes them. */
async function load(file: File, modality: Modality): Promise<Sample> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (file.name.endsWith(".npy")) return readNpy(bytes, file.name);
  if (pngHeader(bytes)?.grey16) return readGrey16(bytes, file.name);
  needPicture(modality);
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new SensorError(`${file.name}: not a picture this browser can read`, true);
  }
  return new PixelReader(modality).read(bitmap, bitmap.width, bitmap.height);
}
