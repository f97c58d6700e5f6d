"""What a decision costs when sensors are missing: multiply-accumulates and time of every subset over all present.

    python benchmarks/subset_cost.py face.pte face.onnx

Axes: R rounds, S subsets. Runs without PyTorch: each file is executed by the engine that a device would use. Every
round times every subset of every file once, from preprocessed sample to logits, nothing cached, in an order that
changes from round to round: whatever else the machine does meets all of them. A share is the median time of a subset
over the median time of all present, with a 95 % bootstrap interval over rounds. The sample is the artifact's golden
one. Multiply-accumulates are those that the manifest states. Give the files of one model: a large one would put the
weights of a small one out of the cache before each of its turns, which no device that runs one model does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.manifest import Manifest, subset_cost
from mars_edge.options import OneLineParser, positive
from mars_runtime.engines import open_engine
from mars_runtime.engines.protocol import Engine
from mars_runtime.machine import this_machine

MOST_MACS = 0.45
MOST_TIME = 0.55
_WARM_UP = 5
_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Share:
    """Time over that of all present: `value`, with its 95 % interval `low` to `high`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One subset, or a summary over the smallest ones.

    Attributes:
        macs, macs_share: None where the manifest states no costs.
        ms: median.
    """

    subset: str
    macs: float | None
    macs_share: float | None
    ms: float
    time: Share


@dataclass(frozen=True, kw_only=True)
class Costs:
    """One artifact: a line per subset, then the mean and the worst of the smallest subsets."""

    path: str
    engine: str
    precision: str
    subsets: Sequence[Line]
    mean_smallest: Line
    worst_smallest: Line


@dataclass(frozen=True)
class _Opened:
    path: str
    engine: Engine
    wanted: tuple[subsets.Subset, ...]
    sample: Mapping[str, NDArray[np.float32]]

    def call(self, subset: subsets.Subset) -> Callable[[], object]:
        """A decision with `subset` present."""
        given = {name: self.sample[name] for name in subset}
        return lambda: self.engine.infer(given, {})


def wanted_subsets(manifest: Manifest) -> tuple[subsets.Subset, ...]:
    """The subsets of the recipe that the artifact was exported with; all of them where it names none."""
    recipe = manifest.provenance.get("recipe")
    always = recipe["data"].get("always_present", ()) if isinstance(recipe, Mapping) else ()
    return subsets.evaluated_subsets(manifest.names, always)


def sample_of(manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """The golden sample by modality, or uniform noise in 0..1 where there is none."""
    if manifest.golden is not None:
        return {m.name: manifest.golden.sample(m) for m in manifest.modalities}
    rng = np.random.default_rng(0)
    return {m.name: rng.random(m.shape, dtype=np.float32) for m in manifest.modalities}


def open_all(paths: Sequence[str], threads: int) -> list[_Opened]:
    """Every artifact in its engine.

    Raises:
        MarsEdgeError: a file is not there, damaged, or cannot be run.
    """
    engines = [(path, open_engine(path, threads=threads)) for path in paths]
    return [_Opened(path, e, wanted_subsets(e.manifest), sample_of(e.manifest)) for path, e in engines]


def times(calls: Sequence[Callable[[], object]], rounds: int, *, pause_s: float = 0.0) -> NDArray[np.float64]:
    """Milliseconds (R, calls); each round takes all of them in a new order, and the first rounds are not counted.

    Args:
        pause_s: waited before every call, so that no thread pool is still spinning from the call before.
    """
    rng = np.random.default_rng(0)
    found = np.zeros((rounds, len(calls)))
    for at in range(-_WARM_UP, rounds):
        for i in rng.permutation(len(calls)).tolist():
            if pause_s:
                time.sleep(pause_s)
            begin = time.perf_counter()
            calls[i]()
            elapsed = time.perf_counter() - begin
            if at >= 0:
                found[at, i] = 1e3 * elapsed
    return found


def share_of(
    measured: NDArray[np.float64], columns: Sequence[int], reduce: Callable[..., NDArray[np.float64]]
) -> Share:
    """`reduce` over `columns` of the medians of `measured` (R, S) over that of its last column."""
    chosen = np.random.default_rng(0).integers(len(measured), size=(_RESAMPLES, len(measured)))
    medians = np.median(np.concatenate([measured[None], measured[chosen]]), axis=1)
    shares = reduce(medians[:, list(columns)] / medians[:, -1:], axis=1)
    low, high = np.quantile(shares[1:], (0.025, 0.975))
    return Share(value=float(shares[0]), low=float(low), high=float(high))


def macs_of(manifest: Manifest, subset: subsets.Subset) -> int | None:
    """What the manifest says a decision with `subset` costs."""
    stated = manifest.subset_costs.get(subsets.label(subset, manifest.names))
    if stated is not None:
        return stated.macs
    return subset_cost(manifest, subset).macs if manifest.costs else None


def costs_of(opened: _Opened, measured: NDArray[np.float64]) -> Costs:
    """The lines of one artifact from its times (R, S), S in the order of `opened.wanted`, all present last."""
    manifest = opened.engine.manifest
    macs = [macs_of(manifest, subset) for subset in opened.wanted]
    lines = [
        _line(subsets.label(subset, manifest.names), [macs[i]], macs[-1], measured, [i], np.mean)
        for i, subset in enumerate(opened.wanted)
    ]
    fewest = min(map(len, opened.wanted))
    smallest = [i for i, subset in enumerate(opened.wanted) if len(subset) == fewest]
    few, what = [macs[i] for i in smallest], f"{fewest} of {len(manifest.names)}"
    return Costs(
        path=opened.path,
        engine=opened.engine.name,
        precision=manifest.precision,
        subsets=lines,
        mean_smallest=_line(f"{what}, mean", few, macs[-1], measured, smallest, np.mean),
        worst_smallest=_line(f"{what}, worst", few, macs[-1], measured, smallest, np.max),
    )


def _line(
    name: str,
    macs: Sequence[int | None],
    whole: int | None,
    measured: NDArray[np.float64],
    columns: Sequence[int],
    reduce: Callable[..., NDArray[np.float64]],
) -> Line:
    own = float(reduce(np.array(macs))) if None not in macs else None
    return Line(
        subset=name,
        macs=own,
        macs_share=own / whole if own is not None and whole else None,
        ms=float(reduce(np.median(measured[:, list(columns)], axis=0))),
        time=share_of(measured, columns, reduce),
    )


def measure(opened: Sequence[_Opened], rounds: int) -> list[Costs]:
    """All artifacts in one run."""
    calls = [one.call(subset) for one in opened for subset in one.wanted]
    measured = times(calls, rounds)
    ends = np.cumsum([len(one.wanted) for one in opened])
    return [
        costs_of(one, part)
        for one, part in zip(opened, np.split(measured, ends[:-1], axis=1), strict=True)
    ]  # fmt: skip


def as_markdown(found: Sequence[Costs]) -> str:
    """One table: a line per artifact and subset."""
    head = ["file", "engine", "present", "MMAC", "of all present", "ms, median", "of all present (95 % interval)"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for costs in found:
        for line in (*costs.subsets, costs.mean_smallest, costs.worst_smallest):
            macs = ["-", "-"] if line.macs is None else [f"{line.macs / 1e6:.2f}", f"{line.macs_share or 0.0:.3f}"]
            cells = [Path(costs.path).name, costs.engine, line.subset, *macs, f"{line.ms:.3f}", str(line.time)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *map(_verdict, found)])


def _verdict(costs: Costs) -> str:
    mean, worst = costs.mean_smallest, costs.worst_smallest
    macs = "no costs in the manifest"
    if mean.macs_share is not None and worst.macs_share is not None:
        macs = f"{mean.macs_share:.3f} of the MACs (worst {worst.macs_share:.3f}; aim {MOST_MACS})"
    return (
        f"{Path(costs.path).name} in {costs.engine}: {mean.subset.removesuffix(', mean')} costs {macs}, "
        f"{mean.time.value:.2f} of the time (worst {worst.time.value:.2f}; aim {MOST_TIME})"
    )


def main() -> int:
    """Print the table, and where it was measured."""
    parser = OneLineParser(
        prog="benchmarks/subset_cost.py",
        description=__doc__,
        epilog="example: python benchmarks/subset_cost.py face_antispoof.pte face_antispoof.onnx",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("artifact", nargs="+", metavar="FILE", help="a .pte or .onnx, or a bundled model's name")
    parser.add_argument("--rounds", type=positive(int, most=100_000), default=200, help="default: 200")
    parser.add_argument("--threads", type=positive(int, most=256), default=1, help="of each engine; default: 1")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    try:
        options = parser.parse_args()
        opened = open_all(options.artifact, options.threads)
        if any(len(one.wanted) < 2 for one in opened):
            raise UsageError("an artifact has one subset of modalities; there is nothing to compare")
        found = measure(opened, options.rounds)
    except MarsEdgeError as error:
        print(f"subset_cost: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps([asdict(costs) for costs in found]))
        return 0
    print(as_markdown(found))
    machine = this_machine()
    where = f"{machine}, load {machine.load or 0.0:.1f}, {options.threads} threads per engine"
    print(f"\n{options.rounds} rounds, {datetime.now(UTC):%Y-%m-%d}, {where}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
