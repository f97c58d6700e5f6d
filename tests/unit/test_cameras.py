"""V4L2 cameras and network cameras: what is asked is read back, 16 bits stay, and every failure has a name.

The node and the server are real wherever a machine without a camera has them; only OpenCV's capture is replaced.
"""

from __future__ import annotations

import errno
import fcntl
import http.server
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mars_edge.errors import SensorError, UsageError
from mars_edge.modality import Modality
from mars_runtime.sensors.camera import Camera, CameraSettings, parse_camera
from mars_runtime.sensors.camera_node import (
    camera_identity,
    camera_nodes,
    require_node,
    usb_speed_mbps,
    users_of,
    why_not,
)
from mars_runtime.sensors.isolated import IsolatedDriver
from mars_runtime.sensors.network_camera import NetworkCamera
from mars_runtime.sensors.simulated import World
from mars_runtime.sensors.source import make_driver, parse_flag
from mars_runtime.sensors.stream_failure import why_no_stream, without_password

RGB = Modality(name="rgb", kind="image", channels=3, size=(24, 32), dtype="uint8", range=(0, 255), rate_hz=30.0)
HEIGHT, WIDTH = 6, 8


class FakeCapture:
    """cv2.VideoCapture of a camera with some formats; it behaves as OpenCV's V4L2 back-end is documented to."""

    formats: tuple[str, ...] = ("YUYV", "MJPG", "Y16", "Z16", "GREY")
    native = "YUYV"
    rate = 30.0
    stamp_s: Callable[[], float] = staticmethod(time.monotonic)
    opens = True
    frames = 3

    def __init__(self, node: str, backend: int) -> None:
        assert backend == cv2.CAP_V4L2
        self.values = {
            cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*self.native.ljust(4))),
            cv2.CAP_PROP_FRAME_WIDTH: float(WIDTH),
            cv2.CAP_PROP_FRAME_HEIGHT: float(HEIGHT),
            cv2.CAP_PROP_FPS: self.rate,
            cv2.CAP_PROP_CONVERT_RGB: 1.0,
        }
        self.left = self.frames

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self.opens

    def set(self, key: int, value: float) -> bool:
        names = [cv2.VideoWriter.fourcc(*name.ljust(4)) for name in self.formats]
        if key == cv2.CAP_PROP_FOURCC and value not in names:
            return False
        if key == cv2.CAP_PROP_FPS and value != self.rate:
            return False
        self.values[key] = float(value)
        return True

    def get(self, key: int) -> float:
        return 1000.0 * self.stamp_s() if key == cv2.CAP_PROP_POS_MSEC else self.values[key]

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        if self.left < 0:
            return False, None
        given = int(self.values[cv2.CAP_PROP_FOURCC]).to_bytes(4, "little").decode().strip()
        if self.values[cv2.CAP_PROP_CONVERT_RGB]:
            return True, np.full((HEIGHT, WIDTH, 3), (1, 2, 3), np.uint8)
        numbers = np.arange(HEIGHT * WIDTH)
        if given == "GREY":
            return True, numbers.astype(np.uint8).reshape(HEIGHT, WIDTH)
        sixteen = (1000 + numbers).astype("<u2").reshape(HEIGHT, WIDTH)
        # OpenCV has no name for Z16 and hands its bytes out in one row.
        return True, sixteen if given == "Y16" else sixteen.reshape(-1).view(np.uint8)[None]

    def release(self) -> None:
        self.left = 0


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "video7"
    path.touch()
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    return path


def opened(node: Path, **settings: Any) -> Camera:
    driver = Camera(node, rate_hz=15.0, settings=CameraSettings(**settings))
    driver.open()
    return driver


@pytest.mark.parametrize("wanted", ["Y16", "Z16"])
def test_sixteen_bits_stay_sixteen_bits(node: Path, wanted: str) -> None:
    driver = opened(node, format=wanted)
    frame = driver.read(0.1)
    assert frame is not None
    expected = (1000 + np.arange(HEIGHT * WIDTH)).astype(np.uint16).reshape(HEIGHT, WIDTH)
    assert frame.data.dtype == np.uint16
    assert np.array_equal(frame.data, expected)
    assert driver.traits.raw


