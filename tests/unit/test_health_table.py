"""Every row of the fault table: when it is entered, when it is left, what it does to the mask, what it says it saw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mars_edge.manifest import CONTENT_FAULTS
from mars_edge.modality import Modality
from mars_runtime.health import Health, SampleSeen, Summary, step, summary
from mars_runtime.health_table import ROWS, Row
from mars_runtime.limits import Limits, kind_of, limits_of
from mars_runtime.sensors.driver import Traits

PERIOD_S = 1 / 15
LIMITS = Limits(period_s=PERIOD_S)
BY_REASON = {row.reason: row for row in ROWS}


@dataclass(kw_only=True)
class Life:
    """A sensor whose samples come every period and are judged at once."""

    limits: Limits = LIMITS
    now_s: float = 500.0
    state: Health = field(default_factory=lambda: Health(started_s=500.0))

    def feel(self, seconds: float, period_s: float = PERIOD_S, **facts: Any) -> list[Summary]:
        """What is said after each sample with these facts; a callable is given the time."""
        said = []
        for _ in range(round(seconds / period_s)):
            self.now_s += period_s
            now = {name: fact(self.now_s) if callable(fact) else fact for name, fact in facts.items()}
            self.state = step(self.state, [SampleSeen(at_s=self.now_s, **now)], self.now_s, self.limits)
            said.append(summary(self.state, self.now_s))
        return said


def bad(row: Row, limits: Limits) -> float:
    """A number just beyond the row's limit."""
    limit = float(getattr(limits, row.limit))
    return limit if row.test in (">=", "<=") else math.nextafter(limit, math.inf if row.test == ">" else -math.inf)


def fine(row: Row, limits: Limits) -> float:
    """A number just within the row's limit."""
    limit = float(getattr(limits, row.limit))
    if row.test in (">", "<"):
        return limit
    return math.nextafter(limit, -math.inf if row.test == ">=" else math.inf)


def first(said: list[Summary], reason: str | None) -> float | None:
    """Seconds until this was first said."""
    return next(((n + 1) * PERIOD_S for n, each in enumerate(said) if each.reason == reason), None)


def test_the_rows_that_may_mask_by_policy_are_those_a_manifest_may_name() -> None:
    assert {row.reason for row in ROWS if row.tier == "content"} == set(CONTENT_FAULTS)
    assert set(CONTENT_FAULTS) == {"dark", "saturated", "covered", "noise", "frozen?", "depth-invalid"}


@pytest.mark.parametrize(
    ("reason", "enter_s", "leave_s"),
    [
        ("dark", 1.0, 1.0),
        ("saturated", 1.0, 1.0),
        ("depth-invalid", 1.0, 1.0),
        ("covered", 2.0, 2.0),
        ("noise", 1.0, 1.0),
        ("frozen?", 2.0, None),
        ("audio-silent", 2.0, 2.0),
        ("audio-clipped", 1.0, 1.0),
    ],
)
def test_a_row_is_entered_and_left_after_its_dwell_and_no_sooner(
    reason: str, enter_s: float, leave_s: float | None
) -> None:
    row, life = BY_REASON[reason], Life()
    life.feel(1.0)
    entered = life.feel(5.0, **{row.fact: bad(row, LIMITS)})
    # The dwell counts from the first bad sample, which comes one period in.
    assert first(entered, reason) == pytest.approx(enter_s + PERIOD_S, abs=PERIOD_S + 1e-6)
    assert (first(entered, reason) or 0.0) >= enter_s
    assert entered[-1].status == "degraded"
    assert life.state.present
    left = life.feel(5.0, **{row.fact: fine(row, LIMITS)})
    if leave_s is None:
        # Three pictures that differ.
        assert [each.reason for each in left[:3]] == [reason, reason, None]
    else:
        assert first(left, None) == pytest.approx(leave_s + PERIOD_S, abs=PERIOD_S + 1e-6)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.reason)
def test_a_number_within_its_limit_is_never_a_fault(row: Row) -> None:
    life = Life()
    assert {each.status for each in life.feel(30.0, **{row.fact: fine(row, LIMITS)})} == {"ok"}


