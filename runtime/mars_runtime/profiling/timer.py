"""Whether this device's timer can be believed: its resolution, its cost, and a wait of known length.

The wait is counted on the raw hardware clock, which nothing adjusts; what is measured with is the clock that every
stage is measured with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from mars_edge.errors import MarsEdgeError

# Short enough to end, now and then, before another process gets the core.
WAIT_S = 0.001
TOLERANCE = 0.02
_ATTEMPTS = 300
_REST_S = 0.002
_READINGS = 2000

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class TimerCheck:
    """What was found about the timer.

    Attributes:
        resolution_ns: the smallest step between two readings that differ.
        overhead_ns: what one reading costs, median.
        asked_ms: the length of the known wait.
        measured_ms: of the attempts the one nearest to it, because another process can only lengthen one.
        error: relative, measured over asked minus 1.
    """

    resolution_ns: float
    overhead_ns: float
    asked_ms: float
    measured_ms: float
    error: float


def check_timer(*, clock: Clock = time.perf_counter, reference: Clock | None = None) -> TimerCheck:
    """The check; it takes a few ms, on a machine that is busy up to a second or two.

    Raises:
        MarsEdgeError: no attempt was measured within 2 %: nothing measured on this device could be believed.
    """
    measured_s = _nearest(clock, reference or _raw_clock)
    error = measured_s / WAIT_S - 1.0
    if not abs(error) <= TOLERANCE:
        raise MarsEdgeError(
            f"the timer of this device cannot be believed: a wait of {1e3 * WAIT_S:g} ms was measured as "
            f"{1e3 * measured_s:.4g} ms in the best of {_ATTEMPTS} attempts, allowed are {100 * TOLERANCE:g} %"
        )
    steps = _steps(clock)
    return TimerCheck(
        resolution_ns=1e9 * min((step for step in steps if step > 0.0), default=0.0),
        overhead_ns=1e9 * sorted(steps)[len(steps) // 2],
        asked_ms=1e3 * WAIT_S,
        measured_ms=1e3 * measured_s,
        error=error,
    )


def busy_wait(seconds: float, reference: Clock) -> None:
    """Spins until `reference` has advanced by `seconds`."""
    end_s = reference() + seconds
    while reference() < end_s:
        pass


def _raw_clock() -> float:
    """Seconds on the hardware's own clock where there is one (Linux), else on the monotonic clock."""
    return time.clock_gettime(getattr(time, "CLOCK_MONOTONIC_RAW", time.CLOCK_MONOTONIC))


def _nearest(clock: Clock, reference: Clock) -> float:
    """The measurement of the wait that is nearest to its length; stops at the first within a tenth of the tolerance."""
    best_s = float("inf")
    for _ in range(_ATTEMPTS):
        begin_s = clock()
        busy_wait(WAIT_S, reference)
        took_s = clock() - begin_s
        best_s = min(best_s, took_s, key=lambda seconds: abs(seconds - WAIT_S))
        if abs(best_s / WAIT_S - 1.0) <= TOLERANCE / 10.0:
            break
        # Who has slept is given a whole slice of a core that is fought over.
        time.sleep(_REST_S)
    return best_s


def _steps(clock: Clock) -> list[float]:
    """Differences of readings in a row."""
    readings = [clock() for _ in range(_READINGS)]
    return [after - before for before, after in pairwise(readings)]
