"""RealSense streams from recordings that librealsense itself made of its software device; the other kits' refusals."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mars_edge.errors import SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime.sensors.depth_camera import KITS
from mars_runtime.sensors.device_clock import DeviceClock
from mars_runtime.sensors.driver import Driver, Frame, SourceEndedError
from mars_runtime.sensors.isolated import IsolatedDriver
from mars_runtime.sensors.simulated import World
from mars_runtime.sensors.source import make_driver, parse_flag

DEPTH = Modality(name="depth", kind="image", size=(24, 32), dtype="uint16", range=(0, 4000), rate_hz=30.0)
RGB = Modality(name="rgb", kind="image", channels=3, size=(24, 32), dtype="uint8", range=(0, 255), rate_hz=30.0)
VOICE = Modality(name="voice", kind="audio", rate_hz=8000, window_s=0.5)
HEIGHT, WIDTH, FRAMES = 48, 64, 12


def made(flag: str, modality: Modality) -> Driver:
    return make_driver(parse_flag(flag), modality, World(0, 30.0))


def pictures(channel: str) -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(1)
    if channel == "depth":
        return [generator.integers(300, 4000, (HEIGHT, WIDTH)).astype(np.uint16) for _ in range(FRAMES)]
    return [generator.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8) for _ in range(FRAMES)]


@pytest.fixture(scope="module", params=["depth", "rgb"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A recording of a dozen known pictures, made by the vendor's own library."""
    pytest.importorskip("pyrealsense2", reason="pip install pyrealsense2")
    path = tmp_path_factory.mktemp("realsense") / f"{request.param}.db3"
    _record(path, request.param)
    return path, request.param


def _record(path: Path, channel: str) -> None:
    import pyrealsense2 as rs

    depth = channel == "depth"
    device = rs.software_device()
    device.register_info(rs.camera_info.name, "Software camera")
    device.register_info(rs.camera_info.serial_number, "S1")
    sensor = device.add_sensor("Sensor")
    stream = rs.video_stream()
    stream.type = rs.stream.depth if depth else rs.stream.color
    stream.fmt = rs.format.z16 if depth else rs.format.rgb8
    stream.index, stream.uid, stream.fps, stream.bpp = 0, 0, 30, 2 if depth else 3
    stream.width, stream.height, stream.intrinsics = WIDTH, HEIGHT, rs.intrinsics()
    profile = sensor.add_video_stream(stream).as_video_stream_profile()
    if depth:
        sensor.add_read_only_option(rs.option.depth_units, 0.001)
    recorder = rs.recorder(str(path), device)
    (recorded,) = recorder.query_sensors()
    queue = rs.frame_queue(FRAMES)
    recorded.open(recorded.get_stream_profiles()[0])
    recorded.start(queue)
    for number, picture in enumerate(pictures(channel), start=1):
        frame = rs.software_video_frame()
        frame.pixels, frame.stride, frame.bpp = picture, WIDTH * stream.bpp, stream.bpp
        frame.timestamp, frame.domain = 1000.0 * time.time(), rs.timestamp_domain.system_time
        frame.frame_number, frame.profile = number, profile
        sensor.on_video_frame(frame)
        queue.wait_for_frame(2000)
        time.sleep(1 / 30)
    recorded.stop()
    recorded.close()


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
    assert isinstance(driver, IsolatedDriver)
    with pytest.raises(SensorError) as error:
        driver.open()
    assert str(error.value) == "RealSense 123 depth: no such camera; connected: none"
    assert error.value.gone


@pytest.mark.parametrize("scheme", ["depthai", "orbbec"])
def test_a_kit_that_is_installed_says_that_no_camera_is_connected(scheme: str) -> None:
    pytest.importorskip(KITS[scheme].module, reason=f"pip install 'mars-edge[{scheme}]'")
    driver = made(f"rgb={scheme}:123/rgb", RGB)
    with pytest.raises(SensorError) as error:
        driver.open()
    assert str(error.value).endswith("123 rgb: no such camera; connected: none")
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
