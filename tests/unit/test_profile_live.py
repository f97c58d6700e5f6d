"""Decisions of a running stream: when samples come, what is counted, and what is said where there can be no stream."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.manifest import Policy
from mars_edge.modality import Modality
from mars_runtime.engines import Inference, open_engine
from mars_runtime.models import find_model
from mars_runtime.pipeline import Settings
from mars_runtime.profiling import live
from mars_runtime.profiling.inputs import generated
from mars_runtime.profiling.live import ReadySensor, Streamed, lines, live_times, streamed
from mars_runtime.profiling.repeats import Opening
from mars_runtime.sensors.driver import Frame
from tests.fake_engine import FakeEngine, manifest

T = TypeVar("T")

MODEL = manifest()
INPUTS = generated(MODEL, picture=(60, 80))
PROMPT = Modality(name="words", kind="text", length=7, vocabulary=100)
SETTINGS = Settings(policy=MODEL.policy)


class Hands:
    """A clock that only moves when somebody sleeps, or by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def sensor(hands: Hands, rate_hz: float = 10.0) -> ReadySensor:
    return ReadySensor(INPUTS["rgb"], rate_hz, 1000.25, clock=hands.clock, sleep=hands.sleep)


def sensors(rate_hz: float, *names: str) -> dict[str, ReadySensor]:
    begin_s = time.monotonic() + 0.02
    return {
        name: ReadySensor(INPUTS[name], rate_hz, begin_s + index / 4.0 / rate_hz) for index, name in enumerate(names)
    }


def test_a_sample_comes_at_its_instant_and_carries_it_as_its_stamp() -> None:
    hands = Hands()
    here = sensor(hands)
    assert here.read(0.1) is None
    assert hands.now_s == pytest.approx(1000.1)
    frames: list[Frame] = []
    while len(frames) < 3:
        if (frame := here.read(0.1)) is not None:
            assert frame.captured_s == pytest.approx(hands.now_s)
            frames.append(frame)
    assert [frame.sequence for frame in frames] == [0, 1, 2]
    assert [frame.captured_s for frame in frames] == pytest.approx([1000.25, 1000.35, 1000.45])
    assert all(not np.array_equal(one.data, other.data) for one, other in pairwise(frames))


def test_a_late_reader_gets_the_newest_sample_once_and_none_of_those_between() -> None:
    hands = Hands()
    here = sensor(hands)
    hands.now_s = 1000.25 + 0.5 + 0.03
    frame = here.read(0.1)
    assert frame is not None
    assert frame.sequence == 5
    assert frame.captured_s == pytest.approx(1000.75)
    again = here.read(0.1)
    assert again is not None
    assert again.sequence == 6
    assert hands.now_s == pytest.approx(1000.85)


def test_every_sensor_meets_every_part_of_its_period_and_no_two_processes_are_alike() -> None:
    first, second = (list(live._phases(["depth", "ir", "rgb"], 4, seed)) for seed in (0, 1))
    for name in ("depth", "ir", "rgb"):
        assert sorted(int(4 * phases[name]) for phases in first) == [0, 1, 2, 3]
    assert first != second
    assert list(live._phases(["depth", "ir", "rgb"], 4, 0)) == first


def test_a_decision_is_as_old_as_its_wait_and_its_own_time_together_or_older() -> None:
    found = streamed(
        FakeEngine(MODEL), sensors(30.0, *MODEL.names), SETTINGS, wait_s=0.06, warmup=3, seconds=0.6
    )  # fmt: skip
    assert found.decisions > found.incomplete
    age, wait, total = (found.times_ms[stage] for stage in ("age", "capture_wait", "total"))
    assert len(age) == len(wait) == len(total) == found.decisions - found.incomplete
    assert np.all(age >= wait + total - 1e-6)
    assert np.all(total > 0.0)
    assert found.wall_s >= 0.6


def test_the_loop_on_the_newest_sample_makes_samples_wait_less() -> None:
    waits = {}
    for newest in (False, True):
        settings = replace(SETTINGS, newest=newest)
        found = streamed(FakeEngine(MODEL), sensors(8.0, *MODEL.names), settings, wait_s=0.145, warmup=1, seconds=1.0)
        waits[newest] = float(np.median(found.times_ms["capture_wait"]))
    assert waits[True] < 0.5 * waits[False]


def test_a_decision_without_a_sensor_is_counted_and_has_no_time() -> None:
    found = streamed(FakeEngine(MODEL), sensors(30.0, "rgb", "ir"), SETTINGS, wait_s=0.06, warmup=1, seconds=0.3)
    assert found.incomplete == found.decisions > 0
    assert {stage: len(times) for stage, times in found.times_ms.items()} == {"age": 0, "capture_wait": 0, "total": 0}