@pytest.mark.parametrize("row", [row for row in ROWS if row.enter_s], ids=lambda row: row.reason)
def test_one_fine_sample_starts_the_dwell_again(row: Row) -> None:
    life = Life()
    enter_s = float(getattr(LIMITS, row.enter_s))
    for _ in range(20):
        assert {each.status for each in life.feel(enter_s - 0.1, **{row.fact: bad(row, LIMITS)})} == {"ok"}
        life.feel(PERIOD_S, **{row.fact: fine(row, LIMITS)})


@pytest.mark.parametrize("row", [row for row in ROWS if row.enter_s], ids=lambda row: row.reason)
def test_a_fault_does_not_hold_across_a_gap_without_samples(row: Row) -> None:
    life = Life()
    life.feel(1.0)
    life.feel(0.6, **{row.fact: bad(row, LIMITS)})
    life.now_s += 5.0
    life.feel(0.6, **{row.fact: bad(row, LIMITS)})
    # Not what is said: a sensor that recovers names that first.
    assert life.state.content is not None
    assert not life.state.content[row.reason].active


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.reason)
def test_a_fault_says_the_number_it_was_judged_on_and_its_limit_until_it_is_over(row: Row) -> None:
    life = Life()
    life.feel(1.0)
    limit = float(getattr(LIMITS, row.limit))
    said = life.feel(4.0, **{row.fact: bad(row, LIMITS)})
    faulty = [each for each in said if each.reason == row.reason]
    evidence = dict(faulty[0].evidence)
    assert evidence.pop("for_s") >= (float(getattr(LIMITS, row.enter_s)) if row.enter_s else 0.0)
    assert evidence == {row.fact: bad(row, LIMITS), "limit": limit}
    assert all(each.evidence == faulty[0].evidence for each in faulty)
    assert life.feel(8.0, **{row.fact: fine(row, LIMITS)})[-1].evidence == {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.reason)
def test_only_transport_faults_and_content_faults_that_the_policy_names_mask(row: Row) -> None:
    for masking in (frozenset[str](), frozenset([row.reason])):
        life = Life(limits=replace(LIMITS, masking=masking))
        life.feel(1.0)
        last = life.feel(5.0, **{row.fact: bad(row, LIMITS)})[-1]
        masks = row.tier == "transport" or (row.tier == "content" and bool(masking))
        # A policy can only name content faults; the manifest refuses the others.
        if row.tier != "degraded" or not masking:
            assert (last.status == "missing") == masks
            assert last.reason == row.reason
            assert life.state.present != masks


def test_a_microphone_of_exact_zeros_is_dead_at_half_a_second_and_back_a_second_after_it_sounds() -> None:
    life = Life(limits=Limits(period_s=0.1))
    life.feel(1.0, 0.1, zeros_s=0.0)
    begin_s = life.now_s
    said = life.feel(2.0, 0.1, zeros_s=lambda now_s: now_s - begin_s + 1e-9)
    assert [each.reason for each in said].index("audio-dead") == 4
    assert said[4].evidence == {"zeros_s": pytest.approx(0.5), "limit": 0.5, "for_s": 0.0}
    assert [each.status for each in said[4:]] == ["missing"] * 16
    back = life.feel(3.0, 0.1, zeros_s=0.0)
    assert [each.status for each in back].index("ok") == pytest.approx(10, abs=1)


def test_a_microphone_without_a_callback_is_dead_at_half_a_second() -> None:
    modality = Modality(name="audio", kind="audio", rate_hz=16000.0, window_s=1.0)
    traits = Traits(description="microphone", rate_hz=10.0, raw=True)
    life = Life(limits=limits_of(kind_of(modality), traits))
    life.feel(2.0, 0.1)
    assert life.state.present
    reasons = []
    for hundredths in range(200):
        now_s = life.now_s + hundredths / 100
        life.state = step(life.state, [], now_s, life.limits)
        reasons.append(summary(life.state, now_s).reason)
    for reason, hundredths in (("stale", 31), ("audio-dead", 51), ("lost", 101)):
        assert reasons.index(reason) == pytest.approx(hundredths, abs=1)