def test_grey_stays_one_channel_also_where_nobody_asked_for_it(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCapture, "native", "GREY")
    frame = opened(node).read(0.1)
    assert frame is not None
    assert frame.data.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(("wanted", "raw"), [("YUYV", True), ("MJPG", False)])
def test_colour_comes_in_rgb_order_and_only_compression_makes_equal_frames_possible(
    node: Path, wanted: str, raw: bool
) -> None:
    driver = opened(node, format=wanted)
    frame = driver.read(0.1)
    assert frame is not None
    assert np.array_equal(frame.data[0, 0], [3, 2, 1])
    assert driver.traits.raw is raw
    assert driver.traits.description == f"camera {node} ({wanted}, 8 x 6, 30 Hz)"
    assert driver.traits.rate_hz == 30.0


@pytest.mark.parametrize(
    ("settings", "formats", "message"),
    [
        ({"format": "Y16"}, ("YUYV",), "asked for format Y16, gives YUYV"),
        ({"rate": 60.0}, ("YUYV",), "asked for 60 frames per second, gives 30"),
    ],
)
def test_a_camera_that_gives_something_else_is_refused(
    node: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], formats: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(FakeCapture, "formats", formats)
    with pytest.raises(SensorError) as error:
        opened(node, **settings)
    assert str(error.value) == f"{node}: {message}"


