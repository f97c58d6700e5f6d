"""The real OpenCV on a V4L2 node whose kernel side is tests/helpers/v4l2_camera.c, preloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mars_edge.errors import SensorError
from mars_runtime.sensors.camera import Camera, CameraSettings
from mars_runtime.sensors.driver import Frame
from mars_runtime.sensors.isolated import IsolatedDriver


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None or not Path("/usr/include/linux/videodev2.h").exists():
        pytest.skip("needs Linux, a C compiler and linux/videodev2.h: apt install gcc linux-libc-dev")
    path = tmp_path_factory.mktemp("v4l2") / "camera.so"
    source = repository / "tests" / "helpers" / "v4l2_camera.c"
    subprocess.run(
        [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True
    )
    return path


@pytest.fixture
def node(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is a camera in every process started from here on."""
    node = tmp_path / "video0"
    node.touch()
    blue_green_red = np.full((48, 64, 3), (50, 100, 200), np.uint8)
    cv2.imwrite(str(tmp_path / "frame.jpg"), blue_green_red)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAKE_VIDEO", str(node))
    monkeypatch.setenv("FAKE_JPEG", str(tmp_path / "frame.jpg"))
    return node


def camera(node: Path, **settings: Any) -> IsolatedDriver:
    return IsolatedDriver(partial(Camera, node, rate_hz=30.0, settings=CameraSettings(**settings)))


@pytest.fixture
def opened(node: Path, request: pytest.FixtureRequest) -> Iterator[IsolatedDriver]:
    driver = camera(node, **request.param)
    driver.open()
    yield driver
    driver.close()


def next_frame(driver: IsolatedDriver) -> Frame:
    until_s = time.monotonic() + 10.0
    while time.monotonic() < until_s:
        frame = driver.read(0.1)
        if frame is not None:
            return frame
    raise AssertionError("no frame within 10 s")


def asked(**settings: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("opened", [settings], indirect=True)


@pytest.mark.parametrize("opened", [{"format": "Y16"}, {"format": "Z16"}], indirect=True, ids=["Y16", "Z16"])
def test_every_bit_of_a_16_bit_pixel_arrives(opened: IsolatedDriver) -> None:
    rows, columns = np.mgrid[:48, :64]
    for _ in range(2):
        data = next_frame(opened).data
        assert (data.dtype, data.shape) == (np.uint16, (48, 64))
        assert np.array_equal(data, rows * 256 + columns + data[0, 0])
    assert opened.traits.raw


@asked(format="GREY")
def test_a_grey_picture_stays_grey(opened: IsolatedDriver) -> None:
    rows, columns = np.mgrid[:48, :64]
    data = next_frame(opened).data
    assert (data.dtype, data.shape) == (np.uint8, (48, 64))
    assert np.array_equal(data, (rows + columns + data[0, 0]) % 256)
    assert opened.traits.raw


@asked(format="YUYV")
def test_yuyv_is_raw_and_becomes_colour(opened: IsolatedDriver) -> None:
    data = next_frame(opened).data
    assert data.shape == (48, 64, 3)
    assert np.ptp(data, axis=2).max() <= 1
    # BT.601: luma of 16 to 235 becomes 0 to 255, and steps of one luma become steps of 255 / 219.
    steps = np.diff(data[40, :, 0].astype(float))
    assert steps.mean() == pytest.approx(255.0 / 219.0, rel=0.02)
    assert opened.traits.raw


@asked(format="MJPG")
def test_motion_jpeg_is_not_raw_and_comes_in_rgb_order(opened: IsolatedDriver) -> None:
    data = next_frame(opened).data
    assert data.shape == (48, 64, 3)
    assert np.abs(data.reshape(-1, 3).mean(axis=0) - (200, 100, 50)).max() < 4.0
    assert not opened.traits.raw


@asked(format="Y16", width=32, height=24, rate=15.0)
def test_size_and_rate_are_asked_for_and_read_back(opened: IsolatedDriver, node: Path) -> None:
    assert next_frame(opened).data.shape == (24, 32)
    assert opened.traits.rate_hz == 15.0
    assert opened.traits.description == f"camera {node} (Y16, 32 x 24, 15 Hz)"


@asked(format="Y16")
def test_frames_carry_the_kernels_time_stamp(opened: IsolatedDriver) -> None:
    stamps = [next_frame(opened).captured_s for _ in range(4)]
    known = [stamp_s for stamp_s in stamps if stamp_s is not None]
    assert len(known) == 4
    assert 0.0 <= time.monotonic() - known[-1] < 10.0
    # The node waits a period before each frame; stamps that OpenCV reports have whole milliseconds.
    assert np.diff(known).min() >= 1.0 / 30.0 - 0.002


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 20.0}, "asked for 20 frames per second, gives 30"),
        ({"width": 100, "height": 100}, "asked for 100 x 100, gives 64 x 48"),
    ],
)
def test_other_settings_than_asked_for_are_refused(node: Path, settings: dict[str, Any], message: str) -> None:
    driver = camera(node, **settings)
    with pytest.raises(SensorError) as error:
        driver.open()
    assert str(error.value) == f"{node}: {message}"


def test_devices_lists_its_formats(node: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mars_runtime.inventory import cameras\n"
        "print(cameras(Path(sys.argv[2]), [Path(sys.argv[1])])[0].detail)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, str(node), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "YUYV GREY Y16 Z16 MJPG\n"


def test_a_node_opens_again_after_a_close(node: Path) -> None:
    driver = camera(node, format="GREY")
    for _ in range(3):
        driver.open()
        assert next_frame(driver).data.shape == (48, 64)
        driver.close()


def test_a_kernel_that_never_answers_stalls_neither_read_nor_close(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_HANGS_AFTER", "3")
    driver = camera(node)
    driver.open()
    next_frame(driver)
    process_id = driver.process_id
    for _ in range(10):
        begin_s = time.monotonic()
        driver.read(0.1)
        assert time.monotonic() - begin_s < 1.0
    begin_s = time.monotonic()
    driver.close()
    assert time.monotonic() - begin_s < 2.0
    assert not Path(f"/proc/{process_id}").exists()


def test_an_unplugged_camera_is_gone_and_opens_again_once_it_is_back(node: Path) -> None:
    driver = camera(node)
    driver.open()
    next_frame(driver)
    node.unlink()
    with pytest.raises(SensorError) as error:
        for _ in range(100):
            driver.read(0.1)
    assert error.value.gone
    assert str(error.value) == f"camera {node} (YUYV, 64 x 48, 30 Hz): unplugged"
    with pytest.raises(SensorError, match="no such device"):
        driver.open()
    node.touch()
    driver.open()
    next_frame(driver)
    driver.close()
