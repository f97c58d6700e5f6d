"""Which samples of one decision show another moment than the others, by the devices' own stamps.

Receipt times say nothing here: a sample that comes late by the cable was not seen late. A sensor without stamps is
never skewed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mars_runtime.health import Evidence
from mars_runtime.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """When the device says that a sample was captured, on the monotonic clock, and the limits of its sensor."""

    stamped_s: float
    limits: Limits


def skewed(stamps: Mapping[str, Stamp]) -> dict[str, Evidence]:
    """Sensors that differ from the reference by more than their `skew_after_s`, and by how much.

    The reference is the fastest sensor, of several the first in fusion order: the one whose sample is newest as a rule.
    """
    if len(stamps) < 2:
        return {}
    reference = min(stamps, key=lambda name: stamps[name].limits.period_s)
    at_s = stamps[reference].stamped_s
    found = {name: (abs(stamp.stamped_s - at_s), stamp.limits.skew_after_s) for name, stamp in stamps.items()}
    return {name: {"skew_s": by_s, "limit_s": most_s} for name, (by_s, most_s) in found.items() if by_s > most_s}
