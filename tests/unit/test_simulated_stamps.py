"""The stamps of the simulated rig: the instant that is shown, so that a sensor that shows another is told."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from numpy.typing import NDArray

from mars_edge.faults import SKEW_S, Fault, parse_fault
from mars_edge.rig import modalities
from mars_runtime.capture import Doorbell
from mars_runtime.decision import Decision
from mars_runtime.facts import FactFinder
from mars_runtime.grading.sensor import Clock, StepFeed
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.sensors.faulty import FaultyDriver
from mars_runtime.sensors.simulated import SimulatedSensor, World
from tests.fake_engine import FakeEngine, manifest

RATE_HZ = 30.0


def sleep(seconds: float) -> None:
    raise AssertionError(f"slept for {seconds} s although its frame was due")


def lived(fault: Fault, seconds: float) -> list[tuple[float, Decision]]:
    """Decisions at the rig's rate, a hundredth of a second after the cameras of the rig were read."""
    clock, kinds = Clock(), modalities()
    clock.now_s = 1000.0
    world = World(0, RATE_HZ, clock=clock)
    engine = FakeEngine(manifest(kinds))
    drivers = {
        kind.name: FaultyDriver(
            SimulatedSensor(world, kind.name, clock=clock, sleep=sleep),
            [fault] if fault.sensor == kind.name else [],
            stream_s=lambda: clock.now_s - 1000.0,
            seed=0,
        )
        for kind in kinds
    }
    feeds = {kind.name: StepFeed(drivers[kind.name], FactFinder.of(kind), clock) for kind in kinds}
    settings = Settings(policy=engine.manifest.policy, rate_hz=RATE_HZ, gather_s=0.0)
    pipeline = Pipeline(engine, feeds, settings, doorbell=Doorbell(), clock=clock, utc=lambda: 0.0)
    for driver in drivers.values():
        driver.open()
    pipeline.start()
    decisions = []
    for step in range(round(seconds * RATE_HZ)):
        clock.now_s = 1000.0 + step / RATE_HZ + 1e-6
        for feed in feeds.values():
            feed.step()
        clock.now_s += 0.01
        decisions.append((clock.now_s - 1000.0, pipeline.decide()))
    return decisions


def test_a_skewed_camera_of_the_rig_is_masked_from_its_first_frame_on_and_no_other_is() -> None:
    decisions = lived(parse_fault("depth=skew@1s+3s", ["rgb", "depth", "ir"]), 5.5)
    during = [said.modalities for at_s, said in decisions if 1.0 + 1e-3 <= at_s < 4.0]
    assert {each["depth"].status for each in during} == {"missing"}
    assert during[0]["depth"].reason == "skew"
    evidence = during[0]["depth"].evidence
    assert evidence["limit_s"] == pytest.approx(max(0.05, 1.5 / RATE_HZ))
    assert evidence["limit_s"] < evidence["skew_s"] <= SKEW_S + 1 / RATE_HZ + 1e-6
    # Stamps that went back are a clock that was set, too; once that is over, the moment shown is still another.
    reasons = [reason for reason, _ in groupby(each["depth"].reason for each in during)]
    assert reasons == ["skew", "clock", "recovering", "skew"]
    others = [said.modalities[name] for at_s, said in decisions if at_s >= 0.5 for name in ("rgb", "ir")]
    assert {each.status for each in others} == {"ok"}
    assert decisions[-1][1].modalities["depth"].status == "ok"


def test_a_frame_in_time_is_stamped_with_its_instant_and_a_late_one_as_fifty_milliseconds_old() -> None:
    now_s, takes_s = [500.0], [0.0]

    class Busy(World):
        def render(self, modality: str, index: int) -> NDArray[Any]:
            now_s[0] += takes_s[0]
            return super().render(modality, index)

    world = Busy(0, 15.0, clock=lambda: now_s[0])
    driver = SimulatedSensor(world, "depth", clock=lambda: now_s[0], sleep=lambda seconds: None)
    driver.open()
    for takes_s[0], age_s in ((0.02, 0.02), (0.3, 0.05)):
        now_s[0] = world.instant_s(world.index_now() + 1) + 1e-6
        frame = driver.read(0.1)
        assert frame is not None and frame.captured_s is not None
        assert now_s[0] - frame.captured_s == pytest.approx(age_s, abs=1e-5)