def infrared() -> Limits:
    modality = Modality(name="ir", kind="image", channels=1, size=(112, 112), dtype="uint8", range=(0.0, 255.0))
    return limits_of(kind_of(modality), Traits(description="ir", rate_hz=15.0, raw=True))


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_an_infrared_camera_with_a_strobe_is_judged_by_its_lit_frames(frames: int) -> None:
    life, count = Life(limits=infrared()), iter(range(10_000))
    said = life.feel(20.0, dark=lambda _: 0.1 if next(count) % frames == 0 else 1.0)
    assert {each.status for each in said} == {"ok"}
    dark = life.feel(5.0, dark=1.0)
    # Until the last lit frame is out of the four looked at, then two seconds.
    assert 2.0 <= (first(dark, "dark") or 0.0) <= 2.0 + 5 * PERIOD_S


def stamped(offset: Callable[[float], float]) -> Callable[[float], float]:
    return lambda now_s: now_s - 0.02 - offset(now_s)


def test_stamps_that_keep_their_distance_to_receipt_are_no_fault() -> None:
    life = Life()
    wave = life.feel(60.0, stamped_s=stamped(lambda now_s: 0.04 * math.sin(now_s)))
    # 200 parts in a million: a poor crystal.
    drift = Life().feel(600.0, stamped_s=stamped(lambda now_s: 2e-4 * (now_s - 500.0)))
    assert {each.status for each in (*wave, *drift)} == {"ok"}


@pytest.mark.parametrize(
    ("stamp", "says"),
    [
        (lambda now_s: 0.0, {"stamp_s": 0.0, "limit_s": 0.1, "samples": 3}),
        (lambda now_s: -1.0, {"stamp_s": -1.0, "limit_s": 0.1, "samples": 3}),
        (lambda now_s: 502.0, {"stamp_s": 502.0, "limit_s": 0.1, "samples": 3}),
        (lambda now_s: now_s - 0.02 - 0.15, {"jump_s": pytest.approx(0.15), "limit_s": 0.1, "samples": 3}),
        (lambda now_s: now_s - 0.02 + 0.15, {"jump_s": pytest.approx(0.15), "limit_s": 0.1, "samples": 3}),
    ],
    ids=["zero", "negative", "standing", "jumped back", "jumped ahead"],
)
def test_three_wrong_stamps_in_a_row_mask_and_two_do_not(stamp: Callable[[float], float], says: dict[str, Any]) -> None:
    for wrong in (2, 3):
        life = Life()
        life.feel(2.0, stamped_s=stamped(lambda _: 0.0))
        # One more than wrong where the first standing stamp is still an advance.
        said = life.feel(wrong * PERIOD_S, stamped_s=stamp)
        if stamp(0.0) == stamp(1.0) == 502.0:
            said = life.feel(PERIOD_S, stamped_s=stamp)
        if wrong == 2:
            assert {each.status for each in said} == {"ok"}
        else:
            assert (said[-1].status, said[-1].reason) == ("missing", "clock")
            assert dict(said[-1].evidence) == says


def test_a_clock_that_was_set_anew_and_runs_well_comes_back_and_a_broken_one_does_not() -> None:
    life = Life()
    life.feel(2.0, stamped_s=stamped(lambda _: 0.0))
    assert life.feel(1.0, stamped_s=stamped(lambda _: 30.0))[2].reason == "clock"
    assert life.feel(2.0, stamped_s=stamped(lambda _: 30.0))[-1].status == "ok"
    said = life.feel(20.0, stamped_s=lambda _: 0.0)
    assert {each.status for each in said[3:]} == {"missing"}


def test_without_stamps_nothing_is_said_about_the_clock() -> None:
    life = Life()
    life.feel(2.0, stamped_s=stamped(lambda _: 0.0))
    assert {each.status for each in life.feel(5.0)} == {"ok"}


def test_evidence_of_each_transport_fault_is_what_passed_its_limit() -> None:
    life = Life()
    life.feel(2.0)
    life.state = step(life.state, [], life.now_s + 0.21, LIMITS)
    assert summary(life.state, life.now_s + 0.21).evidence == {"age_s": pytest.approx(0.21), "limit_s": 0.2}
    life.state = step(life.state, [], life.now_s + 1.5, LIMITS)
    assert summary(life.state, life.now_s + 1.5).evidence == {"age_s": pytest.approx(1.5), "limit_s": 1.0}
    life = Life()
    life.feel(2.0)
    said = life.feel(1.0, repeated=True)
    assert said[-1].reason == "frozen"
    assert dict(said[-1].evidence) == {"repeats": 7, "for_s": pytest.approx(0.5, abs=0.04), "limit_s": 0.5}
