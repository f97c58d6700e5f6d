"""Where in the period of its sensors the loop decides: just after the sample that is followed by the longest pause.

Cameras run on clocks of their own. A loop that keeps to any instant of a period uses samples that lay waiting, up to a
whole period. Of all instants, those just after a sample arrived make the oldest sample youngest; with N sensors at
random phases its mean age falls from N / (N + 1) of a period to 1 minus the mean of the longest of N gaps.
The loop begins there, and follows by small steps, so that its rate stays that of the sensors.

Design decision: not every sample at once (`newest`), which decides N times per period, or at a limit that drifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A period of the loop may differ from whole periods of a sensor by so much; else their phase does not stay.
_RATE_TOLERANCE = 0.02
# Of a period: the longest step, and what another sensor must be better by before the loop follows it instead.
_LONGEST_STEP, _WORTH_IT = 0.05, 0.1
# Arrivals scatter; a part of the way per decision follows their mean.
_GAIN = 0.25


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """The newest sample of a usable sensor.

    Attributes:
        at_s: of its receipt, on the loop's clock.
        period_s: of the sensor.
    """

    name: str
    at_s: float
    period_s: float


def leader(arrivals: Sequence[Arrival], period_s: float, followed: str | None) -> Arrival | None:
    """The sensor whose samples a loop of this period best decides on; None where no sensor keeps a phase to it.

    Args:
        followed: the one that it follows now, kept unless another one makes the oldest sample clearly younger.
    """
    steady = [one for one in arrivals if _keeps_phase(one, period_s)]
    if not steady:
        return None
    ages_s = {one.name: _oldest_s(one, steady) for one in steady}
    best = min(steady, key=lambda one: ages_s[one.name])
    now = next((one for one in steady if one.name == followed), None)
    if now is not None and ages_s[now.name] - ages_s[best.name] <= _WORTH_IT * period_s:
        return now
    return best


def step_s(arrival: Arrival, due_s: float, period_s: float) -> float:
    """How much later than `due_s` to decide, so that the loop nears the instants at which this sensor's samples come.

    Negative means earlier; at most `_LONGEST_STEP` of a period.
    """
    ahead_s = _wrapped(arrival.at_s - due_s, arrival.period_s)
    longest_s = _LONGEST_STEP * period_s
    return max(-longest_s, min(longest_s, _GAIN * ahead_s))


def jump_s(arrival: Arrival, due_s: float) -> float:
    """How much later than `due_s` a sample of this sensor comes next: where a loop that has just begun goes at once."""
    return (arrival.at_s - due_s) % arrival.period_s


def _keeps_phase(arrival: Arrival, period_s: float) -> bool:
    ratio = period_s / arrival.period_s
    whole = round(ratio)
    return whole >= 1 and abs(ratio - whole) <= _RATE_TOLERANCE * whole


def _oldest_s(at: Arrival, arrivals: Sequence[Arrival]) -> float:
    """How old the oldest sample is when that of `at` arrives."""
    return max((at.at_s - one.at_s) % one.period_s for one in arrivals)


def _wrapped(difference_s: float, period_s: float) -> float:
    """The same instant of a period, nearest to 0: from minus half a period to half a period."""
    return (difference_s + period_s / 2.0) % period_s - period_s / 2.0
