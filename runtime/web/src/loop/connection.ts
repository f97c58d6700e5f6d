/** Keeps one source open: opens it again after failures and silence, as the device's capture thread does. */
import { SensorError } from "../core/errors";
import type { FactFinder, Frame } from "../core/facts";
import type { Traits } from "../core/limits";
import { Mailbox } from "./mailbox";

/** What a source tells while it is open. */
export interface Sink {
  frame(frame: Frame): void;
  /** No further frame follows. */
  ended(): void;
  failed(error: SensorError): void;
}

/** One source of samples: no retries, no opinion about health. */
export interface Source {
  /** May become more exact after `open`. */
  readonly traits: Traits;
  /** Frames go to the sink until `close`; rejects with a SensorError where the source cannot be opened. */
  open(sink: Sink): Promise<void>;
  /** Release the source; closing twice or without `open` does nothing. */
  close(): void;
}

export interface Timing {
  /** Seconds on a monotonic clock. */
  readonly clock: () => number;
  readonly wait: (seconds: number, stop: AbortSignal) => Promise<void>;
  /** A number in 0..1 that varies the back-off. */
  readonly uniform: () => number;
}

export const PAGE_TIMING: Timing = {
  clock: () => performance.now() / 1000,
  wait: (seconds, stop) =>
    new Promise((resolve) => {
      const end = (): void => {
        clearTimeout(timer);
        // A signal that lives for hours keeps every listener it was ever given.
        stop.removeEventListener("abort", end);
        resolve();
      };
      const timer = setTimeout(end, 1000 * seconds);
      stop.addEventListener("abort", end);
    }),
  uniform: Math.random,
};

const BACKOFF_LIMIT_S = 30;
const BACKOFF_JITTER = 0.2;
const LOOK_S = 0.1;
const ERRORS_IN_A_ROW = 3;

type End = "ended" | "broken";

export class Connection {
  readonly mailbox = new Mailbox();
  lastError: string | null = null;
  private readonly stopping = new AbortController();
  private attempts = 0;

  constructor(
    readonly source: Source,
    private readonly finder: FactFinder,
    private readonly lostAfterS: (traits: Traits) => number,
    private readonly timing: Timing = PAGE_TIMING,
  ) {}

  /** Open and read until stopped or the source has ended; the source is closed in the end. */
  async run(): Promise<void> {
    let ended = false;
    while (!ended && !this.stopping.signal.aborted) {
      ended = (await this.once()) === "ended";
      this.source.close();
    }
  }

  /** End `run` soon. */
  stop(): void {
    this.stopping.abort();
    this.source.close();
  }

  private async once(): Promise<End> {
    const reading = new Reading(this.mailbox, this.finder, this.source, this.timing.clock, (error) => this.report(error));
    try {
      await this.source.open(reading);
    } catch (error) {
      if (this.stopping.signal.aborted) return "broken";
      this.report(error instanceof SensorError ? error : new SensorError(String((error as Error).message)));
      await this.backOff();
      return "broken";
    }
    return this.untilBroken(reading);
  }

  private async untilBroken(reading: Reading): Promise<End> {
    const patienceS = this.attempts === 0 ? this.lostAfterS(this.source.traits) : this.delayS();
    let heard = 0;
    while (!this.stopping.signal.aborted) {
      if (reading.end !== null) return reading.end === "ended" ? "ended" : this.brokenAfter(reading);
      if (reading.frames > heard) [heard, this.attempts] = [reading.frames, 0];
      const silentS = this.timing.clock() - reading.heardS;
      if (silentS > (heard > 0 ? this.lostAfterS(this.source.traits) : patienceS)) {
        this.attempts += 1;
        return "broken";
      }
      await this.timing.wait(LOOK_S, this.stopping.signal);
    }
    return "broken";
  }

  private async brokenAfter(reading: Reading): Promise<End> {
    reading.close();
    if (reading.frames > 0) this.attempts = 0;
    // The next open may succeed on a device that then fails at once: wait here, not only there.
    await this.backOff();
    return "broken";
  }

  private async backOff(): Promise<void> {
    await this.timing.wait(this.delayS(), this.stopping.signal);
    this.attempts += 1;
  }

  /** 1, 2, 4 ... 30 s, each varied by up to 20 %. */
  private delayS(): number {
    const base = Math.min(BACKOFF_LIMIT_S, 2 ** Math.min(this.attempts, 10));
    return base * (1 + BACKOFF_JITTER * (2 * this.timing.uniform() - 1));
  }

  private report(error: SensorError): void {
    this.lastError = error.message;
    this.mailbox.put(null, { type: "failed", at_s: this.timing.clock(), gone: error.gone });
  }
}

/** One opening of a source: measures what arrives and notes how it ends. */
class Reading implements Sink {
  end: End | null = null;
  frames = 0;
  heardS: number;
  private errors = 0;
  private open = true;

  constructor(
    private readonly mailbox: Mailbox,
    private readonly finder: FactFinder,
    private readonly source: Source,
    private readonly clock: () => number,
    private readonly report: (error: SensorError) => void,
  ) {
    this.heardS = clock();
  }

  frame(frame: Frame): void {
    if (!this.open) return;
    const atS = this.clock();
    [this.heardS, this.errors] = [atS, 0];
    this.frames += 1;
    this.mailbox.put({ frame, atS }, this.finder.facts(frame, this.source.traits, atS));
  }

  ended(): void {
    if (!this.open) return;
    this.mailbox.put(null, { type: "ended", at_s: this.clock() });
    this.end = "ended";
    this.close();
  }

  failed(error: SensorError): void {
    if (!this.open) return;
    this.errors += 1;
    this.report(error);
    if (error.gone || this.errors >= ERRORS_IN_A_ROW) this.end = "broken";
  }

  close(): void {
    this.open = false;
  }
}
