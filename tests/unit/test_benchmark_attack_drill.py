"""The attack drill: faults reach the loop as a device's would, and a bound is exceeded only beyond chance."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from mars_edge.faults import Fault
from mars_runtime.engines import open_engine


@pytest.fixture(scope="module")
def drill() -> Any:
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    module = importlib.import_module("attack_drill")
    sys.path.remove(folder)
    return module


@pytest.fixture(scope="module")
def engine() -> Any:
    return open_engine("face_antispoof.pte", threads=1)


@pytest.fixture(scope="module")
def frames(drill: Any) -> Any:
    return drill.frames_of("screen_replay", 0, 0)


@pytest.mark.parametrize(("kind", "within"), [("unplug", 0), ("stuck", 8)])
def test_a_transport_fault_takes_its_sensor_from_the_subset_in_time_and_no_other(
    drill: Any, engine: Any, frames: Any, kind: str, within: int
) -> None:
    decisions = drill.play(engine, frames, Fault(sensor="depth", kind=kind, start_s=drill.BEFORE_S), 0)
    subsets = [decision.subset for decision in decisions]
    assert set(subsets[within:]) == {"rgb+ir"}
    assert set(subsets[:within]) <= {"rgb+depth+ir", "rgb+ir"}


def test_a_presentation_is_the_same_scene_in_new_exposures(frames: Any) -> None:
    for shots in frames.values():
        assert len(shots) == 91
        assert (shots[0] != shots[1]).any()
        assert abs(shots[0].astype(float).mean() - shots[-1].astype(float).mean()) < 0.05 * shots[0].max()


@pytest.mark.parametrize(("accepted", "bad"), [(0, False), (2, False), (4, True), (40, True)])
def test_a_cell_is_beyond_its_bound_only_beyond_chance(drill: Any, engine: Any, accepted: int, bad: bool) -> None:
    cell = drill.Cell(
        fault="cover",
        sensor="depth",
        species="flat_print",
        presentations=40,
        accepted=accepted,
        subsets={"rgb+depth+ir": 40},
    )
    assert drill.certified_bound(engine.manifest, cell) == pytest.approx(0.0122, abs=1e-3)
    assert drill.beyond(engine.manifest, cell) is bad


def test_one_acceptance_on_a_subset_that_may_not_decide_is_beyond_any_bound(drill: Any, engine: Any) -> None:
    cell = drill.Cell(fault="unplug", sensor="ir", species="flat_print", presentations=40, subsets={"rgb+depth": 40})
    assert drill.certified_bound(engine.manifest, cell) == 0.0 and not drill.beyond(engine.manifest, cell)
    cell.accepted = 1
    assert drill.beyond(engine.manifest, cell)


def test_what_is_accepted_before_a_fault_is_known_is_said_though_no_bound_judges_it(drill: Any) -> None:
    cells = [
        drill.Cell(fault="cover", sensor="depth", species="flat_print", gap=600, gap_accepted=accepted)
        for accepted in (3, 39)
    ]
    unplug = drill.Cell(fault="unplug", sensor="ir", species="flat_print")
    assert drill.in_the_gap([*cells, unplug]) == (
        "before a fault was known, 42 of 1200 decisions accept, at worst 39 of 600 (cover depth during flat_print)"
    )
    assert drill.in_the_gap([unplug]) == "before a fault was known, none of 0 decisions accepts"
