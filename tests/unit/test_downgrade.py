"""The downgrade alarm: whose loss is one, when it is said, how long it holds decisions."""

from __future__ import annotations

from typing import Any

from mars_edge.manifest import Policy
from mars_edge.metrics import Rate
from mars_runtime.downgrade import Watch, critical_sensors, objection, step
from tests.fake_engine import manifest, point

NAMES = ("rgb", "depth", "ir")
OK: dict[str, str | None] = dict.fromkeys(NAMES)


def rate(errors: int, n: int = 1000) -> Rate:
    return Rate(value=errors / n, low=0.0, high=min(1.0, errors / n + 0.05), errors=errors, n=n)


def test_sensors_that_are_required_are_critical_in_fusion_order() -> None:
    assert critical_sensors(manifest(), Policy(require=("ir|depth",))) == ("depth", "ir")
    assert critical_sensors(manifest(), Policy()) == ()


def test_a_sensor_is_critical_if_covering_it_lets_more_attacks_in_and_not_if_it_only_denies() -> None:
    def measured(errors: int, **changes: Any) -> Any:
        return point(apcer={"print": rate(errors)}, **changes)

    points = {
        "rgb+depth+ir": measured(10),
        "rgb+depth": measured(80),  # without ir more prints pass
        "rgb+ir": measured(5),  # without depth fewer do
        "depth+ir": measured(500, certified=False),  # without rgb nothing is decided
    }
    assert critical_sensors(manifest(operating_points=points), Policy()) == ("ir",)


def test_plain_classification_has_no_attacker() -> None:
    plain = manifest(positive_label=None, operating_points={"rgb+depth+ir": point(apcer={"a": rate(0)})})
    assert critical_sensors(plain, Policy()) == ()


def run(*steps: tuple[float, str, dict[str, str | None]], latch_s: float = 5.0) -> list[Watch]:
    """The watch after each (time, present, reasons) with depth and ir critical."""
    watch, found = Watch(), []
    for now_s, present, reasons in steps:
        watch = step(watch, ("depth", "ir"), present.split("+"), {**OK, **reasons}, now_s, latch_s)
        found.append(watch)
    return found


def test_only_a_sensor_that_was_used_can_be_lost_and_only_a_critical_one() -> None:
    first, second, third = run(
        (0.0, "rgb+depth", {"ir": "starting"}),
        (1.0, "rgb+depth", {"ir": "absent"}),
        (2.0, "depth", {"rgb": "stale", "ir": "absent"}),
    )
    assert first.missing == second.missing == third.missing == ()
    assert third.held_until_s is None


def test_the_alarm_stays_until_the_sensor_is_back_and_the_latch_for_its_time() -> None:
    everything = "rgb+depth+ir"
    before, lost, still, back, later = run(
        (0.0, everything, {}),
        (1.0, "rgb+ir", {"depth": "stale"}),
        (4.0, "rgb+ir", {"depth": "lost"}),
        (5.0, everything, {}),
        (6.0, everything, {}),
    )
    assert [watch.missing for watch in (before, lost, still, back, later)] == [(), ("depth",), ("depth",), (), ()]
    assert objection(before, 5.0) is None
    assert objection(lost, 5.0) == objection(back, 5.0) == "depth went missing: no decision for 5 s"
    assert lost.held_until_s == still.held_until_s == back.held_until_s == 6.0
    assert objection(later, 5.0) is None


def test_every_new_loss_holds_anew_and_names_both() -> None:
    found = run(
        (0.0, "rgb+depth+ir", {}),
        (1.0, "rgb+ir", {"depth": "stale"}),
        (3.0, "rgb", {"depth": "lost", "ir": "stale"}),
    )
    assert found[-1].held_until_s == 8.0
    assert objection(found[-1], 5.0) == "depth, ir went missing: no decision for 5 s"


def test_a_skewed_stamp_and_a_file_that_ends_are_no_loss() -> None:
    for reason in ("skew", "ended"):
        assert run((0.0, "rgb+depth+ir", {}), (1.0, "rgb+ir", {"depth": reason}))[-1] == Watch(
            used=frozenset({"depth", "ir"})
        )


def test_without_a_latch_the_alarm_is_said_and_nothing_is_held() -> None:
    lost = run((0.0, "rgb+depth+ir", {}), (1.0, "rgb+ir", {"depth": "frozen"}), latch_s=0.0)[-1]
    assert lost.missing == ("depth",)
    assert objection(lost, 0.0) is None
