/** Holds at most one sample; a newer one replaces it, and the replaced one is counted. */
import type { Frame } from "../core/facts";
import type { Event } from "../core/health";

/** One frame and when it was received, seconds on the page's clock. */
export interface Received {
  readonly frame: Frame;
  readonly atS: number;
}

/** What happened at one sensor since it was asked last. */
export interface Delivery {
  /** The newest sample if it was not handed out before. */
  readonly sample: Received | null;
  /** For the health state machine, oldest first. */
  readonly events: readonly Event[];
}

const EVENTS_KEPT = 1024;

export class Mailbox {
  received = 0;
  dropped = 0;
  private sample: Received | null = null;
  private events: Event[] = [];

  /** Store a sample, if any, and the events that go with it. */
  put(sample: Received | null, ...events: Event[]): void {
    if (sample !== null) {
      this.dropped += Number(this.sample !== null);
      this.received += 1;
      this.sample = sample;
    }
    this.events.push(...events);
    if (this.events.length > EVENTS_KEPT) this.events = this.events.slice(-EVENTS_KEPT);
  }

  /** Whether a sample lies there that was not handed out yet. */
  get waiting(): boolean {
    return this.sample !== null;
  }

  /** The newest sample at most once, and every event since the last call. */
  take(): Delivery {
    const delivery = { sample: this.sample, events: this.events };
    this.sample = null;
    this.events = [];
    return delivery;
  }
}
