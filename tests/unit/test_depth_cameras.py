"""RealSense streams from recordings that librealsense itself made of its software device; the other kits' refusals."""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mars_edge.errors import SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime.sensors.depth_camera import KITS
from mars_runtime.sensors.device_clock import DeviceClock
from mars_runtime.sensors.driver import Driver, Frame, SourceEndedError
from mars_runtime.sensors.shared_camera import Channel
from mars_runtime.sensors.simulated import World
from mars_runtime.sensors.source import make_driver, make_drivers, parse_flag

DEPTH = Modality(name="depth", kind="image", size=(24, 32), dtype="uint16", range=(0, 4000), rate_hz=30.0)
RGB = Modality(name="rgb", kind="image", channels=3, size=(24, 32), dtype="uint8", range=(0, 255), rate_hz=30.0)
IR = Modality(name="ir", kind="image", size=(24, 32), dtype="uint8", range=(0, 255), rate_hz=30.0)
ALL = {"rgb": RGB, "depth": DEPTH, "ir": IR}
VOICE = Modality(name="voice", kind="audio", rate_hz=8000, window_s=0.5)
HEIGHT, WIDTH, FRAMES = 48, 64, 12


def made(flag: str, modality: Modality) -> Driver:
    return make_driver(parse_flag(flag), modality, World(0, 30.0))


@functools.cache
def pictures(channel: str) -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(1)
    if channel == "ir":
        return [generator.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8) for _ in range(FRAMES)]
    if channel == "depth":
        return [generator.integers(300, 4000, (HEIGHT, WIDTH)).astype(np.uint16) for _ in range(FRAMES)]
    return [generator.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8) for _ in range(FRAMES)]


