"""When the loop decides: its instant within the period of the sensors, and that it gets there without haste."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mars_runtime.phase import Arrival, jump_s, leader, step_s

PERIOD_S = 1.0 / 15.0


def arrivals(
    now_s: float, phases_s: Sequence[float], periods_s: Sequence[float], jitter_s: float = 0.0
) -> list[Arrival]:
    """The newest sample of each sensor at `now_s`."""
    generator = np.random.default_rng(round(now_s * 1e6))
    found = []
    for index, (phase_s, period_s) in enumerate(zip(phases_s, periods_s, strict=True)):
        at_s = phase_s + (now_s + 1e-9 - phase_s) // period_s * period_s - generator.random() * jitter_s
        found.append(Arrival(name=f"s{index}", at_s=at_s, period_s=period_s))
    return found


def decided(
    phases_s: Sequence[float], periods_s: Sequence[float], *, ticks: int = 200, jitter_s: float = 0.0
) -> tuple[list[float], list[float]]:
    """When a loop that begins at 10 s decides, and how old its oldest sample is then.

    As `Pipeline._settle` it waits for samples that come within a quarter of a period.
    """
    due_s, followed = 10.0, None
    at_s, ages_s = [], []
    for _ in range(ticks):
        now_s = due_s
        while waits := [next_s for next_s in _next(now_s, phases_s, periods_s) if next_s < due_s + PERIOD_S / 4.0]:
            now_s = min(waits)
        seen = arrivals(now_s, phases_s, periods_s, jitter_s)
        at_s.append(due_s)
        ages_s.append(max(now_s - one.at_s for one in seen))
        chosen = leader(seen, PERIOD_S, followed)
        followed = None if chosen is None else chosen.name
        due_s += PERIOD_S + (0.0 if chosen is None else step_s(chosen, due_s, PERIOD_S))
    return at_s, ages_s


def _next(now_s: float, phases_s: Sequence[float], periods_s: Sequence[float]) -> list[float]:
    """When each sensor gives its next sample."""
    return [
        phase_s + ((now_s + 1e-9 - phase_s) // period_s + 1.0) * period_s
        for phase_s, period_s in zip(phases_s, periods_s, strict=True)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_oldest_sample_becomes_as_young_as_the_phases_allow(seed: int) -> None:
    phases_s = np.random.default_rng(seed).random(3) * PERIOD_S
    _, ages_s = decided(phases_s, [PERIOD_S] * 3)
    ordered = np.sort(phases_s)
    gaps_s = np.diff([*ordered, ordered[0] + PERIOD_S])
    # A tenth of a period is not worth following another sensor.
    assert np.mean(ages_s[-50:]) <= PERIOD_S - gaps_s.max() + 0.11 * PERIOD_S


def test_it_halves_the_mean_age_of_a_loop_that_stays_where_it_began() -> None:
    generator = np.random.default_rng(1)
    followed, stayed = [], []
    for _ in range(100):
        phases_s = generator.random(3) * PERIOD_S
        followed.append(np.mean(decided(phases_s, [PERIOD_S] * 3, ticks=60, jitter_s=0.002)[1][-20:]))
        stayed.append(max((10.0 - phase_s) % PERIOD_S for phase_s in phases_s))
    assert np.mean(followed) < 0.65 * np.mean(stayed)


def test_no_two_decisions_are_further_from_a_period_than_a_twentieth() -> None:
    at_s, _ = decided([0.01, 0.03, 0.05], [PERIOD_S] * 3, jitter_s=0.01)
    assert np.abs(np.diff(at_s) / PERIOD_S - 1.0).max() <= 0.0501


@pytest.mark.parametrize("drift", [-0.01, 0.01])
def test_a_sensor_whose_clock_runs_otherwise_is_followed(drift: float) -> None:
    at_s, ages_s = decided([0.02], [PERIOD_S * (1.0 + drift)], ticks=400)
    assert np.mean(np.diff(at_s)[-300:]) == pytest.approx(PERIOD_S * (1.0 + drift), rel=1e-3)
    late = np.minimum(ages_s[-300:], PERIOD_S - np.array(ages_s[-300:]))
    assert late.max() < 0.1 * PERIOD_S


def test_faster_sensors_with_a_whole_number_of_samples_per_decision_keep_a_phase() -> None:
    _, ages_s = decided([0.02, 0.0], [PERIOD_S / 2.0, PERIOD_S])
    assert np.mean(ages_s[-50:]) < 0.4 * PERIOD_S


@pytest.mark.parametrize("period_s", [PERIOD_S * 0.7, PERIOD_S * 2.0, PERIOD_S * 1.05])
def test_a_sensor_that_keeps_no_phase_to_the_loop_moves_nothing(period_s: float) -> None:
    assert leader([Arrival(name="s0", at_s=3.0, period_s=period_s)], PERIOD_S, None) is None
    at_s, _ = decided([0.02], [period_s])
    np.testing.assert_allclose(np.diff(at_s), PERIOD_S)


def test_without_a_usable_sensor_there_is_nothing_to_follow() -> None:
    assert leader([], PERIOD_S, "s0") is None


def test_the_loop_stays_with_its_sensor_until_another_one_is_clearly_better() -> None:
    def seen(gap: float) -> list[Arrival]:
        return [
            Arrival(name="a", at_s=0.0, period_s=PERIOD_S),
            Arrival(name="b", at_s=gap * PERIOD_S, period_s=PERIOD_S),
        ]

    # After b the pause is longest when b comes in the first half of a period after a.
    assert leader(seen(0.47), PERIOD_S, "a").name == "a"  # type: ignore[union-attr]
    assert leader(seen(0.47), PERIOD_S, None).name == "b"  # type: ignore[union-attr]
    assert leader(seen(0.40), PERIOD_S, "a").name == "b"  # type: ignore[union-attr]


def test_a_loop_that_begins_goes_to_the_next_sample_at_once() -> None:
    arrival = Arrival(name="s0", at_s=9.99, period_s=PERIOD_S)
    assert 0.0 <= jump_s(arrival, 10.0) < PERIOD_S
    assert step_s(arrival, 10.0 + jump_s(arrival, 10.0), PERIOD_S) == pytest.approx(0.0, abs=1e-9)
