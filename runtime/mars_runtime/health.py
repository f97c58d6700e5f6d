"""Whether a sensor may be used: a pure state machine, `(state, event, now) -> state`.

The output of fault detection is the modality mask of the model, so a wrong answer here is a wrong
decision. Nothing in this module reads a clock, sleeps, locks or looks at pixels: the capture thread
measures facts about each sample, the decision loop feeds them in with the time.

Transport faults (nothing usable arrives) always mask. Content faults (the picture looks wrong)
degrade, and mask only where `Limits.masking` says so: a night frame is a legitimate input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from mars_runtime.health_table import ROWS, Dwell, judged
from mars_runtime.limits import Limits as Limits
from mars_runtime.limits import with_overrides as with_overrides

Status = Literal["ok", "degraded", "missing"]
Evidence = Mapping[str, float]

# A low rate is looked for in so many parts of its window, so that it is found soon after the window is full.
_RATE_PARTS = 10
# Faults that end a run of good samples; a frozen or odd picture does so at its sample.
_BREAKS = ("disconnected", "stale", "lost", "unusable", "clock", "audio-dead")


@dataclass(frozen=True, kw_only=True)
class SampleSeen:
    """Facts about one sample, measured where it was captured; None where the notion does not apply.

    Attributes:
        at_s: receipt, monotonic clock.
        stamped_s: capture by the device's own stamp, on the same clock; 0 or less where the device sent no time.
        repeated: same payload as the sample before from a raw sensor, or its frame number did not advance.
        usable: shape, type and values are what the modality declares.
        dark, saturated: share of the pixels in 0..1; 0 where the notion does not apply.
        invalid_depth: share of the pixels of a depth picture that show no surface, 0..1; 0 for other pictures.
        flat: share of the 25 blocks of a picture without texture.
        noise: standard deviation of the pixel noise, share of the range; of depth, share of the depth itself.
        still: mean absolute difference to a held picture, share of the range, on compressed video.
        zeros_s: how long a raw microphone has given nothing but exact zeros.
        loudness_dbfs: root mean square of the newest sound, decibels of full scale.
        clipped: share of the newest sound at full scale.
    """

    at_s: float
    stamped_s: float | None = None
    repeated: bool = False
    usable: bool = True
    dark: float = 0.0
    saturated: float = 0.0
    invalid_depth: float = 0.0
    flat: float | None = None
    noise: float | None = None
    still: float | None = None
    zeros_s: float | None = None
    loudness_dbfs: float | None = None
    clipped: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReadFailed:
    """A read or an open raised; `gone` means the device itself has vanished, `message` is what the driver said."""

    at_s: float
    gone: bool = False
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A finite source handed out its last sample."""

    at_s: float


Event = SampleSeen | ReadFailed | Ended


@dataclass(frozen=True, kw_only=True)
class DeviceClock:
    """What is known of a device's time stamps.

    Attributes:
        stamped_s: the newest stamp.
        offset_s: receipt minus stamp as it usually is.
        wrong: stamps in a row that were zero, did not advance or jumped.
        jump_s: how far the newest jumped; infinite for one that was zero or did not advance.
    """

    stamped_s: float
    offset_s: float
    wrong: int = 0
    jump_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Health:
    """All that is remembered about one sensor; times on the monotonic clock.

    Attributes:
        reason: why it is missing, None while it may be used.
        error: what the driver said at the newest failure since the newest sample.
        recovery: what must be seen before a missing sensor is used again.
        evidence: what the last fault that masked it was judged on: the measured numbers and their limits.
        changes_s: recent times it became usable or missing, for the flap guard.
        parts: samples in each of the last parts of the rate's window; the last one is not complete.
        rate: what a low rate was judged on; empty while there is none.
        content: per row of the table that has a dwell, its dwell.
    """

    started_s: float
    reason: str | None = "starting"
    recovery: Literal["first", "distinct", "good"] = "first"
    evidence: Evidence = field(default_factory=dict)
    sample_s: float | None = None
    errors: int = 0
    error: str = ""
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
    clock: DeviceClock | None = None
    part_start_s: float | None = None
    parts: tuple[int, ...] = ()
    slow: bool = False
    rate: Evidence = field(default_factory=dict)
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
    """What a decision says about one sensor.

    Attributes:
        evidence: the numbers the reason was judged on and their limits; of a sensor that is recovering, those of the
            fault it recovers from. Empty where there is no reason.
        error: of a missing sensor that fails, its driver's words; else empty.
    """

    status: Status
    reason: str | None
    age_s: float | None
    evidence: Evidence = field(default_factory=dict)
    error: str = ""


