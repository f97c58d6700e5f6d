"""Everything one decision was made from: enough to make it again, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mars_runtime.capture import Delivery
from mars_runtime.decision import Decision
from mars_runtime.downgrade import Watch
from mars_runtime.region import RegionState
from mars_runtime.sensors.driver import Traits
from mars_runtime.track import TrackState


@dataclass(frozen=True, kw_only=True)
class LoopState:
    """All that the loop remembers between two decisions.

    Attributes:
        seq: number of the next decision.
        tracks: by sensor.
    """

    seq: int
    tracks: Mapping[str, TrackState]
    watch: Watch = field(default_factory=Watch)
    region: RegionState = field(default_factory=RegionState)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """By when a decision was to be made, and what the loop's own lateness excuses.

    Attributes:
        deadline_s: monotonic clock; None for a decision outside a schedule.
        excused_s: silence that was this process's own stall and no sensor's.
        skipped: periods just before that passed without a decision.
    """

    deadline_s: float | None = None
    excused_s: float = 0.0
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class Readings:
    """The clocks as one decision read them: monotonic at its begin, after preprocessing and at its end; UTC."""

    begin_s: float
    prepared_s: float
    end_s: float
    utc_s: float


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One decision and its causes.

    Attributes:
        before: the loop's state when it began.
        deliveries: by sensor, what the feeds handed out.
        traits: by sensor, as read in this decision.
    """

    before: LoopState
    plan: Plan
    readings: Readings
    deliveries: Mapping[str, Delivery]
    traits: Mapping[str, Traits]
    decision: Decision
