/** Which modalities are present: canonical labels. */
import { UsageError } from "./errors";

/** The canonical name of a subset: members in `order`, joined by "+"; "none" if empty. */
export function label(present: Iterable<string>, order: readonly string[]): string {
  const wanted = new Set(present);
  const unknown = [...wanted].filter((name) => !order.includes(name)).sort()[0];
  if (unknown !== undefined) throw new UsageError(`unknown modality '${unknown}'; this model has: ${order.join(", ")}`);
  return order.filter((name) => wanted.has(name)).join("+") || "none";
}

/** Every non-empty subset of `names`, small ones first. */
export function allSubsets(names: readonly string[]): string[][] {
  const found = Array.from({ length: 2 ** names.length - 1 }, (_, bits) =>
    names.filter((_name, index) => ((bits + 1) >> index) & 1),
  );
  return found.sort((a, b) => a.length - b.length);
}