def step(state: Health, events: Iterable[Event], now_s: float, limits: Limits) -> Health:
    """The state after `events` (oldest first) and the passing of time up to `now_s`."""
    for event in events:
        # Silence before a late sample is judged with the clock at that sample, or a gap between
        # two decisions would go unseen.
        state = _judge(state, event.at_s, limits)
        state = _judge(_observe(state, event, limits), event.at_s, limits)
    return _judge(state, now_s, limits)


def summary(state: Health, now_s: float) -> Summary:
    """Status, reason, age and evidence; a degraded sensor is used and names its first content fault."""
    age_s = state.age_s(now_s)
    if state.reason is not None:
        return Summary(status="missing", reason=state.reason, age_s=age_s, evidence=state.evidence, error=state.error)
    for name, dwell in (state.content or {}).items():
        if dwell.active:
            return Summary(status="degraded", reason=name, age_s=age_s, evidence=dwell.evidence)
    if state.slow:
        return Summary(status="degraded", reason="rate-low", age_s=age_s, evidence=state.rate)
    return Summary(status="ok", reason=None, age_s=age_s)


def suspected(state: Health, limits: Limits) -> str | None:
    """The fault that will mask this usable sensor if what its newest sample shows goes on; None where nothing does.

    Until then the sensor is used, but what was decided with it would have been decided with a fault.
    """
    for name, dwell in (state.content or {}).items():
        if name in limits.masking and dwell.bad_since_s is not None and not dwell.active:
            return name
    return None


def _observe(state: Health, event: Event, limits: Limits) -> Health:
    if isinstance(event, SampleSeen):
        return _observe_sample(state, event, limits)
    if isinstance(event, Ended):
        return replace(state, ended=True)
    return replace(state, errors=state.errors + 1, error=event.message, gone=state.gone or event.gone, good=0)


def _observe_sample(state: Health, event: SampleSeen, limits: Limits) -> Health:
    clock = _observe_clock(state.clock, event, limits)
    good = event.usable and not event.repeated and (clock is None or clock.wrong == 0)
    repeats = state.repeats + 1 if event.repeated else 0
    # The first repeat shows a picture that was already there at the sample before it.
    before_s = event.at_s if state.sample_s is None else state.sample_s
    gap = event.at_s - before_s > limits.stale_after_s
    content = judged(state.content or {}, event, limits, gap=gap)
    rate = _observe_rate(state, event.at_s, limits)
    # Not replace(): this runs for every sample.
    return Health(
        started_s=state.started_s,
        reason=state.reason,
        recovery=state.recovery,
        evidence=state.evidence,
        sample_s=event.at_s,
        ended=state.ended,
        unusable=not event.usable,
        repeats=repeats,
        repeats_since_s=state.repeats_since_s if repeats > 1 else before_s,
        distinct=0 if event.repeated else state.distinct + 1,
        good=state.good + 1 if good else 0,
        good_since_s=event.at_s if state.good == 0 else state.good_since_s,
        changes_s=state.changes_s,
        held_until_s=state.held_until_s,
        clock=clock,
        part_start_s=rate.start_s,
        parts=rate.parts,
        slow=rate.slow,
        rate=rate.evidence,
        content=content,
    )


