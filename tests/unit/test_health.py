"""The health state machine, without a clock: every threshold from both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_runtime import health
from mars_runtime.health import (
    Ended,
    Event,
    Health,
    Limits,
    ReadFailed,
    SampleSeen,
    Summary,
    step,
    summary,
    with_overrides,
)

PERIOD_S = 1 / 15
LIMITS = Limits(period_s=PERIOD_S)
Fact = Callable[[float], Event]


class Sensor:
    """A sensor's life on a made-up clock, stepped every 10 ms as a fast decision loop would."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.now_s = 1000.0
        self.state = Health(started_s=self.now_s)

    def feed(self, events: Iterable[Event] = ()) -> Summary:
        self.state = step(self.state, list(events), self.now_s, self.limits)
        return summary(self.state, self.now_s)

    def run(
        self, seconds: float, fact: Fact | None = None, period_s: float = PERIOD_S
    ) -> list[tuple[float, str | None]]:
        """Every (seconds since the start of this run, reason) at which the reason changed."""
        begin_s, next_s, changes = self.now_s, self.now_s + period_s, []
        before = self.state.reason
        while self.now_s < begin_s + seconds - 1e-9:
            self.now_s += 0.01
            events = []
            if fact is not None and self.now_s >= next_s - 1e-9:
                events.append(fact(next_s))
                next_s += period_s
            self.feed(events)
            if self.state.reason != before:
                before = self.state.reason
                changes.append((round(self.now_s - begin_s, 2), before))
        return changes


def good(at_s: float) -> Event:
    return SampleSeen(at_s=at_s)


def repeated(at_s: float) -> Event:
    return SampleSeen(at_s=at_s, repeated=True)


def gone(at_s: float) -> Event:
    return ReadFailed(at_s=at_s, gone=True)


@pytest.fixture
def well() -> Sensor:
    sensor = Sensor()
    assert [reason for _, reason in sensor.run(3.0, good)] == [None]
    return sensor


def test_the_first_good_sample_makes_a_sensor_usable() -> None:
    sensor = Sensor()
    assert sensor.feed() == Summary(status="missing", reason="starting", age_s=None)
    assert sensor.feed([good(sensor.now_s)]) == Summary(status="ok", reason=None, age_s=0.0)


@pytest.mark.parametrize("grace_s", [15.0, 2.0])
def test_a_sensor_that_never_comes_is_absent_after_its_grace_and_may_still_come(grace_s: float) -> None:
    sensor = Sensor(Limits(period_s=PERIOD_S, start_grace_s=grace_s))
    assert sensor.run(20.0, gone) == [(pytest.approx(grace_s, abs=0.011), "absent")]
    assert sensor.feed([good(sensor.now_s)]).status == "ok"


def test_a_sensor_that_fails_says_what_its_driver_said_last_until_a_sample_comes() -> None:
    sensor = Sensor()
    denied = "permission denied on /dev/video0: add the user to group video"
    assert sensor.feed([ReadFailed(at_s=sensor.now_s, message="/dev/video0: busy")]).error == "/dev/video0: busy"
    for _ in range(20):
        found = sensor.feed([ReadFailed(at_s=sensor.now_s, message=denied)])
        sensor.now_s += 1.0
    assert (found.reason, found.error) == ("absent", denied)
    assert sensor.feed([good(sensor.now_s)]).error == ""


def test_a_sensor_that_may_be_used_shows_no_error_of_a_single_failed_read(well: Sensor) -> None:
    found = well.feed([ReadFailed(at_s=well.now_s, message="a corrupt frame")])
    assert (found.status, found.error) == ("ok", "")


def test_silence_is_stale_then_lost_at_the_limits(well: Sensor) -> None:
    well.run(1e-3)
    last_s = well.state.sample_s
    assert last_s is not None
    start_s = well.now_s
    changes = well.run(2.0)
    ages = [(round(start_s + at - last_s, 2), reason) for at, reason in changes]
    assert ages == [(pytest.approx(0.2, abs=0.011), "stale"), (pytest.approx(1.0, abs=0.011), "lost")]


