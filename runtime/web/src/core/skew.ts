/** Which samples of one decision show another moment than the others, by the devices' own stamps. */
import type { Evidence } from "./healthTable";
import { tableOf } from "./json";
import { skewAfterS, type Limits } from "./limits";

// Rates are read back from devices: 29.97 Hz is as fast as 30.
const AS_FAST = 1.1;

export interface Stamp {
  readonly stampedS: number;
  readonly limits: Limits;
}

/** Sensors that differ from the middle stamp among the fastest by more than they may, and by how much. */
export function skewed(stamps: Readonly<Record<string, Stamp>>): Record<string, Evidence> {
  const all = Object.values(stamps);
  if (all.length < 2) return tableOf([]);
  const fastestS = Math.min(...all.map((stamp) => stamp.limits.period_s));
  const quick = all.filter((stamp) => stamp.limits.period_s <= AS_FAST * fastestS).map((stamp) => stamp.stampedS);
  const atS = quick.sort((a, b) => a - b)[Math.floor(quick.length / 2)]!;
  const found = Object.entries(stamps).map(([name, { stampedS, limits }]): [string, Evidence] => {
    return [name, { skew_s: Math.abs(stampedS - atS), limit_s: skewAfterS(limits) }];
  });
  return tableOf(found.filter(([, { skew_s, limit_s }]) => skew_s! > limit_s!));
}