def _observe_clock(clock: DeviceClock | None, event: SampleSeen, limits: Limits) -> DeviceClock | None:
    """Stamps against receipt. A jump is measured from how late samples usually are, so a lasting one is seen."""
    if event.stamped_s is None:
        return None if clock is None else replace(clock, wrong=0, jump_s=0.0)
    offset_s = event.at_s - event.stamped_s
    if clock is None:
        zero = event.stamped_s <= 0.0
        return DeviceClock(
            stamped_s=event.stamped_s, offset_s=offset_s, wrong=int(zero), jump_s=math.inf if zero else 0.0
        )
    stands = event.stamped_s <= 0.0 or event.stamped_s <= clock.stamped_s
    jump_s = math.inf if stands else abs(offset_s - clock.offset_s)
    if jump_s <= limits.clock_jump_s:
        return DeviceClock(stamped_s=event.stamped_s, offset_s=clock.offset_s + 0.1 * (offset_s - clock.offset_s))
    wrong = clock.wrong + 1
    # Once it is a fault the new offset is the usual one: a clock that was set anew and now runs well comes back.
    usual_s = offset_s if wrong >= limits.clock_samples else clock.offset_s
    return DeviceClock(stamped_s=event.stamped_s, offset_s=usual_s, wrong=wrong, jump_s=jump_s)


@dataclass(frozen=True, kw_only=True)
class _Rate:
    """The part of `Health` that judges the rate."""

    start_s: float
    parts: tuple[int, ...]
    slow: bool
    evidence: Evidence


def _observe_rate(state: Health, at_s: float, limits: Limits) -> _Rate:
    """Samples over the last `rate_window_s` against the nominal rate, judged each time a part of it is complete."""
    start_s, parts, slow, evidence = state.part_start_s, state.parts, state.slow, state.rate
    if start_s is None or at_s < start_s:
        return _Rate(start_s=at_s, parts=(0,), slow=slow, evidence=evidence)
    part_s = limits.rate_window_s / _RATE_PARTS
    passed = int((at_s - start_s) / part_s)
    if passed > 0:
        parts = (*parts, *[0] * min(passed, _RATE_PARTS))[-_RATE_PARTS - 1 :]
        start_s += passed * part_s
        if len(parts) > _RATE_PARTS:
            share = sum(parts[:-1]) / limits.rate_window_s * limits.period_s
            was, slow = slow, share < (limits.normal_share if slow else limits.slow_share)
            found = evidence if was else {"rate_share": share, "limit": limits.slow_share}
            evidence = found if slow else {}
    return _Rate(start_s=start_s, parts=(*parts[:-1], parts[-1] + 1), slow=slow, evidence=evidence)


def _judge(state: Health, now_s: float, limits: Limits) -> Health:
    fault, evidence = _fault(state, now_s, limits)
    if fault is not None:
        return _mask(state, fault, evidence, now_s, limits)
    if state.reason is None:
        return state
    if now_s < state.held_until_s:
        return replace(state, reason="flapping", evidence=_flapping(limits))
    if _recovered(state, now_s, limits):
        return _unmask(state, now_s, limits)
    waiting = state.reason if state.recovery == "first" else "recovering"
    return replace(state, reason=waiting)


def _fault(state: Health, now_s: float, limits: Limits) -> tuple[str | None, Evidence]:
    """The fault that is there right now, the most specific first, and what shows it."""
    if _is_well(state, now_s, limits):
        return None, {}
    age_s = state.age_s(now_s)
    if age_s is None:
        return _never_seen(state, now_s, limits)
    return _silent(state, age_s, limits) or _wrong(state, now_s, limits) or (None, {})


def _is_well(state: Health, now_s: float, limits: Limits) -> bool:
    """True only where no row of the table can hold: almost every judgement, in a fraction of the time."""
    if state.sample_s is None or now_s - state.sample_s > limits.shortest_silence_s:
        return False
    if state.ended or state.gone or state.errors or state.unusable or state.repeats:
        return False
    if state.clock is not None and state.clock.wrong:
        return False
    for dwell in (state.content or {}).values():  # noqa: SIM110 - a generator would double the cost
        if dwell.active:
            return False
    return True


