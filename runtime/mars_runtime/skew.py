"""Which samples of one decision show another moment than the others, by the devices' own stamps.

Receipt times say nothing here: a sample that comes late by the cable was not seen late. A sensor without stamps is
never skewed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mars_runtime.health import Limits

SMALLEST_S = 0.05
PERIODS = 1.5


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """When the device says that a sample was captured, on the monotonic clock, and the limits of its sensor."""

    stamped_s: float
    limits: Limits


def skewed(stamps: Mapping[str, Stamp]) -> frozenset[str]:
    """Sensors that differ from the reference by more than max(50 ms, 1.5 of their periods).

    The reference is the fastest sensor, of several the first in fusion order: the one whose sample is newest as a rule.
    """
    if len(stamps) < 2:
        return frozenset()
    reference = min(stamps, key=lambda name: stamps[name].limits.period_s)
    at_s = stamps[reference].stamped_s
    return frozenset(name for name, stamp in stamps.items() if abs(stamp.stamped_s - at_s) > _allowed_s(stamp.limits))


def _allowed_s(limits: Limits) -> float:
    return max(SMALLEST_S, PERIODS * limits.period_s)
