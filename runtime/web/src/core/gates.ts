/** Top-K expert gates: the softmax over the K largest router logits (Shazeer et al., 2017, eq. 3-5). */
import { UsageError } from "./errors";

export interface Expert {
  readonly id: number;
  readonly gate: number;
}

/** The K experts that run, largest gate first; equal logits keep the order of their indices. */
export function topKGates(logits: ArrayLike<number>, k: number): Expert[] {
  if (!(k >= 1 && k <= logits.length)) throw new UsageError(`k is ${k}, allowed: 1 to ${logits.length} experts`);
  const all = Array.from(logits, (value, id) => ({ id, value }));
  // Array.prototype.sort is stable.
  const kept = all.sort((a, b) => b.value - a.value).slice(0, k);
  const top = kept[0]!.value;
  const powers = kept.map(({ value }) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return kept.map(({ id }, index) => ({ id, gate: Math.fround(powers[index]! / sum) }));
}