def _never_seen(state: Health, now_s: float, limits: Limits) -> tuple[str, Evidence]:
    if state.ended:
        return "ended", {}
    waited_s = now_s - state.started_s
    if waited_s < limits.start_grace_s:
        return "starting", {}
    return "absent", {"waited_s": waited_s, "limit_s": limits.start_grace_s}


def _silent(state: Health, age_s: float, limits: Limits) -> tuple[str, Evidence] | None:
    """Nothing arrives."""
    if state.ended and age_s > limits.stale_after_s:
        return "ended", {"age_s": age_s}
    if state.gone:
        return "disconnected", {"gone": 1.0}
    if state.errors >= limits.errors_in_a_row:
        return "disconnected", {"errors": state.errors, "limit": limits.errors_in_a_row}
    silences = {"lost": limits.lost_after_s, "audio-dead": limits.callback_s, "stale": limits.stale_after_s}
    passed = {name: limit_s for name, limit_s in silences.items() if age_s > limit_s}
    if not passed:
        return None
    # Of the limits that have passed the longest says most.
    name = max(passed, key=lambda each: passed[each])
    return name, {"age_s": age_s, "limit_s": passed[name]}


def _wrong(state: Health, now_s: float, limits: Limits) -> tuple[str, Evidence] | None:
    """Something arrives that must not be used."""
    if state.unusable:
        return "unusable", {}
    content = state.content or {}
    for row in ROWS:
        if row.tier == "transport" and row.reason in content and content[row.reason].active:
            return row.reason, content[row.reason].evidence
    clock = state.clock
    if clock is not None and clock.wrong >= limits.clock_samples:
        jump = {"jump_s": clock.jump_s} if math.isfinite(clock.jump_s) else {"stamp_s": clock.stamped_s}
        return "clock", {**jump, "limit_s": limits.clock_jump_s, "samples": clock.wrong}
    stood_s = now_s - state.repeats_since_s
    if state.repeats >= limits.frozen_frames and stood_s >= limits.frozen_s:
        return "frozen", {"repeats": state.repeats, "for_s": stood_s, "limit_s": limits.frozen_s}
    masking = (name for name, dwell in content.items() if dwell.active and name in limits.masking)
    name = next(masking, None)
    return None if name is None else (name, content[name].evidence)


def _mask(state: Health, fault: str, evidence: Evidence, now_s: float, limits: Limits) -> Health:
    recovery = _recovery_after(fault, state)
    # Time without samples breaks the run of good ones.
    good = 0 if fault in _BREAKS else state.good
    was_present = state.reason is None
    # The numbers at the moment the fault was found, not those of every moment it lasts.
    evidence = state.evidence if fault == state.reason else evidence
    # A gap must not count as a low rate once the samples are back.
    state = replace(
        state,
        reason=fault,
        recovery=recovery,
        evidence=evidence,
        good=good,
        part_start_s=None,
        parts=(),
        slow=False,
        rate={},
    )
    return _changed(state, now_s, limits) if was_present else state


def _recovery_after(fault: str, state: Health) -> Literal["first", "distinct", "good"]:
    """What this fault asks for, never less than what an earlier one still asks for."""
    asked: Literal["first", "distinct", "good"] = "good"
    if fault in ("starting", "absent"):
        asked = "first"
    elif fault == "frozen" or fault in {row.reason for row in ROWS}:
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
    state = replace(state, reason=None, evidence={})
    return state if first_time else _changed(state, now_s, limits)


def _changed(state: Health, now_s: float, limits: Limits) -> Health:
    """Count one change between usable and missing; too many hold the sensor missing for a while."""
    recent = (*(t for t in state.changes_s if now_s - t < limits.flap_window_s), now_s)
    if len(recent) <= limits.flap_changes:
        return replace(state, changes_s=recent)
    return replace(
        state,
        reason=state.reason or "flapping",
        recovery="good",
        evidence=_flapping(limits) if state.reason is None else state.evidence,
        changes_s=(),
        held_until_s=now_s + limits.flap_hold_s,
    )


def _flapping(limits: Limits) -> Evidence:
    return {"changes": limits.flap_changes + 1, "limit": limits.flap_changes, "window_s": limits.flap_window_s}
