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
TOLERANCE, _TOLERANCE_OF_HALF = 0.02, 0.1
_ATTEMPTS = 100
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
        measured_ms: the shortest of the attempts, because another process can only lengthen one.
        error: relative, measured over asked minus 1.
    """

    resolution_ns: float
    overhead_ns: float
    asked_ms: float
    measured_ms: float
    error: float


def check_timer(*, clock: Clock = time.perf_counter, reference: Clock | None = None) -> TimerCheck:
    """The check; it takes a third of a second.

    Raises:
        MarsEdgeError: the shortest attempt is off by more than 2 %, or the middle one by more than a tenth: nothing
            measured on this device could be believed.
    """
    waits = _waits(clock, reference or _raw_clock)
    measured_s = waits[0]
    for which, seconds, tolerance in (
        ("shortest", measured_s, TOLERANCE),
        ("middle", waits[len(waits) // 2], _TOLERANCE_OF_HALF),
    ):
        if not abs(seconds / WAIT_S - 1.0) <= tolerance:
            raise MarsEdgeError(
                f"the timer of this device cannot be believed: a wait of {1e3 * WAIT_S:g} ms was measured as "
                f"{1e3 * seconds:.4g} ms, the {which} of {_ATTEMPTS} attempts, allowed are {100 * tolerance:g} %"
            )
    error = measured_s / WAIT_S - 1.0
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


def _waits(clock: Clock, reference: Clock) -> list[float]:
    """Measurements of the wait, shortest first."""
    found = []
    for _ in range(_ATTEMPTS):
        begin_s = clock()
        busy_wait(WAIT_S, reference)
        found.append(clock() - begin_s)
        # Who has slept is given a whole slice of a core that is fought over.
        time.sleep(_REST_S)
    return sorted(found)


def _steps(clock: Clock) -> list[float]:
    """Differences of readings in a row."""
    readings = [clock() for _ in range(_READINGS)]
    return [after - before for before, after in pairwise(readings)]