@pytest.fixture(scope="module", params=["depth", "rgb"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A recording of a dozen known pictures, made by the vendor's own library."""
    pytest.importorskip("pyrealsense2", reason="pip install pyrealsense2")
    path = tmp_path_factory.mktemp("realsense") / f"{request.param}.db3"
    record(path, [[request.param]], FRAMES)
    return path, request.param


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of a camera with depth and infrared in one sensor, as they are, and colour in another; 3 s."""
    pytest.importorskip("pyrealsense2", reason="pip install pyrealsense2")
    path = tmp_path_factory.mktemp("realsense") / "camera.db3"
    record(path, [["depth", "ir"], ["rgb"]], 90, {"ir": 30})
    return path


def record(path: Path, sensors: list[list[str]], count: int, stops: Mapping[str, int] | None = None) -> None:
    """Record `count` pictures of every channel at 30 Hz; a channel in `stops` has only so many."""
    import pyrealsense2 as rs

    device = rs.software_device()
    device.register_info(rs.camera_info.name, "Software camera")
    device.register_info(rs.camera_info.serial_number, "S1")
    profiles = {}
    for index, channels in enumerate(sensors):
        sensor = device.add_sensor(f"Sensor {index}")
        profiles.update({channel: (sensor, _add(sensor, channel)) for channel in channels})
    recorder = rs.recorder(str(path), device)
    recorded = recorder.query_sensors()
    queue = rs.frame_queue(16)
    for sensor in recorded:
        sensor.open(sensor.get_stream_profiles())
        sensor.start(queue)
    for number in range(1, count + 1):
        for channel, (sensor, profile) in profiles.items():
            if number <= (stops or {}).get(channel, count):
                sensor.on_video_frame(_frame(channel, number, profile))
                queue.wait_for_frame(2000)
        time.sleep(1 / 30)
    for sensor in recorded:
        sensor.stop()
        sensor.close()


def _add(sensor: Any, channel: str) -> Any:
    import pyrealsense2 as rs

    kind, pixels, uid, bytes_each = {
        "depth": (rs.stream.depth, rs.format.z16, 0, 2),
        "rgb": (rs.stream.color, rs.format.rgb8, 1, 3),
        "ir": (rs.stream.infrared, rs.format.y8, 2, 1),
    }[channel]
    stream = rs.video_stream()
    stream.type, stream.fmt, stream.uid, stream.bpp = kind, pixels, uid, bytes_each
    stream.index, stream.fps = 0, 30
    stream.width, stream.height, stream.intrinsics = WIDTH, HEIGHT, rs.intrinsics()
    if channel == "depth":
        sensor.add_read_only_option(rs.option.depth_units, 0.001)
    return sensor.add_video_stream(stream).as_video_stream_profile()


def _frame(channel: str, number: int, profile: Any) -> Any:
    import pyrealsense2 as rs

    picture = pictures(channel)[(number - 1) % FRAMES]
    frame = rs.software_video_frame()
    frame.pixels, frame.bpp = picture, picture.nbytes // (WIDTH * HEIGHT)
    frame.stride = WIDTH * frame.bpp
    frame.timestamp, frame.domain = 1000.0 * time.time(), rs.timestamp_domain.system_time
    frame.frame_number, frame.profile = number, profile
    return frame


def read_all(driver: Driver) -> list[Frame]:
    frames, until_s = [], time.monotonic() + 20.0
    while time.monotonic() < until_s:
        try:
            frame = driver.read(0.1)
        except SourceEndedError:
            return frames
        if frame is not None:
            frames.append(frame)
    raise AssertionError("no end within 20 s")


def test_a_recording_gives_the_pictures_the_library_recorded_in_their_order_and_then_ends(
    recording: tuple[Path, str],
) -> None:
    path, channel = recording
    modality = DEPTH if channel == "depth" else RGB
    driver = made(f"{modality.name}=realsense:{path}/{channel}", modality)
    driver.open()
    try:
        assert driver.traits.description == f"Software camera S1 {channel} (64 x 48, 30 Hz)"
        assert (driver.traits.rate_hz, driver.traits.finite, driver.traits.raw) == (30.0, True, channel == "depth")
        frames = read_all(driver)
        # Live reading: a busy machine may miss some, and never gets one twice or out of order.
        numbers = [frame.sequence or 0 for frame in frames]
        assert numbers == sorted(set(numbers))
        assert len(frames) >= 3
        for frame in frames:
            assert np.array_equal(frame.data, pictures(channel)[(frame.sequence or 0) - 1])
            assert modality.preprocess(frame.data).shape == modality.shape
            assert frame.captured_s is None
        driver.close()
        driver.open()
        with pytest.raises(SourceEndedError, match="at its end"):
            driver.read(0.1)
    finally:
        driver.close()


def test_a_channel_that_the_recording_lacks_is_named(recording: tuple[Path, str]) -> None:
    path, _ = recording
    driver = made(f"depth=realsense:{path}/ir", DEPTH)
    with pytest.raises(SensorError) as error:
        driver.open()
    assert str(error.value) == f"RealSense {path} ir: has no ir stream (infrared, y8)"


@pytest.mark.skipif(importlib.util.find_spec("pyrealsense2") is None, reason="pip install pyrealsense2")
def test_a_camera_that_is_not_connected_is_gone() -> None:
    driver = made("depth=realsense:123/depth", DEPTH)
    assert isinstance(driver, Channel)
    with pytest.raises(SensorError) as error:
        driver.open()
    assert str(error.value) == "RealSense 123: no such camera; connected: none"
    assert error.value.gone


@pytest.mark.parametrize("scheme", ["depthai", "orbbec"])
def test_a_kit_that_is_installed_says_that_no_camera_is_connected(scheme: str) -> None:
    pytest.importorskip(KITS[scheme].module, reason=f"pip install 'mars-edge[{scheme}]'")
    driver = made(f"rgb={scheme}:123/rgb", RGB)
    with pytest.raises(SensorError) as error:
        driver.open()
    assert str(error.value).endswith("123: no such camera; connected: none")
    assert error.value.gone


@pytest.mark.parametrize("scheme", sorted(KITS))
def test_a_missing_kit_says_what_to_install(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        made(f"rgb={scheme}:1/rgb", RGB)
    assert str(error.value) == (
        f"--sensor rgb={scheme}:1/rgb: needs the package {KITS[scheme].module}: pip install 'mars-edge[{scheme}]'"
    )


@pytest.mark.parametrize(
    ("flag", "modality", "message"),
    [
        (
            "depth=realsense:123/colour",
            DEPTH,
            "unknown channel 'colour'; known: depth, rgb, ir; e.g. realsense:123/depth",
        ),
        ("rgb=depthai:", RGB, "unknown channel ''; known: rgb, left, right, depth; e.g. depthai:SERIAL/rgb"),
        ("voice=orbbec:1/rgb", VOICE, "a camera cannot feed voice, which is audio"),
    ],
)
def test_a_wrong_channel_is_one_line(flag: str, modality: Modality, message: str) -> None:
    with pytest.raises(UsageError) as error:
        made(flag, modality)
    assert str(error.value) == f"--sensor {flag}: {message}"


def test_a_devices_clock_is_mapped_by_the_fastest_deliveries_and_never_into_the_future() -> None:
    clock = DeviceClock()
    generator = np.random.default_rng(0)
    drift, offset_s = 1 + 50e-6, 1234.5
    for index in range(20_000):
        true_s = index / 30.0
        received_s = true_s + 0.02 + float(generator.exponential(0.01))
        mapped_s = clock.monotonic_s((true_s + offset_s) * drift, received_s)
        assert mapped_s <= received_s
        if index > 100:
            assert abs(mapped_s - (true_s + 0.02)) < 0.008


@pytest.fixture
def three(camera: Path, tmp_path: Path) -> Iterator[dict[str, Channel]]:
    """Colour, depth and infrared of one camera, its file named in two ways."""
    (tmp_path / "link.db3").symlink_to(camera)
    flags = [f"rgb=realsense:{camera}/rgb", f"depth=realsense:{tmp_path}/link.db3/depth", f"ir=realsense:{camera}/ir"]
    drivers = make_drivers([parse_flag(flag) for flag in flags], ALL, World(0, 30.0))
    channels = {name: driver for name, driver in drivers.items() if isinstance(driver, Channel)}
    assert list(channels) == list(ALL)
    yield channels
    for channel in channels.values():
        channel.close()


class Listening:
    """Opens a channel in a thread and reads it to the end of the source, or until it fails."""

    def __init__(self, channel: Channel) -> None:
        self.frames: list[Frame] = []
        self.times_s: list[float] = []
        self.failure: SensorError | None = None
        self._channel = channel
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._channel.open()
            while True:
                frame = self._channel.read(0.1)
                if frame is not None:
                    self.frames.append(frame)
                    self.times_s.append(time.monotonic())
        except SensorError as error:
            self.failure = error

    def join(self) -> None:
        self._thread.join(30.0)
        assert not self._thread.is_alive()


def children() -> set[str]:
    """Of any thread."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found |= set((task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_three_channels_of_one_camera_deliver_at_once_and_one_that_stops_leaves_the_others_alone(
    three: dict[str, Channel],
) -> None:
    before = children()
    heard = {name: Listening(channel) for name, channel in three.items()}
    most = 0
    while any(listening.failure is None for listening in heard.values()):
        most = max(most, len(children() - before))
        time.sleep(0.05)
    for name, listening in heard.items():
        listening.join()
        assert isinstance(listening.failure, SourceEndedError)
        numbers = [frame.sequence or 0 for frame in listening.frames]
        assert numbers == sorted(set(numbers))
        for frame in listening.frames:
            assert np.array_equal(frame.data, pictures(name)[((frame.sequence or 0) - 1) % FRAMES])
        assert three[name].traits.description == f"Software camera S1 {name} (64 x 48, 30 Hz)"
        assert three[name].traits.finite
    assert most == 1
    assert len(heard["ir"].frames) >= 8 and max(frame.sequence or 0 for frame in heard["ir"].frames) <= 30
    for name in ("rgb", "depth"):
        after = [at_s for at_s in heard[name].times_s if at_s > heard["ir"].times_s[-1]]
        assert len(after) >= 20
    for channel in three.values():
        channel.close()
    assert not children() - before


def test_when_the_process_of_a_camera_is_killed_all_its_channels_are_gone_and_all_come_back(
    three: dict[str, Channel],
) -> None:
    heard = {name: Listening(channel) for name, channel in three.items()}
    until_s = time.monotonic() + 20.0
    while not all(listening.frames for listening in heard.values()) and time.monotonic() < until_s:
        time.sleep(0.01)
    first = three["rgb"]._camera.process_id
    assert first is not None
    os.kill(first, signal.SIGKILL)
    for listening in heard.values():
        listening.join()
        assert listening.failure is not None and listening.failure.gone
        assert str(listening.failure).endswith("its process ended (killed by SIGKILL)")
    again = {name: Listening(channel) for name, channel in three.items()}
    for listening in again.values():
        listening.join()
        assert isinstance(listening.failure, SourceEndedError)
        assert len(listening.frames) >= 5


def test_a_channel_the_recording_lacks_leaves_the_others_open(tmp_path: Path) -> None:
    pytest.importorskip("pyrealsense2", reason="pip install pyrealsense2")
    path = tmp_path / "one.db3"
    record(path, [["depth"]], 45)
    flags = [f"ir=realsense:{path}/ir", f"depth=realsense:{path}/depth"]
    drivers = make_drivers([parse_flag(flag) for flag in flags], ALL, World(0, 30.0))
    drivers["depth"].open()
    try:
        for _ in range(2):
            with pytest.raises(SensorError) as error:
                drivers["ir"].open()
            assert str(error.value) == f"RealSense {path} ir: has no ir stream (infrared, y8)"
        assert read_all(drivers["depth"])
    finally:
        drivers["depth"].close()


def test_two_sensors_cannot_take_one_channel_of_a_camera(camera: Path) -> None:
    specs = [parse_flag(f"depth=realsense:{camera}/depth"), parse_flag(f"ir=realsense:{camera}/depth")]
    with pytest.raises(UsageError) as error:
        make_drivers(specs, ALL, World(0, 30.0))
    assert str(error.value) == (
        f"--sensor ir=realsense:{camera}/depth: depth of this camera feeds another sensor; a channel feeds one"
    )


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("no.db3", "no such file"),
        ("no.bag", "no such file"),
        ("other.db3", "is no recording of a RealSense camera"),
    ],
)
def test_a_recording_that_is_none_is_refused_before_anything_starts(tmp_path: Path, file: str, message: str) -> None:
    pytest.importorskip("pyrealsense2")
    (tmp_path / "other.db3").write_bytes(b"no database at all")
    spec = parse_flag(f"depth=realsense:{tmp_path}/{file}/depth")
    with pytest.raises(UsageError) as caught:
        make_drivers([spec], {"depth": DEPTH}, World(0, 15.0))
    assert str(caught.value) == f"--sensor {spec.name}={spec.source}: {message}"


@pytest.mark.parametrize(
    ("file", "hint"),
    [("run.mcap", "sensor: --sensor depth=replay:{}#depth"), ("run.db3", "stream: --sensor depth=realsense:{}/depth")],
)
def test_a_recording_that_is_named_like_a_file_says_how_to_name_it(tmp_path: Path, file: str, hint: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(UsageError) as caught:
        make_drivers([parse_flag(f"depth={tmp_path}/{file}")], {"depth": DEPTH}, World(0, 15.0))
    assert str(caught.value) == (
        f"--sensor depth={tmp_path}/{file}: is a recording; name its {hint.format(tmp_path / file)}"
    )
