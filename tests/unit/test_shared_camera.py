"""Channels of one camera over one process: each as good as a driver of its own, none the others' misfortune."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mars_edge.errors import SensorError
from mars_edge.faults import parse_fault
from mars_runtime.capture import Capture, Doorbell
from mars_runtime.facts import FactFinder
from mars_runtime.sensors.bundle import Newest
from mars_runtime.sensors.driver import Driver, Frame, SourceEndedError, Traits
from mars_runtime.sensors.faulty import FaultyDriver
from mars_runtime.sensors.shared_camera import Channel, SharedCamera

NAMES = ("rgb", "depth", "ir")
PERIOD_S = 0.005


class Kit:
    """A vendor's kit as bad as the files of a folder say: `silent-ir`, `refuse-ir`, `hang`, `gone`, `fail`, `end`...

    It gives its channels' frames in turn, each full of the channel's number; opens are counted in the file `opens`.
    """

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES) -> None:
        self.folder = folder
        self.traits = Traits(description="kit", rate_hz=60.0)
        self.channels = {
            name: Traits(description=f"kit {name}", rate_hz=60.0 - index) for index, name in enumerate(names)
        }
        self.refused: dict[str, str] = {}
        self.count = 0
        self.running = False

    def told(self, what: str) -> bool:
        return (self.folder / what).exists()

    def note(self, what: str) -> None:
        with (self.folder / what).open("a") as file:
            file.write("x")

    def open(self) -> None:
        self.note("tries")
        if self.told("hang-in-open"):
            time.sleep(3600)
        self.refused = {name: f"kit {name}: busy" for name in self.channels if self.told(f"refuse-{name}")}
        if not self.running:
            self.note("opens")
        self.running = True

    def read_any(self, timeout_s: float) -> tuple[str, Frame] | None:
        if self.told("hang"):
            time.sleep(3600)
        if self.told("gone"):
            (self.folder / "gone").unlink()
            raise SensorError("kit: unplugged", gone=True)
        if self.told("fail"):
            (self.folder / "fail").unlink()
            raise SensorError("kit: a bad transfer")
        if self.told("end") and self.count > 30:
            raise SourceEndedError("kit: at its end")
        time.sleep(min(PERIOD_S, timeout_s))
        self.count += 1
        index = self.count % len(self.channels)
        name = list(self.channels)[index]
        if name in self.refused or self.told(f"silent-{name}"):
            return None
        return name, Frame(data=np.full((3, 4), index, np.uint8), sequence=self.count)

    def close(self) -> None:
        self.running = False


class Bench:
    """A camera of that kit, and what its folder says."""

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES, open_timeout_s: float = 5.0) -> None:
        self.folder = folder
        self.now_s = 0.0
        make = functools.partial(Kit, folder, names)
        self.camera = SharedCamera(make, open_timeout_s=open_timeout_s, clock=lambda: self.now_s)
        self.channels = self.camera.channels()

    def tell(self, what: str) -> None:
        (self.folder / what).touch()

    def untell(self, what: str) -> None:
        (self.folder / what).unlink()

    @property
    def opens(self) -> int:
        return self.times("opens")

    def times(self, what: str) -> int:
        path = self.folder / what
        return len(path.read_text()) if path.exists() else 0

    def open(self) -> dict[str, Channel]:
        for channel in self.channels.values():
            channel.open()
        return self.channels

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()
    assert made.camera.process_id is None


def at_once(act: Callable[[Channel], object], channels: dict[str, Channel]) -> dict[str, object]:
    """By channel, what each said in a thread of its own."""

    def said(channel: Channel) -> object:
        try:
            return act(channel)
        except SensorError as error:
            return error

    with ThreadPoolExecutor(len(channels)) as pool:
        return dict(zip(channels, pool.map(said, channels.values()), strict=True))


def some(channel: Driver, count: int = 5) -> list[Frame]:
    frames: list[Frame] = []
    until_s = time.monotonic() + 10.0
    while len(frames) < count:
        assert time.monotonic() < until_s, "no frames"
        frame = channel.read(0.1)
        frames += [] if frame is None else [frame]
    return frames


def test_each_channel_gets_its_own_frames_in_order_and_once_from_one_opening(bench: Bench) -> None:
    at_once(lambda channel: channel.open(), bench.channels)
    heard = at_once(lambda channel: some(channel, 40), bench.channels)
    for index, name in enumerate(NAMES):
        frames = heard[name]
        assert isinstance(frames, list)
        assert all((frame.data == index).all() for frame in frames)
        numbers = [frame.sequence for frame in frames]
        assert numbers == sorted(set(numbers))
    assert bench.opens == 1
    assert [channel.traits.rate_hz for channel in bench.channels.values()] == [60.0, 59.0, 58.0]


def test_one_thread_may_read_all_channels_in_turn(bench: Bench) -> None:
    for _ in range(3):
        for index, channel in enumerate(bench.open().values()):
            assert (some(channel, 1)[0].data == index).all()


def test_no_read_outlasts_its_time_out_in_a_library_that_hangs_and_close_ends_it(bench: Bench) -> None:
    bench.open()
    at_once(some, bench.channels)
    bench.tell("hang")

    def waited_s(channel: Channel) -> float:
        while channel.read(0.1) is not None:
            pass
        begin_s = time.monotonic()
        assert channel.read(0.2) is None
        return time.monotonic() - begin_s

    for took_s in at_once(waited_s, bench.channels).values():
        assert isinstance(took_s, float) and 0.2 <= took_s < 1.5
    begin_s = time.monotonic()
    at_once(lambda channel: channel.close(), bench.channels)
    assert time.monotonic() - begin_s < 3.0
    assert bench.camera.process_id is None


def test_a_silent_channel_that_reopens_leaves_the_others_alone_and_is_heard_when_it_speaks(bench: Bench) -> None:
    bench.tell("silent-ir")
    channels = bench.open()
    pid = bench.camera.process_id
    for _ in range(3):
        some(channels["rgb"], 2)
        assert channels["ir"].read(0.02) is None
        channels["ir"].close()
        channels["ir"].open()
        bench.now_s += 0.9
    assert (bench.opens, bench.camera.process_id) == (1, pid)
    bench.untell("silent-ir")
    some(channels["ir"])


def test_after_a_second_without_any_frame_the_first_that_reopens_restarts_the_camera_for_all(bench: Bench) -> None:
    channels = bench.open()
    at_once(some, channels)
    bench.tell("hang")
    pid = bench.camera.process_id
    bench.now_s += 0.9
    channels["ir"].close()
    channels["ir"].open()
    assert bench.camera.process_id == pid
    bench.now_s += 0.2
    bench.untell("hang")
    channels["ir"].close()
    channels["ir"].open()
    assert bench.camera.process_id != pid and bench.opens == 2
    at_once(some, channels)
    channels["depth"].close()
    channels["depth"].open()
    assert bench.opens == 2


def test_every_channel_is_told_that_the_camera_is_gone_and_all_come_back_with_one_opening(bench: Bench) -> None:
    channels = bench.open()
    bench.tell("gone")
    for said in at_once(lambda channel: some(channel, 10**6), channels).values():
        assert isinstance(said, SensorError) and said.gone and str(said) == "kit: unplugged"
    with pytest.raises(SensorError, match="unplugged"):
        channels["rgb"].read(0.1)

    def back(channel: Channel) -> None:
        channel.close()
        channel.open()
        some(channel)

    assert at_once(back, channels) == dict.fromkeys(NAMES)
    assert bench.opens == 2


def test_a_bad_transfer_is_told_each_channel_once_and_ends_nothing(bench: Bench) -> None:
    channels = bench.open()
    at_once(some, channels)
    bench.tell("fail")
    for said in at_once(lambda channel: some(channel, 10**6), channels).values():
        assert isinstance(said, SensorError) and not said.gone and str(said) == "kit: a bad transfer"
    at_once(some, channels)
    assert bench.opens == 1


def test_the_end_of_a_recording_is_every_channels_end_and_lasts(bench: Bench) -> None:
    bench.tell("end")
    channels = bench.open()
    for said in at_once(lambda channel: some(channel, 10**6), channels).values():
        assert isinstance(said, SourceEndedError)
    bench.close()
    bench.open()
    for said in at_once(lambda channel: channel.read(0.1), channels).values():
        assert isinstance(said, SourceEndedError)
    assert bench.opens == 1


def test_an_open_that_never_returns_fails_all_who_wait_for_it_within_one_bound(tmp_path: Path) -> None:
    bench = Bench(tmp_path, open_timeout_s=1.0)
    bench.tell("hang-in-open")
    said = at_once(lambda channel: channel.open(), bench.channels)
    assert {str(error) for error in said.values()} == {"kit: did not open within 1 s"}
    assert bench.times("tries") == 1
    assert bench.camera.process_id is None
    bench.untell("hang-in-open")
    bench.open()
    bench.close()


def test_an_interrupted_opener_hands_over_to_the_next_who_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.tell("hang-in-open")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bench.channels["rgb"].open)
        until_s = time.monotonic() + 10.0
        while bench.camera.process_id is None and time.monotonic() < until_s:
            time.sleep(0.01)
        second = pool.submit(bench.channels["depth"].open)
        time.sleep(0.1)
        bench.untell("hang-in-open")
        bench.channels["rgb"].interrupt()
        assert str(first.exception(10.0)) == "kit: interrupted while it opened"
        assert second.exception(20.0) is None
    some(bench.channels["depth"])
    with pytest.raises(SensorError, match="kit rgb: interrupted while it opened"):
        bench.channels["rgb"].open()
    bench.close()
    assert bench.camera.process_id is None


def test_a_refused_channel_is_told_why_and_joins_as_soon_as_it_is_free_while_the_others_go_on(bench: Bench) -> None:
    bench.tell("refuse-ir")
    channels = {name: bench.channels[name] for name in ("rgb", "depth")}
    at_once(lambda channel: channel.open(), channels)
    for _ in range(2):
        some(channels["rgb"], 2)
        with pytest.raises(SensorError) as error:
            bench.channels["ir"].open()
        assert str(error.value) == "kit ir: busy"
        bench.channels["ir"].close()
    bench.untell("refuse-ir")
    bench.channels["ir"].open()
    some(bench.channels["ir"])
    at_once(some, channels)
    assert bench.opens == 1


def test_a_refused_channel_that_is_alone_leaves_no_process(bench: Bench) -> None:
    bench.tell("refuse-ir")
    with pytest.raises(SensorError, match="kit ir: busy"):
        bench.channels["ir"].open()
    assert bench.camera.process_id is None


def test_the_camera_closes_with_its_last_channel_and_not_before(bench: Bench) -> None:
    channels = bench.open()
    for name in ("rgb", "depth"):
        channels[name].close()
        assert bench.camera.process_id is not None
        with pytest.raises(SensorError, match=f"kit {name}: read before open"):
            channels[name].read(0.1)
    some(channels["ir"])
    channels["ir"].close()
    assert bench.camera.process_id is None


def test_a_fault_injected_into_one_channel_is_its_alone(bench: Bench) -> None:
    fault = parse_fault("ir=unplug@0s", list(NAMES))
    faulty = FaultyDriver(bench.channels["ir"], [fault], stream_s=lambda: 1.0, seed=0)
    bench.channels["rgb"].open()
    with pytest.raises(SensorError, match=r"unplugged \(injected\)"):
        faulty.open()
    some(bench.channels["rgb"])
    faulty.set_faults(())
    faulty.open()
    some(faulty)
    assert bench.opens == 1


def test_capture_threads_bring_all_channels_back_and_leave_nothing_behind(bench: Bench) -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = held()
    captures = [
        Capture(name, channel, Doorbell(), finder=FactFinder("colour"), lost_after_s=lambda traits: 0.5)
        for name, channel in bench.channels.items()
    ]
    for capture in captures:
        capture.start()
    for _ in range(2):
        wait_for_more(captures)
        assert bench.camera.process_id is not None
        os.kill(bench.camera.process_id, 9)
    wait_for_more(captures)
    for capture in captures:
        capture.request_stop()
    assert all(capture.join(3.0) for capture in captures)
    assert bench.camera.process_id is None
    assert held() == before


def wait_for_more(captures: list[Capture]) -> None:
    """Until every capture has reconnected, if it must, and received five samples more."""
    begin = [capture.received for capture in captures]
    until_s = time.monotonic() + 20.0
    while not all(capture.received >= count + 5 for capture, count in zip(captures, begin, strict=True)):
        assert time.monotonic() < until_s, "a channel did not come back"
        time.sleep(0.01)


def test_the_newest_of_each_is_kept_and_what_waits_longest_goes_first() -> None:
    newest = Newest()
    for channel, item in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        newest.put(channel, item)
    assert [newest.take(0.0) for _ in range(4)] == [("a", 3), ("b", 2), ("c", 4), None]