class SlowEngine(FakeEngine):
    """Takes 20 ms of processor time for each answer."""

    def infer(
        self, samples: Mapping[str, NDArray[np.float32]], features: Mapping[str, NDArray[np.float32]]
    ) -> Inference:
        end_s = time.thread_time() + 0.02
        while time.thread_time() < end_s:
            pass
        return super().infer(samples, features)


def test_processor_time_holds_that_of_every_decision_and_a_loop_too_slow_is_late_and_skips() -> None:
    found = streamed(SlowEngine(MODEL), sensors(100.0, *MODEL.names), SETTINGS, wait_s=0.03, warmup=1, seconds=0.5)
    assert found.cpu_s >= 0.02 * found.decisions
    assert np.all(found.times_ms["total"] >= 20.0)
    # 16.7 ms are a period at 60 Hz, the most the loop tries.
    assert found.late == found.decisions
    assert found.skipped >= found.decisions - 1


def test_new_samples_are_those_that_decisions_were_given() -> None:
    settings = replace(SETTINGS, rate_hz=50.0)
    found = streamed(FakeEngine(MODEL), sensors(10.0, *MODEL.names), settings, wait_s=0.12, warmup=30, seconds=1.0)
    # Three sensors at 10 Hz; one sample of each may lie there at the begin and at the end.
    assert abs(found.new_samples - 30.0 * found.wall_s) <= 6.0


def test_the_loops_are_those_of_run_and_the_look_of_samples_masks_no_sensor() -> None:
    engine = FakeEngine(manifest(policy=Policy(masking_faults=("dark",))))
    found = {loop: live._settings(engine, 25.0, newest) for loop, newest in live.LOOPS.items()}
    policy = Policy(masking_faults=())
    assert found["fixed_rate"] == Settings(policy=policy, rate_hz=25.0)
    assert found["newest_sample"] == Settings(policy=policy, newest=True)


def streams(age_ms: float, **changes: Any) -> Streamed:
    times = {stage: np.full(4, age_ms) for stage in ("age", "capture_wait", "total")}
    table: dict[str, Any] = {
        "times_ms": times, "decisions": 4, "late": 1, "skipped": 2, "incomplete": 0, "new_samples": 12, "wall_s": 0.5,
        "cpu_s": 0.125, **changes,
    }  # fmt: skip
    return Streamed(**table)


def test_processes_are_added_up_and_one_without_a_time_takes_none_away() -> None:
    nothing = streams(0.0, times_ms={stage: np.empty(0) for stage in ("age", "capture_wait", "total")}, incomplete=4)
    found = live._loop([streams(10.0), nothing, streams(20.0)])
    assert found["age"]["n"] == 8
    assert (found["age"]["min_ms"], found["age"]["max_ms"]) == (10.0, 20.0)
    assert (found["decisions"], found["late"], found["skipped"], found["incomplete"]) == (12, 3, 6, 4)
    assert (found["rate_hz"], found["new_samples"], found["cpu_share"]) == (8.0, 3.0, 0.25)