@pytest.mark.parametrize(("period_s", "stale_s", "lost_s"), [(1 / 30, 0.2, 1.0), (0.1, 0.3, 1.0), (0.5, 1.5, 5.0)])
def test_slow_sensors_have_longer_limits(period_s: float, stale_s: float, lost_s: float) -> None:
    limits = Limits(period_s=period_s)
    assert limits.stale_after_s == pytest.approx(stale_s)
    assert limits.lost_after_s == pytest.approx(lost_s)


def test_recovery_takes_ten_good_samples_and_a_second(well: Sensor) -> None:
    well.run(1.5)
    changes = well.run(3.0, good)
    # 15 Hz: the tenth sample comes after 0.67 s, so the second decides.
    assert [reason for _, reason in changes] == ["recovering", None]
    assert changes[1][0] == pytest.approx(PERIOD_S + 1.0, abs=0.02)


def test_at_a_low_rate_recovery_waits_for_the_ten_samples() -> None:
    sensor = Sensor(Limits(period_s=0.5))
    sensor.run(3.0, good, 0.5)
    sensor.run(2.0)
    changes = sensor.run(8.0, good, 0.5)
    assert changes[-1] == (pytest.approx(5.0, abs=0.02), None)


def test_an_interrupted_recovery_starts_again(well: Sensor) -> None:
    well.run(1.5)
    assert well.run(0.8, good)[-1][1] == "recovering"
    well.run(0.3)
    assert well.state.reason == "stale"
    changes = well.run(2.0, good)
    assert changes[-1] == (pytest.approx(PERIOD_S + 1.0, abs=0.02), None)


def test_a_vanished_device_is_masked_at_once_and_other_errors_after_three_in_a_row(well: Sensor) -> None:
    assert well.feed([gone(well.now_s)]).reason == "disconnected"
    other = Sensor()
    other.run(3.0, good)
    for reason in (None, None, "disconnected"):
        assert other.feed([ReadFailed(at_s=other.now_s)]).reason == reason


def test_a_good_sample_between_errors_starts_the_count_again(well: Sensor) -> None:
    for _ in range(10):
        events = [ReadFailed(at_s=well.now_s), ReadFailed(at_s=well.now_s), good(well.now_s)]
        assert well.feed(events).status == "ok"


def test_a_repeated_picture_is_frozen_after_five_frames_and_half_a_second(well: Sensor) -> None:
    # The first repeat comes one period in; it shows that time stood still since the sample before.
    changes = well.run(2.0, repeated)
    assert changes == [(pytest.approx(0.5, abs=0.03), "frozen")]
    fast = Sensor(Limits(period_s=0.01))
    fast.run(2.0, good, 0.01)
    assert fast.run(2.0, repeated, 0.01) == [(pytest.approx(0.5, abs=0.03), "frozen")]
    slow = Sensor(Limits(period_s=0.5))
    slow.run(5.0, good, 0.5)
    assert slow.run(5.0, repeated, 0.5) == [(pytest.approx(2.5, abs=0.03), "frozen")]


def test_three_distinct_frames_end_frozen(well: Sensor) -> None:
    well.run(2.0, repeated)
    assert well.state.reason == "frozen"
    for reason in ("recovering", "recovering", None):
        well.now_s += PERIOD_S
        assert well.feed([good(well.now_s)]).reason == reason


def test_a_few_repeats_are_no_fault(well: Sensor) -> None:
    pattern = [repeated, repeated, repeated, repeated, good]
    count = [0]

    def mostly_repeated(at_s: float) -> Event:
        count[0] += 1
        return pattern[count[0] % len(pattern)](at_s)

    assert well.run(60.0, mostly_repeated) == []


def test_frozen_then_silent_needs_the_stricter_recovery(well: Sensor) -> None:
    well.run(2.0, repeated)
    well.run(0.5)
    assert well.state.reason == "stale"
    assert well.run(3.0, good)[-1] == (pytest.approx(PERIOD_S + 1.0, abs=0.02), None)


