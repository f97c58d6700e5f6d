"""How long decisions of several models take, all of them timed in turns in one run.

Axes: N experts, K active experts.
Design decision: what is timed is the artifact in its engine, but not a proven one: lowered, given a manifest that says
no more than the shapes, and run from a temporary folder. One lowering serves every K. The turns are shuffled in every
round: a slow second of the machine then falls on all candidates alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mars_edge.artifact import write_sealed
from mars_edge.errors import UsageError
from mars_edge.subsets import Subset
from mars_export.evaluate import Engine, open_artifact
from mars_export.lowering import Model, OnnxPayload, Payload, bare_manifest, lower

FEWEST_ROUNDS = 6
"""With fewer the median has no 95 % interval."""
_WARM_UP = 3
_LEVEL = 0.05
Sample = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The median of `rounds` decisions in milliseconds, with the 95 % interval of the median, free of any model."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What was measured.

    Attributes:
        engine: its name.
        latencies: by index of the model, K and subset.
    """

    engine: str
    latencies: Mapping[tuple[int, int, Subset], Latency]


def latency(times_s: Sequence[float]) -> Latency:
    """Of at least `FEWEST_ROUNDS` times: the interval is between the order statistics that a binomial law gives."""
    ordered = 1000.0 * np.sort(np.array(times_s))
    n = len(ordered)
    rank = int(stats.binom.ppf(_LEVEL / 2, n, 0.5))
    if rank < 1:
        raise UsageError(f"rounds is {n}; at least {FEWEST_ROUNDS} are needed for an interval")
    return Latency(
        median_ms=float(np.median(ordered)),
        low_ms=float(ordered[rank - 1]),
        high_ms=float(ordered[n - rank]),
        rounds=n,
    )


def time_in_turns(
    models: Sequence[tuple[Model, Sequence[int]]],
    sample: Sample,
    wanted: Sequence[Subset],
    *,
    rounds: int,
    suffix: str = ".pte",
    threads: int = 1,
) -> Timings:
    """Every model with every K asked of it, on `sample` with each subset of `wanted` present, everything encoded anew.

    Raises:
        UsageError: fewer than `FEWEST_ROUNDS` rounds, or a suffix that is no format.
        ParityError: too few operations of a .pte run on its delegate.
    """
    if rounds < FEWEST_ROUNDS:
        raise UsageError(f"rounds is {rounds}; at least {FEWEST_ROUNDS} are needed for an interval")
    with tempfile.TemporaryDirectory(prefix="mars-edge-") as folder, ExitStack() as stack:
        engines: dict[tuple[int, int], Engine] = {}
        for i, (model, actives) in enumerate(models):
            payload = lower(model, suffix)
            for k in actives:
                path = Path(folder) / f"model{i}-k{k}{suffix}"
                write_sealed(path, _program(payload, model, k))
                engines[i, k] = open_artifact(path, self_test=False, threads=threads)
                stack.callback(engines[i, k].close)
        times = _times(engines, sample, wanted, rounds)
        name = next(iter(engines.values())).name
    return Timings(engine=name, latencies={key: latency(taken) for key, taken in times.items()})


def _times(
    engines: Mapping[tuple[int, int], Engine], sample: Sample, wanted: Sequence[Subset], rounds: int
) -> dict[tuple[int, int, Subset], list[float]]:
    times: dict[tuple[int, int, Subset], list[float]] = {(*key, subset): [] for key in engines for subset in wanted}
    inputs = {subset: {name: sample[name] for name in subset} for subset in wanted}
    keys = list(times)
    turns = np.random.default_rng(0)
    for i in range(-_WARM_UP, rounds):
        for turn in turns.permutation(len(keys)).tolist():
            model, k, subset = keys[turn]
            infer = engines[model, k].infer
            started = time.perf_counter()
            infer(inputs[subset], {})
            taken = time.perf_counter() - started
            if i >= 0:
                times[model, k, subset].append(taken)
    return times


def _program(payload: Payload, model: Model, k: int) -> bytes:
    if isinstance(payload, OnnxPayload):
        # A graph has K inside.
        payload = replace(payload, layout=replace(payload.layout, active_experts=k))
    return payload.program(bare_manifest(model, k, {"note": "for timing alone"}).to_json())
