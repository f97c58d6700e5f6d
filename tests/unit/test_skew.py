"""Which sensor shows another moment than the others, by the devices' own stamps."""

from __future__ import annotations

import pytest

from mars_runtime.limits import Limits
from mars_runtime.skew import Stamp, skewed


def stamps(period_s: dict[str, float] | None = None, **stamped_s: float) -> dict[str, Stamp]:
    """Stamps of sensors at 15 Hz, or as `period_s` says."""
    periods = period_s or {}
    return {
        name: Stamp(stamped_s=at_s, limits=Limits(period_s=periods.get(name, 1.0 / 15.0)))
        for name, at_s in stamped_s.items()
    }


@pytest.mark.parametrize("odd", ["rgb", "depth", "ir"])
@pytest.mark.parametrize("off_s", [-0.2, 0.2])
def test_the_one_of_three_that_is_off_is_the_one_that_differs(odd: str, off_s: float) -> None:
    at = {"rgb": 5.0, "depth": 5.0, "ir": 5.0}
    at[odd] += off_s
    assert set(skewed(stamps(**at))) == {odd}


def test_of_two_the_older_differs_whichever_comes_first() -> None:
    assert set(skewed(stamps(rgb=4.8, depth=5.0))) == {"rgb"}
    assert set(skewed(stamps(rgb=5.0, depth=4.8))) == {"depth"}


def test_a_slow_sensor_is_judged_by_its_own_rate_and_judges_nobody() -> None:
    periods = {"rgb": 1.0 / 30.0, "thermal": 0.2}
    assert skewed(stamps(periods, thermal=4.71, rgb=5.0)) == {}
    assert set(skewed(stamps(periods, thermal=4.69, rgb=5.0))) == {"thermal"}


def test_a_device_that_says_29_97_hz_is_as_fast_as_one_that_says_30() -> None:
    periods = {"rgb": 1.0 / 30.0, "depth": 1.0 / 29.97, "ir": 1.0 / 29.97}
    assert set(skewed(stamps(periods, rgb=4.8, depth=5.0, ir=5.0))) == {"rgb"}


def test_one_sensor_alone_is_never_skewed() -> None:
    assert skewed(stamps(rgb=1.0)) == {}
    assert skewed({}) == {}