def test_silent_then_frozen_still_needs_the_stricter_recovery(well: Sensor) -> None:
    well.run(1.5)
    well.run(1.5, repeated)
    assert well.state.reason == "frozen"
    assert well.run(3.0, good)[-1] == (pytest.approx(PERIOD_S + 1.0, abs=0.02), None)


def test_unusable_samples_mask_at_once(well: Sensor) -> None:
    assert well.feed([SampleSeen(at_s=well.now_s, usable=False)]).reason == "unusable"
    assert well.run(3.0, good)[-1][1] is None


def test_a_gap_between_two_decisions_is_noticed(well: Sensor) -> None:
    last_s = well.state.sample_s
    assert last_s is not None
    well.now_s = last_s + 0.5
    assert well.feed([good(well.now_s)]).reason == "recovering"


def test_flapping_holds_a_sensor_missing_for_thirty_seconds(well: Sensor) -> None:
    changes: list[tuple[float, str | None]] = []
    begin_s = well.now_s
    while well.state.reason != "flapping":
        for seconds, fact in ((0.4, None), (1.5, good)):
            offset_s = well.now_s - begin_s
            changes += [(offset_s + at, reason) for at, reason in well.run(seconds, fact)]
        assert well.now_s - begin_s < 30.0
    # Down and up twice, down a third time; coming up would be the sixth change and is refused.
    assert [reason is None for _, reason in changes if reason in (None, "stale")] == [False, True, False, True, False]
    held_s = well.state.held_until_s
    back = well.run(40.0, good)
    assert back[-1][1] is None
    assert well.now_s - 40.0 + back[-1][0] >= held_s


def test_five_changes_in_a_minute_are_tolerated(well: Sensor) -> None:
    for _ in range(30):
        well.run(0.4)
        assert well.run(30.0, good)[-1][1] is None


def test_the_end_of_a_file_is_no_fault_while_its_last_sample_is_young(well: Sensor) -> None:
    assert well.feed([Ended(at_s=well.now_s)]).status == "ok"
    assert well.run(2.0) == [(pytest.approx(0.2, abs=0.08), "ended")]


@pytest.mark.parametrize(
    ("fault", "share", "limit"),
    [("dark", "dark", 0.98), ("saturated", "saturated", 0.5), ("depth-invalid", "invalid_depth", 0.901)],
)
def test_content_faults_degrade_after_their_dwell_and_leave_after_it(fault: str, share: str, limit: float) -> None:
    def bad(at_s: float) -> Event:
        return SampleSeen(at_s=at_s, **{share: limit})  # type: ignore[arg-type]

    def nearly(at_s: float) -> Event:
        return SampleSeen(at_s=at_s, **{share: limit - 0.01})  # type: ignore[arg-type]

    sensor = Sensor()
    assert sensor.run(5.0, nearly)[-1][1] is None
    assert summary(sensor.state, sensor.now_s).status == "ok"
    sensor.run(0.9, bad)
    assert summary(sensor.state, sensor.now_s).status == "ok"
    sensor.run(0.3, bad)
    assert summary(sensor.state, sensor.now_s).status == "degraded"
    assert summary(sensor.state, sensor.now_s).reason == fault
    assert sensor.state.present
    sensor.run(0.9, good)
    assert summary(sensor.state, sensor.now_s).status == "degraded"
    sensor.run(0.3, good)
    assert summary(sensor.state, sensor.now_s).status == "ok"


def test_a_content_fault_masks_only_where_the_model_says_so() -> None:
    def dark(at_s: float) -> Event:
        return SampleSeen(at_s=at_s, dark=1.0)

    sensor = Sensor(Limits(period_s=PERIOD_S, masking=frozenset(["dark"])))
    sensor.run(1.0, good)
    assert [reason for _, reason in sensor.run(3.0, dark)] == ["dark"]
    assert sensor.run(3.0, good)[-1][1] is None


