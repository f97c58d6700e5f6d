/** Canvas pixels as raw samples: colour in RGB order, or brightness. */
import { sample, type Sample } from "../core/arrays";
import { SensorError } from "../core/errors";
import type { Modality } from "../core/modality";

type Drawable = CanvasImageSource;

/** Reads pictures of anything that can be drawn, at their own size. */
export class PixelReader {
  private readonly context: OffscreenCanvasRenderingContext2D;

  constructor(private readonly modality: Modality) {
    this.context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true })!;
  }

  /** The picture as the modality wants it. */
  read(picture: Drawable, width: number, height: number): Sample {
    const { canvas } = this.context;
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    this.context.drawImage(picture, 0, 0);
    return fromRgba(this.context.getImageData(0, 0, width, height).data, width, height, this.modality.channels);
  }
}

/** Refuse a modality that 8-bit colour or grey pictures cannot feed. */
export function needPicture(modality: Modality): void {
  const fits = modality.kind === "image" && modality.dtype === "uint8" && [1, 3].includes(modality.channels);
  if (!fits) {
    throw new SensorError(`${modality.name} takes ${modality.dtype} ${modality.kind}; a browser's pictures are 8-bit colour or grey`, true);
  }
}

/** Red, green, blue and opacity as (H, W, 3), or as (H, W) brightness with the weights of ITU-R BT.601. */
export function fromRgba(rgba: Uint8ClampedArray, width: number, height: number, channels: number): Sample {
  const out = new Uint8Array(width * height * channels);
  if (channels === 3) {
    for (let from = 0, to = 0; to < out.length; from += 4, to += 3) {
      out[to] = rgba[from]!;
      out[to + 1] = rgba[from + 1]!;
      out[to + 2] = rgba[from + 2]!;
    }
    return sample(out, [height, width, 3]);
  }
  for (let from = 0, to = 0; to < out.length; from += 4, to += 1) {
    out[to] = Math.round(0.299 * rgba[from]! + 0.587 * rgba[from + 1]! + 0.114 * rgba[from + 2]!);
  }
  return sample(out, [height, width]);
}
