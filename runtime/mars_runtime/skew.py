"""Which samples of one decision show another moment than the others, by the devices' own stamps.

Receipt times say nothing here: a sample that comes late by the cable was not seen late. A sensor without stamps is
never skewed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from mars_runtime.health import Evidence
from mars_runtime.limits import Limits

# Rates are read back from devices: 29.97 Hz is as fast as 30.
_AS_FAST = 1.1


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """When the device says that a sample was captured, on the monotonic clock, and the limits of its sensor."""

    stamped_s: float
    limits: Limits


def skewed(stamps: Mapping[str, Stamp]) -> dict[str, Evidence]:
    """Sensors that differ from the reference by more than their `skew_after_s`, and by how much.

    The reference is the middle stamp among the fastest sensors, of two the newer: one sensor that falls silent, or
    whose clock is off, is then the one that differs, and not all the others.
    """
    if len(stamps) < 2:
        return {}
    fastest_s = min(stamp.limits.period_s for stamp in stamps.values())
    quick = [stamp.stamped_s for stamp in stamps.values() if stamp.limits.period_s <= _AS_FAST * fastest_s]
    at_s = statistics.median_high(quick)
    found = {name: (abs(stamp.stamped_s - at_s), stamp.limits.skew_after_s) for name, stamp in stamps.items()}
    return {name: {"skew_s": by_s, "limit_s": most_s} for name, (by_s, most_s) in found.items() if by_s > most_s}