def test_a_size_that_the_camera_does_not_take_is_refused(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = FakeCapture.set
    sizes = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    monkeypatch.setattr(FakeCapture, "set", lambda self, key, value: key not in sizes and keep(self, key, value))
    with pytest.raises(SensorError) as error:
        opened(node, width=640, height=480)
    assert str(error.value) == f"{node}: asked for 640 x 480, gives 8 x 6"


@pytest.mark.parametrize(("age_s", "kept"), [(0.02, True), (-0.5, False), (60.0, False)])
def test_the_kernels_stamp_is_used_unless_it_is_of_another_clock(
    node: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, kept: bool
) -> None:
    stamp_s = time.monotonic() - age_s
    monkeypatch.setattr(FakeCapture, "stamp_s", staticmethod(lambda: stamp_s))
    frame = opened(node).read(0.1)
    assert frame is not None
    assert frame.captured_s == (pytest.approx(stamp_s, abs=1e-6) if kept else None)


def test_a_camera_that_stops_and_one_that_is_pulled_out_are_told_apart(node: Path) -> None:
    driver = opened(node)
    for _ in range(FakeCapture.frames):
        driver.read(0.1)
    with pytest.raises(SensorError, match="gave no frame") as error:
        driver.read(0.1)
    assert not error.value.gone
    node.unlink()
    with pytest.raises(SensorError, match="unplugged") as error:
        driver.read(0.1)
    assert error.value.gone


def test_a_node_that_is_no_camera_is_named(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCapture, "opens", False)
    with pytest.raises(SensorError) as error:
        opened(node)
    assert str(error.value) == f"{node}: is no V4L2 device"


def test_a_node_without_permission_names_the_group(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(Path, "group", lambda self: "video")
    with pytest.raises(SensorError) as error:
        require_node(node)
    assert str(error.value) == f"permission denied on {node}: add the user to group video"
    assert not error.value.gone


@pytest.mark.parametrize(
    ("number", "message", "gone"),
    [
        (errno.EACCES, "permission denied on {node}: add the user to group video", False),
        (errno.EBUSY, "{node}: busy", False),
        (errno.ENODEV, "{node}: unplugged", True),
        (errno.EIO, "{node}: Input/output error", False),
    ],
)
def test_what_the_kernel_refuses_is_said_in_words(
    node: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, gone: bool
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "group", lambda self: "video")
    monkeypatch.setattr(os, "open", refuse)
    error = why_not(node)
    assert (str(error), error.gone) == (message.format(node=node), gone)


@pytest.mark.parametrize(
    ("capabilities", "message"),
    [
        (0x00800000, "gives no pictures (a metadata or output node); try the camera's other nodes"),
        (0x00000001, "opens, but OpenCV can make it send no pictures"),
    ],
)
def test_a_metadata_node_is_told_from_a_camera(
    node: Path, monkeypatch: pytest.MonkeyPatch, capabilities: int, message: str
) -> None:
    def answer(descriptor: int, code: int, buffer: bytes) -> bytes:
        assert (code, len(buffer)) == (0x80685600, 104)
        return bytes(88) + capabilities.to_bytes(4, "little") + bytes(12)

    monkeypatch.setattr(fcntl, "ioctl", answer)
    assert str(why_not(node)) == f"{node}: {message}"


def test_who_holds_a_node_is_named(tmp_path: Path) -> None:
    node = Path("/dev/video7")
    for number, target in ((11, node), (12, Path("/dev/null"))):
        (tmp_path / str(number) / "fd").mkdir(parents=True)
        (tmp_path / str(number) / "fd" / "3").symlink_to(target)
        (tmp_path / str(number) / "comm").write_text("cheese\n")
    assert users_of(node, tmp_path) == ["cheese (process 11)"]
    assert users_of(Path("/dev/video8"), tmp_path) == []


def test_a_camera_is_known_again_under_another_number_and_told_from_its_twin(tmp_path: Path) -> None:
    def plug(name: str, serial: str, speed: str) -> None:
        device = tmp_path / "usb" / f"{name}-{serial}"
        (device / "interface").mkdir(parents=True)
        for key, value in (("idVendor", "046d"), ("idProduct", "0825"), ("serial", serial), ("speed", speed)):
            (device / key).write_text(f"{value}\n")
        entry = tmp_path / name
        entry.mkdir()
        (entry / "name").write_text("HD camera\n")
        (entry / "index").write_text("0\n")
        (entry / "device").symlink_to(device / "interface")

    plug("video0", "A1", "480")
    plug("video3", "A1", "5000")
    plug("video4", "B2", "480")
    identities = [camera_identity(Path(f"/dev/video{number}"), tmp_path) for number in (0, 3, 4, 9)]
    assert identities == [
        "HD camera 0 046d 0825 A1",
        "HD camera 0 046d 0825 A1",
        "HD camera 0 046d 0825 B2",
        "",
    ]
    assert [usb_speed_mbps(Path(f"/dev/video{n}"), tmp_path) for n in (0, 3, 9)] == [480.0, 5000.0, None]


def test_nodes_are_listed_by_number(tmp_path: Path) -> None:
    for name in ("video10", "video2", "vbi0", "videography"):
        (tmp_path / name).touch()
    assert [node.name for node in camera_nodes(tmp_path)] == ["video2", "video10"]


@pytest.mark.parametrize(
    ("text", "node", "settings"),
    [
        ("0", "/dev/video0", CameraSettings()),
        ("/dev/video2?format=Y16", "/dev/video2", CameraSettings(format="Y16")),
        (
            "/dev/video2?format=MJPG&width=640&height=480&rate=29.97",
            "/dev/video2",
            CameraSettings(format="MJPG", width=640, height=480, rate=29.97),
        ),
        ("/dev/v4l/by-id/usb-cam-index0", "/dev/v4l/by-id/usb-cam-index0", CameraSettings()),
    ],
)
def test_a_camera_is_named_by_index_or_node_with_settings(text: str, node: str, settings: CameraSettings) -> None:
    assert parse_camera(text) == (Path(node), settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camera", "'camera' is no camera: expected an index or a node, e.g. /dev/video0"),
        ("/dev/video0?fps=30", "unknown setting 'fps'; known: format, width, height, rate"),
        ("/dev/video0?format=RGB", "format=RGB: unknown; known: MJPG, YUYV, Y16, Z16, GREY"),
        ("/dev/video0?width=640", "width and height go together"),
        ("/dev/video0?width=0&height=2", "width=0: expected a whole number from 1 to 16384"),
        ("/dev/video0?rate=nan", "rate=nan: expected a number above 0, up to 1000"),
        ("/dev/video0?rate=1&rate=2", "setting rate is given twice"),
    ],
)
def test_a_wrong_setting_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make_driver(parse_flag(f"rgb=v4l2:{text}"), RGB, World(0, 30.0))
    assert str(error.value) == f"--sensor rgb=v4l2:{text}: {message}"


def test_a_camera_of_the_command_line_runs_in_its_own_process() -> None:
    for text in ("0", "/dev/video97", "v4l2:/dev/video97?format=Y16", "http://127.0.0.1:9/x"):
        assert isinstance(make_driver(parse_flag(f"rgb={text}"), RGB, World(0, 30.0)), IsolatedDriver)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the status its path names; /auth wants viewer:right."""

    def do_GET(self) -> None:
        authorised = self.headers.get("Authorization") == "Basic dmlld2VyOnJpZ2h0"
        code = (200 if authorised else 401) if self.path == "/auth" else int(self.path.strip("/"))
        self.send_response(code)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("404", "http 404: nothing is at /404"),
        ("403", "http 403: this user may not see it"),
        ("500", "http 500: the server refuses"),
        (
            "auth",
            "http 401: the user name or the password is missing or wrong; write http://USER:PASSWORD@127.0.0.1",
        ),
        ("200", "the server answers, but sends no video that can be decoded"),
    ],
)
def test_a_network_camera_that_refuses_says_why(server: str, path: str, said: str) -> None:
    driver = NetworkCamera(f"http://{server}/{path}", rate_hz=15.0)
    with pytest.raises(SensorError) as error:
        driver.open()
    assert str(error.value) == f"stream http://{server}/{path}: {said}"


def test_a_right_password_is_used_and_no_password_is_shown(server: str) -> None:
    url = f"http://viewer:right@{server}/auth"
    assert why_no_stream(url) == "the server answers, but sends no video that can be decoded"
    assert without_password(url) == f"http://viewer:***@{server}/auth"
    assert NetworkCamera(url, rate_hz=15.0).traits.description == f"stream http://viewer:***@{server}/auth"
    assert without_password("rtsp://camera/x:y@z") == "rtsp://camera/x:y@z"


def test_a_server_that_is_not_there_does_not_answer_or_does_not_exist_is_told_apart() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        assert (
            why_no_stream(f"http://127.0.0.1:{port}/x")
            == f"connection refused by 127.0.0.1:{port}: no server is running there"
        )
        silent.listen()
        for scheme in ("http", "rtsp"):
            said = why_no_stream(f"{scheme}://127.0.0.1:{port}/x", timeout_s=0.1)
            assert said == f"127.0.0.1:{port} does not answer within 0.1 s"
    assert why_no_stream("rtsp://no-such-host.invalid/x") == "there is no host 'no-such-host.invalid'"
    assert why_no_stream("http://127.0.0.1:99999/x") == "'http://127.0.0.1:99999/x' is no address"


def rtsp_answer(line: bytes) -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                assert connection.recv(4096).startswith(b"DESCRIBE rtsp://127.0.0.1")
                connection.sendall(line + b"\r\nCSeq: 1\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        said = why_no_stream(f"rtsp://user:secret@127.0.0.1:{listening.getsockname()[1]}/cam")
        thread.join()
    return said


def test_the_status_of_rtsp_is_said_in_words_and_another_protocol_is_named() -> None:
    assert rtsp_answer(b"RTSP/1.0 404 Not Found") == "rtsp 404: nothing is at /cam"
    assert rtsp_answer(b"HTTP/1.1 400 Bad Request").endswith("answers, but not in rtsp")


def test_opening_a_stream_leaves_no_option_behind_for_the_video_files_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for before in (None, "fflags;discardcorrupt"):
        monkeypatch.delenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", raising=False)
        if before is not None:
            monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", before)
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            with pytest.raises(SensorError):
                NetworkCamera(f"http://127.0.0.1:{nobody.getsockname()[1]}/x", rate_hz=15.0).open()
        assert os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS") == before