def no_child(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


@pytest.mark.parametrize(
    ("modalities", "rate_hz", "seconds", "reason"),
    [
        ((*MODEL.modalities, PROMPT), None, 5.0, "no sensor gives text (words)"),
        (MODEL.modalities[:2], 0.5, 5.0, "5 s are too few for sensors so slow (rgb 0.5 Hz, depth 0.5 Hz)"),
        (MODEL.modalities[:1], 1e-300, 5.0, "5 s are too few for sensors so slow (rgb 1e-300 Hz)"),
        (MODEL.modalities[:1], None, 0.1, "0.1 s are too few for sensors so slow (rgb 15 Hz)"),
        ((replace(MODEL.modalities[0], rate_hz=0.1), MODEL.modalities[1]), None, 5.0,
         "5 s are too few for sensors so slow (rgb 0.1 Hz, depth 15 Hz)"),
    ],
)  # fmt: skip
def test_where_there_can_be_no_stream_the_reason_is_said_and_nothing_is_started(
    modalities: tuple[Modality, ...],
    rate_hz: float | None,
    seconds: float,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "in_child", no_child)
    inputs = generated(manifest(modalities), picture=(60, 80))
    opening = Opening(model="none.pte", threads=None, engine=None)
    found = live_times(opening, inputs, rate_hz=rate_hz, seconds=seconds)
    assert (found["reason"], found["loops"], found["processes"]) == (reason, {}, 5)
    assert lines(found) == ["", f"  as a stream: not measured: {reason}"]


@pytest.mark.parametrize(
    ("rates", "seconds", "shares"),
    [
        ({"rgb": 30.0, "ir": 30.0}, 5.0, 50),
        ({"rgb": 3.0}, 5.0, 5),
        ({"voice": 15.0, "image": 1.0}, 2.5, 2),
        ({"rgb": 1.0}, 2.5, 0),
    ],
)
def test_a_time_is_cut_so_that_each_part_has_three_decisions_and_a_sample_of_every_sensor(
    rates: dict[str, float], seconds: float, shares: int
) -> None:
    assert live._shares(rates, seconds) == shares


def test_slow_sensors_are_streamed_in_fewer_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[None] = []

    def in_child(*_: object, **__: object) -> dict[str, Streamed]:
        started.append(None)
        return dict.fromkeys(live.LOOPS, streams(10.0))

    monkeypatch.setattr(live, "in_child", in_child)
    found = live_times(Opening(model="none.pte", threads=None, engine=None), INPUTS, rate_hz=1.0)
    assert len(started) == found["processes"] == 1
    assert lines(found)[1].endswith("5 s of each loop in one process")


def test_a_machine_on_which_no_decision_was_whole_gives_a_reason_and_no_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = {stage: np.empty(0) for stage in ("age", "capture_wait", "total")}
    monkeypatch.setattr(
        live, "in_child", lambda *_, **__: {loop: streams(0.0, times_ms=empty, incomplete=4) for loop in live.LOOPS}
    )
    found = live_times(Opening(model="none.pte", threads=None, engine=None), INPUTS)
    assert found["reason"] == "no decision had every sensor: this machine is too slow for that rate"
    assert found["loops"] == {}


def bundled() -> tuple[Opening, Mapping[str, Any]]:
    model = str(find_model("face_antispoof.pte"))
    engine = open_engine(model, threads=1)
    try:
        return Opening(model=model, threads=1, engine=None), generated(engine.manifest)
    finally:
        engine.close()


def test_a_stream_of_a_real_model_is_told_for_both_loops_and_fits_a_screen() -> None:
    told: list[float] = []
    found = live_times(*bundled(), rate_hz=30.0, seconds=1.5, processes=3, progress=told.append)
    assert found["reason"] is None
    assert found["sensors_hz"] == {"rgb": 30.0, "depth": 30.0, "ir": 30.0}
    assert list(found["loops"]) == ["fixed_rate", "newest_sample"]
    for loop in found["loops"].values():
        assert loop["age"]["n"] == loop["decisions"] - loop["incomplete"]
        for point in ("p50_ms", "p90_ms", "p99_ms"):
            assert 0.0 < loop["total"][point] < loop["age"][point]
        low, high = loop["age"]["p50_interval_ms"]
        assert low <= loop["age"]["p50_ms"] <= high
        assert 0.0 < loop["cpu_share"] <= 16.0
    assert told == sorted(told)
    assert 0.0 <= told[0] <= told[-1] <= 1.0
    said = lines(found)
    assert said[1] == "  as a stream, ms: rgb 30 Hz, depth 30 Hz, ir 30 Hz, 1.5 s of each loop in 3 processes"
    assert all(len(line) <= 100 for line in said)


def test_an_engine_that_does_not_open_is_the_error_of_the_pass() -> None:
    opening, inputs = bundled()
    with pytest.raises(UsageError) as caught:
        live_times(replace(opening, engine="onnxruntime"), inputs)
    assert str(caught.value) == (
        "engine 'onnxruntime' cannot run a .pte; allowed: executorch-native, executorch-python"
    )


def test_decisions_that_lacked_a_sensor_are_named_to_the_reader() -> None:
    loops = {"fixed_rate": live._loop([streams(10.0, incomplete=0)]), "newest_sample": live._loop([streams(9.0)])}
    whole = live._document({"rgb": 15.0}, 5.0, 5, None, loops)
    assert not any("lacked" in line for line in lines(whole))
    loops["newest_sample"] = {**loops["newest_sample"], "incomplete": 3}
    assert lines(live._document({"rgb": 15.0}, 5.0, 5, None, loops))[-1] == (
        "  decisions that lacked a sensor, left out: 3 on the newest sample"
    )
    assert lines(None) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_process_of_a_stream_ends_with_the_command_that_started_it(number: signal.Signals) -> None:
    script = (
        "from tests.unit.test_profile_live import bundled\n"
        "from mars_runtime.profiling.live import live_times\n"
        "from mars_edge.signals import handled_by, unwind\n"
        "with handled_by(unwind): live_times(*bundled(), seconds=600.0, processes=1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as parent:
        try:
            child = _await(lambda: _children(parent.pid))[0]
            # It streams once its capture threads run, beside its own two.
            _await(lambda: len(list(Path(f"/proc/{child}/task").glob("*"))) >= 5)
            parent.send_signal(number)
            parent.wait(timeout=30.0)
            _await(lambda: not _alive(child))
        finally:
            parent.kill()


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent and _alive(int(stat.parent.name)):
                found.append(int(stat.parent.name))
    return found


def _await(what: Callable[[], T], timeout_s: float = 30.0) -> T:
    end_s = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return found
