"""A stream as an application sees it: entered, iterated, broken on purpose, closed."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from mars_edge.errors import SensorError, UsageError
from mars_edge.faults import Fault
from mars_edge.manifest import Policy
from mars_edge.modality import Modality
from mars_runtime.decision import Decision
from mars_runtime.pipeline import Settings
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.pace import Pacer
from mars_runtime.sinks import _sensor_line
from mars_runtime.stream import Stream
from tests.fake_engine import FakeEngine, manifest

RATE_HZ = 100.0
QUICK_GRACE = {"right": {"start_grace_s": 0.05}}
SMALL = tuple(
    Modality(name=name, kind="image", size=(8, 8), dtype="uint8", range=(0, 255), rate_hz=RATE_HZ)
    for name in ("left", "right")
)


class Noise:
    """A driver of frames that all differ."""

    def __init__(self, seed: int = 0) -> None:
        self.traits = Traits(description="noise", rate_hz=RATE_HZ)
        self.opened = False
        self._generator = np.random.default_rng(seed)
        self._pace = Pacer(RATE_HZ)

    def open(self) -> None:
        self.opened = True

    def read(self, timeout_s: float) -> Frame | None:
        if not self._pace.wait(timeout_s):
            return None
        return Frame(data=self._generator.integers(30, 200, (8, 8), np.uint8))

    def close(self) -> None:
        self.opened = False


def stream(engine: FakeEngine | None = None, **options: Any) -> Stream:
    engine = engine or FakeEngine(manifest(SMALL))
    drivers = options.pop("drivers", {m.name: Noise(i) for i, m in enumerate(SMALL)})
    return Stream(engine, [], Settings(policy=Policy(), **options.pop("settings", {})), drivers=drivers, **options)


def test_own_drivers_feed_a_stream_and_are_closed_with_it() -> None:
    drivers = {"left": Noise(0), "right": Noise(1)}
    threads = threading.active_count()
    with stream(drivers=drivers) as running:
        decisions = list(itertools.islice(running, 5))
    assert [decision.seq for decision in decisions] == [0, 1, 2, 3, 4]
    assert decisions[-1].subset == "left+right"
    assert not any(driver.opened for driver in drivers.values())
    assert threading.active_count() == threads


def test_a_stream_that_was_not_entered_says_how() -> None:
    with pytest.raises(UsageError) as caught:
        next(iter(stream()))
    assert str(caught.value) == "the stream's sensors are not started: use it as `with ... as stream` or `async with`"


def test_an_async_with_runs_the_sensors_and_closes_everything_while_the_event_loop_goes_on() -> None:
    drivers, closed, turns = {"left": Noise(0), "right": Noise(1)}, threading.Event(), 0

    def close() -> None:
        time.sleep(0.2)
        closed.set()

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    async def decide() -> int:
        async with stream(drivers=drivers, on_close=close) as running:
            made = [decision.seq async for decision in _first(running, 3)]
            assert made == [0, 1, 2]
            other, before = asyncio.create_task(turn()), turns
        assert closed.is_set()
        other.cancel()
        return turns - before

    assert asyncio.run(decide()) >= 5
    assert not any(driver.opened for driver in drivers.values())


async def _first(running: Stream, count: int) -> AsyncIterator[Decision]:
    async for decision in running:
        yield decision
        if decision.seq == count - 1:
            return


def test_an_async_with_closes_when_its_body_raises() -> None:
    drivers = {"left": Noise(0), "right": Noise(1)}

    async def fail() -> None:
        async with stream(drivers=drivers):
            raise RuntimeError("the application's own")

    with pytest.raises(RuntimeError, match="the application's own"):
        asyncio.run(fail())
    assert not any(driver.opened for driver in drivers.values())


class Denied(Noise):
    """A driver that may not open its device."""

    def open(self) -> None:
        raise SensorError("permission denied on /dev/video0: add the user to group video")


def test_every_decision_without_a_sensor_that_cannot_be_opened_says_why() -> None:
    with stream(drivers={"left": Noise(), "right": Denied()}, settings={"health": QUICK_GRACE}) as running:
        made = next(decision for decision in running if decision.modalities["right"].reason == "absent")
    found, line = made.modalities["right"], made.to_dict()
    assert found.error == "permission denied on /dev/video0: add the user to group video"
    assert line["modalities"]["right"]["error"] == found.error
    assert "error" not in line["modalities"]["left"]
    assert f"absent ({found.error})" in _sensor_line("right", found)


def test_an_unknown_driver_is_refused_like_an_unknown_source() -> None:
    with pytest.raises(UsageError) as caught:
        stream(drivers={"thermal": Noise()})
    assert str(caught.value) == "unknown sensor 'thermal'; this model has: left, right"


def test_the_newest_sample_of_a_sensor_is_there_whether_it_was_used_or_not() -> None:
    with stream() as running:
        assert running.latest("left") is None
        next(iter(running))
        sample = running.latest("left")
        assert sample is not None
        assert sample.frame.data.shape == (8, 8)
        with pytest.raises(UsageError) as caught:
            running.latest("thermal")
    assert str(caught.value) == "no sensor 'thermal' in this stream; sensors: left, right"


def until(running: Any, subset: str, limit_s: float = 5.0) -> None:
    """Consume decisions until one is made on `subset`."""
    end_s = time.monotonic() + limit_s
    for decision in running:
        if decision.subset == subset:
            return
        assert time.monotonic() < end_s, f"no decision on {subset} in {limit_s} s"


def test_a_fault_can_be_injected_and_cleared_while_the_stream_runs() -> None:
    quick = {name: {"good_samples": 3, "good_s": 0.05} for name in ("left", "right")}
    with stream(live_faults=True, settings={"health": quick}) as running:
        decisions = iter(running)
        until(decisions, "left+right")
        running.inject(Fault(sensor="right", kind="off"))
        until(decisions, "left")
        running.clear_faults()
        until(decisions, "left+right")


def test_a_stream_without_live_faults_refuses_one() -> None:
    with stream() as running, pytest.raises(UsageError) as caught:
        running.inject(Fault(sensor="left", kind="off"))
    assert str(caught.value) == (
        "left=off@0s: this stream takes no faults while it runs; open it with live_faults=True"
    )


def test_an_event_loop_goes_on_between_decisions_and_the_stream_ends_when_its_task_is_cancelled() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def decide(running: Stream) -> list[int]:
        counting = asyncio.create_task(count())
        seen = []
        async for decision in running:
            seen.append(decision.seq)
            if len(seen) == 5:
                break
        counting.cancel()
        return seen

    async def cancelled(running: Stream) -> None:
        async def forever() -> None:
            async for _ in running:
                pass

        task = asyncio.create_task(forever())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    threads = threading.active_count()
    with stream() as running:
        assert asyncio.run(decide(running)) == [0, 1, 2, 3, 4]
    assert turns > 5
    with stream() as running:
        asyncio.run(cancelled(running))
    assert threading.active_count() == threads


def test_closing_ends_a_stream_that_another_thread_reads_and_closes_once() -> None:
    closed: list[bool] = []
    running = stream(on_close=lambda: closed.append(True))
    seen: list[int] = []
    with running:
        reader = threading.Thread(target=lambda: seen.extend(d.seq for d in running))
        reader.start()
        time.sleep(0.1)
        running.stop()
        reader.join(2.0)
        assert not reader.is_alive()
    running.close()
    assert seen
    assert closed == [True]


def test_a_segmentation_streams_maps_whose_shares_are_counted() -> None:
    model = manifest(SMALL, task="segmentation", labels=("sky", "sea", "sand"), positive_label=None)
    engine = FakeEngine(model)
    logits = np.zeros((3, 8, 8), np.float32)
    logits[2, :2] = 1.0
    engine.logits = logits
    with stream(engine) as running:
        decision = next(iter(running))
    line = decision.to_dict()
    assert (line["verdict"], line["label"], line["score"]) == ("map", None, None)
    assert line["shares"] == {"sky": 0.75, "sea": 0.0, "sand": 0.25}
    assert decision.label_map is not None
    assert decision.label_map.dtype == np.uint8
    assert np.array_equal(decision.label_map, logits.argmax(axis=0))
