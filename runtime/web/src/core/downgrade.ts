/**
 * The downgrade alarm: a sensor that liveness depends on went missing after it had been used, as
 * `mars_runtime/downgrade.py`. In face anti-spoofing the attacker chooses what is missing.
 */
import type { Manifest, OperatingPoint, Policy } from "./manifest";
import { objection as subsetObjection } from "./policy";
import { label } from "./subsets";

// One decision without a sensor whose stamp is off is no loss of that sensor, and nobody can make a file end.
const NOT_A_LOSS: readonly (string | null | undefined)[] = ["skew", "ended"];

/** What the alarm remembers. */
export interface Watch {
  /** Critical sensors that have taken part in a decision of this session. */
  readonly used: ReadonlySet<string>;
  /** Of those, the ones that are missing now, in fusion order. */
  readonly missing: readonly string[];
  /** The ones whose loss holds decisions back, and until when. */
  readonly held: readonly string[];
  readonly heldUntilS: number | null;
}

export const CALM: Watch = { used: new Set(), missing: [], held: [], heldUntilS: null };

/** Sensors that the policy requires, and those whose covering leads to a subset that accepts more attacks. */
export function criticalSensors(manifest: Manifest, policy: Policy): string[] {
  const required = policy.require.flatMap((entry) => entry.split("|"));
  const gainful = manifest.positiveLabel === null ? [] : manifest.names.filter((name) => gains(manifest, name));
  return manifest.names.filter((name) => required.includes(name) || gainful.includes(name));
}

/** Whether covering a sensor can raise the accepted share of the worst attack species, as it was measured. */
function gains(manifest: Manifest, sensor: string): boolean {
  return Object.entries(manifest.operatingPoints).some(([before, point]) => {
    const left = before.split("+").filter((name) => name !== sensor);
    if (!before.split("+").includes(sensor) || left.length === 0 || worst(point) === null) return false;
    const after = manifest.operatingPoints[label(left, manifest.names)];
    const then = after === undefined || !decides(manifest, left) ? null : worst(after);
    return then !== null && then > (decides(manifest, before.split("+")) ? worst(point)! : 0);
  });
}

function decides(manifest: Manifest, present: readonly string[]): boolean {
  return subsetObjection(manifest, manifest.policy, present) === null;
}

function worst(point: OperatingPoint): number | null {
  const rates = Object.values(point.apcer).map((rate) => rate.value);
  return rates.length === 0 ? null : Math.max(...rates);
}

/** The watch after one decision; every new loss holds decisions for `latchS` seconds anew. */
export function watched(
  watch: Watch,
  critical: readonly string[],
  present: readonly string[],
  reasons: Readonly<Record<string, string | null>>,
  nowS: number,
  latchS: number,
): Watch {
  const used = new Set([...watch.used, ...critical.filter((name) => present.includes(name))]);
  const missing = critical.filter(
    (name) => used.has(name) && !present.includes(name) && !NOT_A_LOSS.includes(reasons[name]),
  );
  const lost = missing.filter((name) => !watch.missing.includes(name));
  let { held, heldUntilS } = watch;
  if (heldUntilS !== null && nowS >= heldUntilS) [held, heldUntilS] = [[], null];
  if (lost.length > 0 && latchS > 0) {
    [held, heldUntilS] = [[...held, ...lost.filter((name) => !held.includes(name))], nowS + latchS];
  }
  return { used, missing, held, heldUntilS };
}

/** Why no decision may be made now; null while nothing is held. */
export function holding(watch: Watch, latchS: number): string | null {
  return watch.heldUntilS === null ? null : `${watch.held.join(", ")} went missing: no decision for ${latchS} s`;
}
