/** Power spectra of real frames of any length, in float64. */

/** |X_k|^2 for k = 0 .. N/2 of each frame of one length N. */
export class Spectrum {
  private readonly size: number;
  private readonly whole: Transform;
  private readonly chirp: { re: Float64Array; im: Float64Array; filter: { re: Float64Array; im: Float64Array } } | null;

  constructor(private readonly length: number) {
    const isPower = Number.isInteger(Math.log2(length));
    this.size = isPower ? length : 2 ** Math.ceil(Math.log2(2 * length - 1));
    this.whole = new Transform(this.size);
    this.chirp = isPower ? null : this.chirps();
  }

  /** The power spectrum of one frame. */
  power(frame: Float64Array): Float64Array {
    const re = new Float64Array(this.size);
    const im = new Float64Array(this.size);
    if (this.chirp === null) {
      re.set(frame);
      this.whole.run(re, im);
    } else {
      this.bluestein(frame, re, im);
    }
    return Float64Array.from({ length: (this.length >> 1) + 1 }, (_, k) => re[k]! ** 2 + im[k]! ** 2);
  }

  /** A transform of any length as a convolution with a chirp (Bluestein 1970), up to a factor of modulus 1. */
  private bluestein(frame: Float64Array, re: Float64Array, im: Float64Array): void {
    const { re: cos, im: sin, filter } = this.chirp!;
    for (let i = 0; i < this.length; i += 1) {
      re[i] = frame[i]! * cos[i]!;
      im[i] = -frame[i]! * sin[i]!;
    }
    this.whole.run(re, im);
    for (let i = 0; i < this.size; i += 1) {
      const [a, b, c, d] = [re[i]!, im[i]!, filter.re[i]!, filter.im[i]!];
      re[i] = a * c - b * d;
      im[i] = -(a * d + b * c);
    }
    this.whole.run(re, im);
    for (let i = 0; i < this.size; i += 1) {
      re[i] = re[i]! / this.size;
      im[i] = im[i]! / this.size;
    }
  }

  private chirps(): NonNullable<Spectrum["chirp"]> {
    const n = this.length;
    // The square is reduced first: the angle of a large one would be inexact.
    const angle = (i: number): number => (Math.PI * ((i * i) % (2 * n))) / n;
    const re = Float64Array.from({ length: n }, (_, i) => Math.cos(angle(i)));
    const im = Float64Array.from({ length: n }, (_, i) => Math.sin(angle(i)));
    const filter = { re: new Float64Array(this.size), im: new Float64Array(this.size) };
    for (let i = 0; i < n; i += 1) {
      filter.re[i] = filter.re[(this.size - i) % this.size] = re[i]!;
      filter.im[i] = filter.im[(this.size - i) % this.size] = im[i]!;
    }
    this.whole.run(filter.re, filter.im);
    return { re, im, filter };
  }
}

/** The discrete Fourier transform of a power of two, in place (Cooley and Tukey 1965). */
class Transform {
  private readonly cos: Float64Array;
  private readonly sin: Float64Array;

  constructor(private readonly size: number) {
    this.cos = Float64Array.from({ length: size >> 1 }, (_, i) => Math.cos((2 * Math.PI * i) / size));
    this.sin = Float64Array.from({ length: size >> 1 }, (_, i) => -Math.sin((2 * Math.PI * i) / size));
  }

  run(re: Float64Array, im: Float64Array): void {
    this.reorder(re, im);
    for (let half = 1; half < this.size; half *= 2) {
      const stride = this.size / (2 * half);
      for (let start = 0; start < this.size; start += 2 * half) {
        for (let i = 0; i < half; i += 1) {
          const [low, high] = [start + i, start + i + half];
          const [cos, sin] = [this.cos[i * stride]!, this.sin[i * stride]!];
          const [a, b] = [re[high]! * cos - im[high]! * sin, re[high]! * sin + im[high]! * cos];
          re[high] = re[low]! - a;
          im[high] = im[low]! - b;
          re[low] = re[low]! + a;
          im[low] = im[low]! + b;
        }
      }
    }
  }

  private reorder(re: Float64Array, im: Float64Array): void {
    for (let i = 1, j = 0; i < this.size; i += 1) {
      let bit = this.size >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) {
        [re[i], re[j]] = [re[j]!, re[i]!];
        [im[i], im[j]] = [im[j]!, im[i]!];
      }
    }
  }
}
