/** Whether the verdict on the page is still of the present. */

/** Decisions farther apart than this leave a verdict on the page that nobody stands for. */
export const SILENT_MS = 1000;

export class Silence {
  private heardMs: number | null = null;
  private ended: string | null = null;

  /** Nothing was decided yet: there is no verdict that could be too old. */
  begin(): void {
    [this.heardMs, this.ended] = [null, null];
  }

  /** A decision was made. */
  decided(nowMs: number): void {
    this.heardMs = nowMs;
  }

  /** No decision follows, and why. */
  end(reason: string): void {
    this.ended = reason;
  }

  /** Why the page abstains whatever was decided last; null while decisions come. */
  reason(nowMs: number): string | null {
    if (this.ended !== null) return `decisions have stopped: ${this.ended}`;
    if (this.heardMs === null || nowMs - this.heardMs <= SILENT_MS) return null;
    return `no decision for ${Math.floor((nowMs - this.heardMs) / 1000)} s`;
  }
}
