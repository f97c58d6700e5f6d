/** Sound as overlapping windows: the newest samples, every hop. */

/** Seconds between the starts of two windows of live sound: a tenth of the window, 50 to 250 ms. */
export const hopS = (windowS: number): number => Math.min(0.25, Math.max(0.05, windowS / 10));

export class Windows {
  private kept = new Float32Array(0);

  constructor(private readonly length: number) {}

  /** The newest full window after `block`; null before one is full. */
  push(block: Float32Array): Float32Array | null {
    const all = new Float32Array(Math.min(this.length, this.kept.length + block.length));
    const old = all.length - block.length;
    if (old > 0) all.set(this.kept.subarray(this.kept.length - old));
    all.set(block.subarray(Math.max(0, block.length - this.length)), Math.max(0, old));
    this.kept = all;
    return all.length < this.length ? null : all.slice();
  }
}
