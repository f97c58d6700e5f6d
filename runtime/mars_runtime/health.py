"""Whether a sensor may be used: a pure state machine, `(state, event, now) -> state`.

The output of fault detection is the modality mask of the model, so a wrong answer here is a wrong
decision. Nothing in this module reads a clock, sleeps, locks or looks at pixels: the capture thread
measures facts about each sample, the decision loop feeds them in with the time.

Transport faults (nothing usable arrives) always mask. Content faults (the picture looks wrong)
degrade, and mask only where `Limits.masking` says so: a night frame is a legitimate input.

Sources of the default numbers: PX4 DataValidator, ArduPilot, Frigate, ffmpeg freezedetect and
blackdetect, ROS diagnostics, Autoware image_diagnostics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from mars_edge.errors import UsageError
from mars_edge.manifest import CONTENT_FAULTS

Status = Literal["ok", "degraded", "missing"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every number of the fault table for one sensor; seconds, counts and shares (0..1).

    Attributes:
        period_s: T, nominal seconds between samples.
        stale_s: age at which the sensor is masked; None means max(3 T, 0.2 s).
        lost_s: age at which reconnecting starts; None means max(10 T, 1 s).
        frozen_frames, frozen_s: a raw sensor repeating itself for this many samples and this long is frozen.
        distinct_frames: different samples that end "frozen".
        good_samples, good_s: consecutive good samples, over this long, that end any other fault.
        flap_changes, flap_window_s, flap_hold_s: more changes than this in the window hold the sensor missing.
        masking: content faults that mask instead of degrade.
    """

    period_s: float
    start_grace_s: float = 15.0
    stale_s: float | None = None
    lost_s: float | None = None
    errors_in_a_row: int = 3
    frozen_frames: int = 5
    frozen_s: float = 0.5
    distinct_frames: int = 3
    good_samples: int = 10
    good_s: float = 1.0
    flap_changes: int = 5
    flap_window_s: float = 60.0
    flap_hold_s: float = 30.0
    slow_share: float = 0.6
    normal_share: float = 0.8
    rate_window_s: float = 5.0
    dark_share: float = 0.98
    dark_s: float = 1.0
    saturated_share: float = 0.5
    saturated_s: float = 1.0
    invalid_depth_share: float = 0.9
    invalid_depth_s: float = 1.0
    masking: frozenset[str] = frozenset()

    @property
    def stale_after_s(self) -> float:
        """Age at which a sensor is stale; also the age limit of a cached feature."""
        return max(3.0 * self.period_s, 0.2) if self.stale_s is None else self.stale_s

    @property
    def lost_after_s(self) -> float:
        """Age at which a sensor is lost and its capture thread reconnects."""
        return max(10.0 * self.period_s, 1.0) if self.lost_s is None else self.lost_s


def with_overrides(limits: Limits, table: Mapping[str, Any], where: str) -> Limits:
    """`limits` with the numbers of a user's TOML table.

    Raises:
        UsageError: an unknown key, or a value that is not a number of at least 0.
    """
    known = [f.name for f in fields(Limits) if f.name not in ("period_s", "masking")]
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; known keys: {', '.join(known)}")
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise UsageError(f"{where}: {key} is {value!r}, expected a number of at least 0")
    return replace(limits, **table)


