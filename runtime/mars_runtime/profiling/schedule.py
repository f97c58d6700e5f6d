"""How long is measured, in how many processes and in which order: rounds in which every subset has its turn.

A drift of the clock rate or of the load meets all of them alike, because none is measured for long at a stretch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mars_edge.errors import UsageError

Mode = Literal["quick", "standard", "sustained"]

MODES: tuple[Mode, ...] = ("quick", "standard", "sustained")
# Runs and seconds of each mode. 1024 and 60 s are the least that MLPerf Inference asks of a single stream
# (Reddi et al. 2020); the last minute of "sustained" must lie well after its first.
_RUNS = {"quick": 100, "standard": 1024, "sustained": 1024}
_SECONDS = {"quick": 0.0, "standard": 60.0, "sustained": 300.0}
_LEAST_RUNS = {"quick": 2, "standard": 1024, "sustained": 1024}
_LEAST_SECONDS = {"quick": 0.0, "standard": 60.0, "sustained": 120.0}
# A machine's slow drift shows from ten on. A sustained run is about one device that grows hot, not about processes.
_PROCESSES = {"quick": 10, "standard": 10, "sustained": 5}
# After three rounds the first ones that count are still a tenth slower.
DEFAULT_WARMUP = 20

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a measurement is enough: after `runs` rounds and `min_seconds`, whichever is later.

    Attributes:
        warmup: rounds of each process that are made but not counted.
        processes: among which runs and seconds are shared out.
    """

    mode: Mode
    warmup: int
    runs: int
    min_seconds: float
    processes: int

    def of_each(self) -> Schedule:
        """What one of the processes does."""
        return replace(
            self,
            runs=math.ceil(self.runs / self.processes),
            min_seconds=self.min_seconds / self.processes,
            processes=1,
        )

    def is_done(self, rounds: int, elapsed_s: float) -> bool:
        """Whether both limits are reached."""
        return rounds >= self.runs and elapsed_s >= self.min_seconds

    def share_done(self, rounds: int, elapsed_s: float) -> float:
        """How much of the way is behind, 0..1."""
        parts = [rounds / self.runs]
        if self.min_seconds > 0.0:
            parts.append(elapsed_s / self.min_seconds)
        return min(1.0, *parts)


def schedule_of(
    mode: Mode,
    *,
    warmup: int = DEFAULT_WARMUP,
    runs: int | None = None,
    min_seconds: float | None = None,
    processes: int | None = None,
) -> Schedule:
    """The schedule of a mode, or a longer one.

    Raises:
        UsageError: fewer runs or seconds than the mode stands for.
    """
    made = Schedule(
        mode=mode,
        warmup=warmup,
        runs=_RUNS[mode] if runs is None else runs,
        min_seconds=_SECONDS[mode] if min_seconds is None else min_seconds,
        processes=_PROCESSES[mode] if processes is None else processes,
    )
    if made.runs < _LEAST_RUNS[mode]:
        raise UsageError(f"profile: --runs is {made.runs}; mode {mode} means at least {_LEAST_RUNS[mode]}")
    if made.min_seconds < _LEAST_SECONDS[mode]:
        raise UsageError(
            f"profile: --min-seconds is {made.min_seconds:g}; mode {mode} means at least {_LEAST_SECONDS[mode]:g}"
        )
    return made


def run_rounds(
    calls: Sequence[Callable[[], None]],
    schedule: Schedule,
    *,
    begin_round: Callable[[int, float], None],
    clock: Clock = time.perf_counter,
    generator: np.random.Generator | None = None,
) -> float:
    """Makes rounds until the schedule is done; the seconds it took, without the warm-up.

    A decision is faster after another one on the same pictures, so every round has an order of its own; and every
    process others, because a bias that all of them share shows in no interval over processes.

    Args:
        calls: each measures one decision and keeps the result.
        generator: of the orders; None draws other ones every time.
        begin_round: told the number of each round, negative in the warm-up, and the seconds since the first one.
    """
    for index in range(-schedule.warmup, 0):
        begin_round(index, 0.0)
        for call in calls:
            call()
    drawn = generator or np.random.default_rng()
    begin_s, rounds = clock(), 0
    while not schedule.is_done(rounds, elapsed_s := clock() - begin_s):
        begin_round(rounds, elapsed_s)
        for place in drawn.permutation(len(calls)):
            calls[place]()
        rounds += 1
    return elapsed_s
