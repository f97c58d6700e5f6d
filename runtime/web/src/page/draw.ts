/** Raw samples as pictures for people. */
import type { Sample } from "../core/arrays";
import type { Modality } from "../core/modality";

const SOUND_WIDTH = 160;
const SOUND_HEIGHT = 120;

/** Show a sample on a canvas: pictures as they are, depth near to far from bright to dark, sound and rows as curves. */
export function draw(canvas: HTMLCanvasElement, sample: Sample, modality: Modality): void {
  const picture = modality.kind === "image" ? pixels(sample, modality) : curve(sample, modality);
  if (canvas.width !== picture.width) canvas.width = picture.width;
  if (canvas.height !== picture.height) canvas.height = picture.height;
  canvas.getContext("2d")!.putImageData(picture, 0, 0);
}

function pixels({ data, shape }: Sample, modality: Modality): ImageData {
  const [height, width, channels] = [shape[0]!, shape[1]!, shape[2] ?? 1];
  const out = new ImageData(width, height);
  const [low, high] = modality.range;
  const depth = modality.dtype === "uint16";
  const shown = (value: number): number => {
    // 0 is no measurement, and black.
    if (depth) return value === 0 ? 0 : 255 * (1 - Math.min(1, Math.max(0, (value - low) / (high - low))));
    return (255 * (value - low)) / (high - low);
  };
  for (let at = 0; at < width * height; at += 1) {
    for (let c = 0; c < 3; c += 1) out.data[4 * at + c] = shown(data[at * channels + (channels >= 3 ? c : 0)]!);
    out.data[4 * at + 3] = 255;
  }
  return out;
}

function curve({ data, shape }: Sample, modality: Modality): ImageData {
  const out = new ImageData(SOUND_WIDTH, SOUND_HEIGHT);
  const [low, high] = modality.kind === "audio" ? [-1, 1] : modality.range;
  const step = shape[1] ?? 1;
  const count = data.length / step;
  for (let i = 0; i < out.data.length; i += 4) out.data[i + 3] = 255;
  for (let i = 0; i < count; i += Math.max(1, Math.floor(count / (8 * SOUND_WIDTH)))) {
    const x = Math.floor((i * SOUND_WIDTH) / count);
    const share = Math.min(1, Math.max(0, (data[i * step]! - low) / (high - low)));
    const y = Math.min(SOUND_HEIGHT - 1, Math.floor((1 - share) * SOUND_HEIGHT));
    out.data.set([111, 155, 232, 255], 4 * (y * SOUND_WIDTH + x));
  }
  return out;
}
