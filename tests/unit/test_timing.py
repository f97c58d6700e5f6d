"""Timing two things in turn, and saying on what machine."""

from __future__ import annotations

import numpy as np
import pytest

from mars_runtime.machine import Machine, processor_of, this_machine
from mars_runtime.timing import interleaved, ratio_of


def test_rounds_are_a_b_b_a_and_then_b_a_a_b_over_every_pair() -> None:
    calls: list[str] = []
    pairs = {name: tuple(lambda s=side, n=name: calls.append(n + s) for side in "AB") for name in ("x", "y")}
    interleaved(pairs, 2)  # type: ignore[arg-type]
    timed = calls[len(calls) - 16 :]
    assert timed == ["xA", "xB", "xB", "xA", "yA", "yB", "yB", "yA", "xB", "xA", "xA", "xB", "yB", "yA", "yA", "yB"]
    # What is not timed reaches both sides before anything is.
    assert set(calls[: len(calls) - 16]) == {"xA", "xB", "yA", "yB"}


def test_every_call_is_booked_on_its_own_side() -> None:
    now = [0.0]

    def takes(seconds: float) -> None:
        now[0] += seconds

    times = interleaved({"x": (lambda: takes(1.0), lambda: takes(3.0))}, 5, clock=lambda: now[0])["x"]
    assert times.shape == (5, 2, 2)
    assert np.array_equal(times[:, 0], np.full((5, 2), 1.0))
    assert np.array_equal(times[:, 1], np.full((5, 2), 3.0))


def test_a_machine_whose_speed_changes_between_rounds_changes_no_ratio() -> None:
    speed = np.random.default_rng(1).uniform(1.0, 20.0, size=(40, 1, 1))
    times = speed * np.array([1e-3, 2e-3]).reshape(1, 2, 1) * np.ones((40, 2, 2))
    measured = ratio_of(times)
    assert (measured.ratio, measured.low, measured.high) == pytest.approx((2.0, 2.0, 2.0))
    assert measured.a_ms == pytest.approx(1e3 * np.median(times[:, 0]))
    assert measured.b_ms / measured.a_ms == measured.ratio
    assert measured.rounds == 40


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        noise = generator.lognormal(sigma=0.3, size=(20, 2, 2))
        found = ratio_of(noise * np.array([1.0, 1.5]).reshape(1, 2, 1))
        covered += found.low <= 1.5 <= found.high
    # Of 60 trials at 95 % fewer than 50 happen once in 10,000.
    assert covered >= 50


def test_a_single_round_bounds_nothing_but_itself_and_repeats() -> None:
    times = np.array([[[1.0, 1.0], [4.0, 4.0]]])
    assert (ratio_of(times).low, ratio_of(times).high) == (4.0, 4.0)
    noisy = np.random.default_rng(3).uniform(1.0, 2.0, size=(9, 2, 2))
    assert ratio_of(noisy) == ratio_of(noisy)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t: avx2\nmodel name\t: other\n", "Some CPU @ 2 GHz"),
        (
            "processor\t: 0\nBogoMIPS\t: 108.00\nCPU part\t: 0xd0b\n\nModel\t\t: Some Board Rev 1.0\n",
            "Some Board Rev 1.0",
        ),
        ("processor\t: 0\nmodel name\t: \nCPU part\t: 0xd0b\n", None),
        ("", None),
    ],
)
def test_the_processor_is_named_where_the_system_names_it(text: str, name: str | None) -> None:
    assert processor_of(text) == name


def test_a_machine_is_busy_above_half_a_process_per_core() -> None:
    assert not Machine(processor="x", cores=4, load=2.0).is_busy
    assert Machine(processor="x", cores=4, load=2.1).is_busy
    assert not Machine(processor="x", cores=4, load=None).is_busy
    assert str(Machine(processor="x", cores=1, load=None)) == "x, 1 core"
    here = this_machine()
    assert here.cores >= 1
    assert here.processor