def test_a_low_rate_degrades_and_a_normal_one_ends_it() -> None:
    sensor = Sensor(Limits(period_s=0.05))
    sensor.run(3.0, good, 0.05)
    sensor.run(11.0, good, 0.1)
    found = summary(sensor.state, sensor.now_s)
    assert (found.status, found.reason) == ("degraded", "rate-low")
    assert found.evidence == {"rate_share": pytest.approx(0.55, abs=0.06), "limit": 0.6}
    sensor.run(11.0, good, 0.055)
    assert summary(sensor.state, sensor.now_s).status == "ok"


def test_a_dropout_is_not_taken_for_a_low_rate(well: Sensor) -> None:
    well.run(4.0)
    well.run(2.0, good)
    assert summary(well.state, well.now_s).status == "ok"


@pytest.mark.parametrize("seed", range(5))
def test_a_jittering_camera_gives_no_false_alarm(seed: int) -> None:
    generator = np.random.default_rng(seed)
    arrivals_s = np.arange(20_000) * PERIOD_S + generator.uniform(0.0, 0.6 * PERIOD_S, 20_000)
    state = Health(started_s=0.0)
    for at_s in arrivals_s:
        state = step(state, [SampleSeen(at_s=float(at_s))], float(at_s) + 0.005, LIMITS)
        assert state.present


def any_event(generator: np.random.Generator, at_s: float) -> Event:
    """Mostly good samples, in runs with every kind of fault."""
    if generator.random() < 0.05:
        return ReadFailed(at_s=at_s, gone=generator.random() < 0.3)
    return SampleSeen(
        at_s=at_s,
        stamped_s=at_s - 0.02 if generator.random() < 0.9 else 0.0,
        repeated=generator.random() < 0.3,
        usable=generator.random() < 0.97,
        dark=float(generator.random() < 0.5),
        zeros_s=float(generator.random() < 0.1),
    )


@pytest.mark.parametrize("seed", range(10))
def test_the_short_way_of_a_well_sensor_gives_the_states_of_the_whole_table(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(seed)
    limits = Limits(period_s=PERIOD_S, start_grace_s=1.0, dark_s=0.1, masking=frozenset({"dark"}), flap_changes=50)
    quick = whole = Health(started_s=0.0)
    now_s, shortened = 0.0, 0
    for _ in range(600):
        calm = generator.random() < 0.6
        now_s += float(generator.choice([0.03, 0.07, 0.3, 1.5], p=[0.4, 0.5, 0.07, 0.03]))
        event = SampleSeen(at_s=now_s - 0.01, stamped_s=now_s - 0.03) if calm else any_event(generator, now_s - 0.01)
        shortened += health._is_well(quick, now_s, limits)
        quick = step(quick, [event], now_s, limits)
        with monkeypatch.context() as patch:
            patch.setattr(health, "_is_well", lambda *_: False)
            whole = step(whole, [event], now_s, limits)
        assert quick == whole
    assert shortened > 50


def test_a_step_does_not_change_the_state_it_was_given(well: Sensor) -> None:
    before = well.state
    copy = Health(**{name: getattr(before, name) for name in before.__dataclass_fields__})
    step(before, [gone(well.now_s)], well.now_s + 5.0, LIMITS)
    assert before == copy


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"stale": 1}, "here: unknown key 'stale'; known keys: start_grace_s, stale_s, lost_s, "),
        ({"stale_s": "1"}, "here: stale_s is '1', expected a number of at least 0"),
        ({"good_samples": -1}, "here: good_samples is -1, expected a whole number of at least 0"),
        ({"stale_s": float("nan")}, "here: stale_s is nan, expected a number of at least 0"),
    ],
)
def test_a_wrong_health_setting_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        with_overrides(LIMITS, table, "here")
    assert str(error.value).startswith(message)


def test_a_health_setting_moves_its_limit() -> None:
    sensor = Sensor(with_overrides(LIMITS, {"stale_s": 0.5}, "here"))
    sensor.run(1.0, good)
    assert sensor.run(0.9)[0] == (pytest.approx(0.5, abs=0.08), "stale")