@dataclass(frozen=True, kw_only=True)
class SampleSeen:
    """Facts about one sample, measured where it was captured.

    Attributes:
        at_s: receipt, monotonic clock.
        repeated: same payload as the sample before from a raw sensor, or its frame number did not advance.
        usable: shape, type and values are what the modality declares.
        dark, saturated, invalid_depth: share of the pixels in 0..1; 0 where the notion does not apply.
    """

    at_s: float
    repeated: bool = False
    usable: bool = True
    dark: float = 0.0
    saturated: float = 0.0
    invalid_depth: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ReadFailed:
    """A read or an open raised; `gone` means the device itself has vanished."""

    at_s: float
    gone: bool = False


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A finite source handed out its last sample."""

    at_s: float


Event = SampleSeen | ReadFailed | Ended


@dataclass(frozen=True, kw_only=True)
class Dwell:
    """How long a content condition has held, and whether that made it a fault."""

    bad_since_s: float | None = None
    fine_since_s: float | None = None
    active: bool = False


@dataclass(frozen=True, kw_only=True)
class Health:
    """All that is remembered about one sensor; times on the monotonic clock.

    Attributes:
        reason: why it is missing, None while it may be used.
        recovery: what must be seen before a missing sensor is used again.
        changes_s: recent times it became usable or missing, for the flap guard.
        content: per content fault, its dwell.
    """

    started_s: float
    reason: str | None = "starting"
    recovery: Literal["first", "distinct", "good"] = "first"
    sample_s: float | None = None
    errors: int = 0
    gone: bool = False
    ended: bool = False
    unusable: bool = False
    repeats: int = 0
    repeats_since_s: float = 0.0
    distinct: int = 0
    good: int = 0
    good_since_s: float = 0.0
    changes_s: tuple[float, ...] = ()
    held_until_s: float = -math.inf
    window_start_s: float | None = None
    window_samples: int = 0
    slow: bool = False
    content: Mapping[str, Dwell] | None = None

    @property
    def present(self) -> bool:
        """Whether the modality mask is 1."""
        return self.reason is None

    def age_s(self, now_s: float) -> float | None:
        """Seconds since the newest sample arrived; None if none ever did."""
        return None if self.sample_s is None else max(0.0, now_s - self.sample_s)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a decision says about one sensor."""

    status: Status
    reason: str | None
    age_s: float | None


# content fault: (fact of SampleSeen, share limit, dwell), the last two being fields of Limits.
_CONTENT = {
    "dark": ("dark", "dark_share", "dark_s"),
    "saturated": ("saturated", "saturated_share", "saturated_s"),
    "depth-invalid": ("invalid_depth", "invalid_depth_share", "invalid_depth_s"),
}
assert tuple(_CONTENT) == CONTENT_FAULTS


def step(state: Health, events: Iterable[Event], now_s: float, limits: Limits) -> Health:
    """The state after `events` (oldest first) and the passing of time up to `now_s`."""
    for event in events:
        # Silence before a late sample is judged with the clock at that sample, or a gap between
        # two decisions would go unseen.
        state = _judge(state, event.at_s, limits)
        state = _judge(_observe(state, event, limits), event.at_s, limits)
    return _judge(state, now_s, limits)


def summary(state: Health, now_s: float) -> Summary:
    """Status, reason and age; a degraded sensor is used and names its first content fault."""
    age_s = state.age_s(now_s)
    if state.reason is not None:
        return Summary(status="missing", reason=state.reason, age_s=age_s)
    degraded = [name for name, dwell in (state.content or {}).items() if dwell.active]
    if state.slow:
        degraded.append("rate-low")
    return Summary(status="degraded" if degraded else "ok", reason=degraded[0] if degraded else None, age_s=age_s)


def _observe(state: Health, event: Event, limits: Limits) -> Health:
    if isinstance(event, SampleSeen):
        return _observe_sample(state, event, limits)
    if isinstance(event, Ended):
        return replace(state, ended=True)
    return replace(state, errors=state.errors + 1, gone=state.gone or event.gone, good=0)


def _observe_sample(state: Health, event: SampleSeen, limits: Limits) -> Health:
    good = event.usable and not event.repeated
    repeats = state.repeats + 1 if event.repeated else 0
    # The first repeat shows a picture that was already there at the sample before it.
    before_s = event.at_s if state.sample_s is None else state.sample_s
    state = replace(
        state,
        sample_s=event.at_s,
        errors=0,
        gone=False,
        unusable=not event.usable,
        repeats=repeats,
        repeats_since_s=state.repeats_since_s if repeats > 1 else before_s,
        distinct=0 if event.repeated else state.distinct + 1,
        good=state.good + 1 if good else 0,
        good_since_s=event.at_s if state.good == 0 else state.good_since_s,
    )
    return _observe_content(_observe_rate(state, event.at_s, limits), event, limits)


def _observe_rate(state: Health, at_s: float, limits: Limits) -> Health:
    if state.window_start_s is None:
        return replace(state, window_start_s=at_s, window_samples=0)
    elapsed_s = at_s - state.window_start_s
    samples = state.window_samples + 1
    if elapsed_s < limits.rate_window_s:
        return replace(state, window_samples=samples)
    share = samples / elapsed_s * limits.period_s
    slow = share < (limits.normal_share if state.slow else limits.slow_share)
    return replace(state, slow=slow, window_start_s=at_s, window_samples=0)


def _observe_content(state: Health, event: SampleSeen, limits: Limits) -> Health:
    old = state.content or {name: Dwell() for name in _CONTENT}
    new = {}
    for name, (fact, share, dwell_s) in _CONTENT.items():
        bad = getattr(event, fact) >= getattr(limits, share)
        new[name] = _dwell(old[name], bad, event.at_s, getattr(limits, dwell_s))
    return replace(state, content=new)


def _dwell(dwell: Dwell, bad: bool, at_s: float, enter_s: float) -> Dwell:
    """Both entering and leaving take `enter_s` without interruption."""
    if bad:
        since_s = at_s if dwell.bad_since_s is None else dwell.bad_since_s
        return Dwell(bad_since_s=since_s, active=dwell.active or at_s - since_s >= enter_s)
    since_s = at_s if dwell.fine_since_s is None else dwell.fine_since_s
    return Dwell(fine_since_s=since_s, active=dwell.active and at_s - since_s < enter_s)


def _judge(state: Health, now_s: float, limits: Limits) -> Health:
    fault = _fault(state, now_s, limits)
    if fault is not None:
        return _mask(state, fault, now_s, limits)
    if state.reason is None:
        return state
    if now_s < state.held_until_s:
        return replace(state, reason="flapping")
    if _recovered(state, now_s, limits):
        return _unmask(state, now_s, limits)
    waiting = state.reason if state.recovery == "first" else "recovering"
    return replace(state, reason=waiting)


def _fault(state: Health, now_s: float, limits: Limits) -> str | None:
    """The fault the evidence shows right now, the most specific first."""
    age_s = state.age_s(now_s)
    if age_s is None:
        return _never_seen(state, now_s, limits)
    if state.ended and age_s > limits.stale_after_s:
        return "ended"
    if state.gone or state.errors >= limits.errors_in_a_row:
        return "disconnected"
    if age_s > limits.lost_after_s:
        return "lost"
    if age_s > limits.stale_after_s:
        return "stale"
    if state.unusable:
        return "unusable"
    if state.repeats >= limits.frozen_frames and now_s - state.repeats_since_s >= limits.frozen_s:
        return "frozen"
    return next((n for n, d in (state.content or {}).items() if d.active and n in limits.masking), None)


def _never_seen(state: Health, now_s: float, limits: Limits) -> str:
    if state.ended:
        return "ended"
    return "absent" if now_s - state.started_s >= limits.start_grace_s else "starting"


def _mask(state: Health, fault: str, now_s: float, limits: Limits) -> Health:
    recovery = _recovery_after(fault, state)
    # Time without samples breaks the run of good ones; a frozen or odd picture does so at its sample.
    good = 0 if fault in ("disconnected", "stale", "lost", "unusable") else state.good
    was_present = state.reason is None
    # A gap must not count as a low rate once the samples are back.
    state = replace(state, reason=fault, recovery=recovery, good=good, window_start_s=None, slow=False)
    return _changed(state, now_s, limits) if was_present else state


def _recovery_after(fault: str, state: Health) -> Literal["first", "distinct", "good"]:
    """What this fault asks for, never less than what an earlier one still asks for."""
    asked: Literal["first", "distinct", "good"] = "good"
    if fault in ("starting", "absent"):
        asked = "first"
    elif fault == "frozen" or fault in _CONTENT:
        asked = "distinct"
    strictness = ("first", "distinct", "good")
    pending = "first" if state.reason is None else state.recovery
    return asked if strictness.index(asked) >= strictness.index(pending) else pending


def _recovered(state: Health, now_s: float, limits: Limits) -> bool:
    if state.recovery == "first":
        return state.good >= 1
    if state.recovery == "distinct":
        return state.distinct >= limits.distinct_frames
    return state.good >= limits.good_samples and now_s - state.good_since_s >= limits.good_s


def _unmask(state: Health, now_s: float, limits: Limits) -> Health:
    first_time = state.recovery == "first"
    state = replace(state, reason=None)
    return state if first_time else _changed(state, now_s, limits)


def _changed(state: Health, now_s: float, limits: Limits) -> Health:
    """Count one change between usable and missing; too many hold the sensor missing for a while."""
    recent = (*(t for t in state.changes_s if now_s - t < limits.flap_window_s), now_s)
    if len(recent) <= limits.flap_changes:
        return replace(state, changes_s=recent)
    return replace(
        state, reason=state.reason or "flapping", recovery="good", changes_s=(), held_until_s=now_s + limits.flap_hold_s
    )
