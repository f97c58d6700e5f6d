"""What every sensor driver promises, checked on every driver."""

from __future__ import annotations

import _thread
import http.server
import sys
import threading
import time
import types
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mars_edge.errors import MarsEdgeError, SensorError, UsageError
from mars_edge.faults import parse_fault
from mars_edge.modality import Modality
from mars_edge.rig import Rig
from mars_runtime import fingerprint
from mars_runtime.fingerprint import Fingerprint
from mars_runtime.sensors.camera import Camera, CameraSettings
from mars_runtime.sensors.driver import Driver, Frame, SourceEndedError
from mars_runtime.sensors.faulty import FaultyDriver
from mars_runtime.sensors.isolated import IsolatedDriver
from mars_runtime.sensors.microphone import Microphone
from mars_runtime.sensors.network_camera import NetworkCamera
from mars_runtime.sensors.pace import Pacer
from mars_runtime.sensors.pictures import StillPicture
from mars_runtime.sensors.simulated import SimulatedSensor, World
from mars_runtime.sensors.source import ALLOWED, SensorSpec, check_names, load_table, make_driver, parse_flag
from tests.helpers.recorded_run import MODALITIES as RECORDED
from tests.helpers.recorded_run import record
from tests.unit.test_cameras import FakeCapture
from tests.unit.test_shared_camera import Bench

RATE_HZ = 50.0
RGB = Modality(name="rgb", kind="image", channels=3, size=(24, 32), dtype="uint8", range=(0, 255), rate_hz=RATE_HZ)
DEPTH = Modality(name="depth", kind="image", size=(24, 32), dtype="uint16", range=(0, 4000), rate_hz=RATE_HZ)
IR = Modality(name="ir", kind="image", size=(24, 32), dtype="uint8", range=(0, 255), rate_hz=RATE_HZ)
VOICE = Modality(name="voice", kind="audio", rate_hz=8000, window_s=0.5)
MOTION = Modality(name="motion", kind="sequence", channels=2, length=8, rate_hz=RATE_HZ)


@dataclass(frozen=True)
class Case:
    """One driver with the modality it feeds."""

    driver: Driver
    modality: Modality


def picture(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)


def write_wav(path: Path, seconds: float, rate_hz: int = 8000, channels: int = 1) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(5).integers(-(2**15), 2**15, (round(seconds * rate_hz), channels), np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    return values[:, 0]


def source(name_and_source: str, modality: Modality) -> Case:
    driver = make_driver(parse_flag(name_and_source), modality, World(0, RATE_HZ))
    return Case(driver, modality)


class MjpegHandler(http.server.BaseHTTPRequestHandler):
    """Three JPEG frames as multipart/x-mixed-replace, then the connection closes."""

    frames = 3
    period_s = 0.0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for index in range(self.frames):
            jpeg = cv2.imencode(".jpg", cv2.resize(picture(index), (320, 240)))[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:
                return
            time.sleep(self.period_s)

    def log_message(self, *arguments: Any) -> None:
        pass


ENDLESS: list[str] = []
# The first frames of this wild run come without a failed read.
QUIET_SEED = 1


class EndlessHandler(MjpegHandler):
    """The same for as long as anyone looks."""

    frames = 10**6
    period_s = 1.0 / RATE_HZ


def simulated(tmp_path: Path) -> Case:
    return source("depth=sim:", DEPTH)


def still(tmp_path: Path) -> Case:
    cv2.imwrite(str(tmp_path / "still.png"), picture(0))
    return source(f"rgb={tmp_path}/still.png", RGB)


def array(tmp_path: Path) -> Case:
    np.save(tmp_path / "rows.npy", np.zeros((5, 2), np.float32))
    return source(f"motion={tmp_path}/rows.npy", MOTION)


def sequence(tmp_path: Path) -> Case:
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture(index).astype(np.uint16)[:, :, 0])
    return source(f"depth={tmp_path}/*.png", DEPTH)


def sound_file(tmp_path: Path) -> Case:
    write_wav(tmp_path / "voice.wav", 0.7)
    return source(f"voice={tmp_path}/voice.wav", VOICE)


def video_file(tmp_path: Path) -> Case:
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), RATE_HZ, (32, 24))
    for index in range(4):
        writer.write(picture(index))
    writer.release()
    return source(f"rgb={tmp_path}/clip.avi", RGB)


def faulty(tmp_path: Path) -> Case:
    fault = parse_fault("depth=garbage@0s", ["depth"])
    return Case(FaultyDriver(simulated(tmp_path).driver, [fault], stream_s=lambda: 0.0, seed=0), DEPTH)


def microphone(tmp_path: Path) -> Case:
    return Case(Microphone("0", VOICE), VOICE)


def contained(tmp_path: Path) -> Case:
    cv2.imwrite(str(tmp_path / "still.png"), picture(0))
    return Case(IsolatedDriver(partial(StillPicture, tmp_path / "still.png", rate_hz=RATE_HZ)), RGB)


def camera(tmp_path: Path) -> Case:
    (tmp_path / "video0").touch()
    return Case(Camera(tmp_path / "video0", rate_hz=RATE_HZ, settings=CameraSettings(format="Y16")), DEPTH)


def network_camera(tmp_path: Path) -> Case:
    return source(f"rgb={ENDLESS[0]}", RGB)


def recorded(tmp_path: Path) -> Case:
    record(tmp_path / "run.mcap", seed=QUIET_SEED, count=30)
    modality = next(m for m in RECORDED if m.name == "depth")
    return source(f"depth=replay:{tmp_path}/run.mcap#depth", modality)


def one_of_three_channels(tmp_path: Path) -> Case:
    return Case(Bench(tmp_path).channels["ir"], IR)


class FakeInputStream:
    """PortAudio's input as it calls back: noise in blocks of 10 ms from a thread of its own, far faster than life.

    The real PortAudio is heard in tests/integration/test_real_microphone.py.
    """

    def __init__(self, *, samplerate: int, channels: int, callback: Callable[..., None], **options: Any) -> None:
        self.active = False
        self._block = samplerate // 100
        self._channels = channels
        self._callback = callback
        self._gone = threading.Event()

    def start(self) -> None:
        self.active = True
        # Not through `threading`: PortAudio's thread is none of Python's either.
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        generator = np.random.default_rng(0)
        times = types.SimpleNamespace(currentTime=5.02, inputBufferAdcTime=5.0)
        fine = types.SimpleNamespace(input_overflow=False)
        while not self._gone.wait(0.002):
            noise = generator.uniform(-1, 1, (self._block, self._channels)).astype(np.float32)
            self._callback(noise, self._block, times, fine)

    def close(self, ignore_errors: bool = True) -> None:
        self.active = False
        self._gone.set()


def query_devices(device: object, kind: str) -> dict[str, Any]:
    return {"name": "Fake", "default_samplerate": 44100.0, "max_input_channels": 2}


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    fake = types.SimpleNamespace(
        InputStream=FakeInputStream,
        PortAudioError=RuntimeError,
        query_devices=query_devices,
        _terminate=lambda: None,
        _initialize=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    real = cv2.VideoCapture
    monkeypatch.setattr(FakeCapture, "frames", 10**6)
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda *given: (FakeCapture if given[1:] == (cv2.CAP_V4L2,) else real)(*given)
    )
    return fake


@pytest.fixture(scope="module", autouse=True)
def endless_server() -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), EndlessHandler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    ENDLESS.append(f"http://127.0.0.1:{server.server_address[1]}/stream.mjpg")
    yield
    ENDLESS.clear()
    server.shutdown()
    thread.join()
    server.server_close()


FINITE = [sequence, sound_file, video_file]
LIVE = [simulated, still, array, faulty, microphone, contained, camera, network_camera, one_of_three_channels]
ALL = [*LIVE, recorded, *FINITE]
every_driver = pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
Make = Callable[[Path], Case]


@pytest.fixture
def opened(make: Make, tmp_path: Path, portaudio: object) -> Iterator[Case]:
    case = make(tmp_path)
    case.driver.open()
    yield case
    case.driver.close()


def next_frame(driver: Driver) -> Frame:
    until_s = time.monotonic() + 2.0
    while time.monotonic() < until_s:
        frame = driver.read(0.1)
        if frame is not None:
            return frame
    raise AssertionError("no frame within 2 s")


@every_driver
def test_frames_are_what_the_modality_declares(opened: Case) -> None:
    for _ in range(2):
        assert opened.modality.preprocess(next_frame(opened.driver).data).shape == opened.modality.shape


@every_driver
def test_traits_are_known_before_open(make: Make, tmp_path: Path, portaudio: object) -> None:
    traits = make(tmp_path).driver.traits
    assert traits.description
    assert traits.rate_hz > 0.0
    assert not (traits.static and traits.finite)


@every_driver
def test_read_before_open_is_a_sensor_error(make: Make, tmp_path: Path, portaudio: object) -> None:
    driver = make(tmp_path).driver
    driver.close()
    with pytest.raises(SensorError, match="read before open"):
        driver.read(0.1)


@every_driver
def test_close_may_be_repeated_and_a_closed_driver_opens_again(opened: Case) -> None:
    next_frame(opened.driver)
    opened.driver.close()
    opened.driver.close()
    opened.driver.open()
    next_frame(opened.driver)


@every_driver
def test_read_does_not_outstay_its_timeout(opened: Case) -> None:
    next_frame(opened.driver)
    begin_s = time.monotonic()
    opened.driver.read(0.0)
    assert time.monotonic() - begin_s < 0.5


@every_driver
def test_a_later_read_leaves_earlier_frames_alone(opened: Case) -> None:
    first = next_frame(opened.driver).data
    copy = first.copy()
    next_frame(opened.driver)
    assert np.array_equal(first, copy)


def own_threads() -> set[str]:
    """All but those of the test's own web server."""
    return {thread.name for thread in threading.enumerate() if "process_request" not in thread.name}


@every_driver
def test_no_driver_starts_a_thread(make: Make, tmp_path: Path, portaudio: object) -> None:
    before = own_threads()
    driver = make(tmp_path).driver
    driver.open()
    next_frame(driver)
    assert own_threads() == before
    driver.close()


@pytest.mark.parametrize("make", FINITE, ids=lambda make: make.__name__)
def test_a_finite_source_marks_its_last_frame_and_then_says_so(opened: Case) -> None:
    frames = [next_frame(opened.driver)]
    while not frames[-1].last:
        frames.append(next_frame(opened.driver))
        assert len(frames) <= 10
    assert opened.driver.traits.finite
    with pytest.raises(SourceEndedError, match="at its end"):
        opened.driver.read(0.1)
    opened.driver.close()
    opened.driver.open()
    with pytest.raises(SourceEndedError, match="at its end"):
        opened.driver.read(0.1)


def test_a_sequence_keeps_16_bits_and_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), np.full((24, 32), 4000 + number, np.uint16))
    driver = source(f"depth={tmp_path}/frame*.png", DEPTH).driver
    driver.open()
    frames = [next_frame(driver).data for _ in range(3)]
    assert [frame.dtype for frame in frames] == [np.uint16] * 3
    assert [int(frame[0, 0]) for frame in frames] == [4001, 4002, 4010]


@pytest.mark.parametrize("make", [still, video_file, network_camera], ids=lambda make: make.__name__)
def test_colour_comes_in_rgb_order(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    red_in_bgr = np.zeros((24, 32, 3), np.uint8)
    red_in_bgr[:, :, 2] = 250
    monkeypatch.setitem(globals(), "picture", lambda seed: red_in_bgr)
    driver = make(tmp_path).driver
    driver.open()
    red, green, blue = next_frame(driver).data.reshape(-1, 3).mean(axis=0)
    assert red > 240
    assert green < 10
    assert blue < 10
    driver.close()


def test_an_alpha_channel_is_dropped(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "rgba.png"), np.dstack([picture(1), np.full((24, 32), 9, np.uint8)]))
    driver = source(f"rgb={tmp_path}/rgba.png", RGB).driver
    driver.open()
    assert np.array_equal(next_frame(driver).data, picture(1)[:, :, ::-1])


def test_a_short_wav_is_one_whole_frame(tmp_path: Path) -> None:
    values = write_wav(tmp_path / "short.wav", 0.2)
    driver = source(f"voice={tmp_path}/short.wav", VOICE).driver
    driver.open()
    frame = next_frame(driver)
    assert frame.last
    assert np.array_equal(frame.data, values.astype(np.float32) / 32768.0)


def test_the_windows_of_a_long_wav_overlap_and_reach_its_end(tmp_path: Path) -> None:
    signal = write_wav(tmp_path / "long.wav", 0.63).astype(np.float32) / 32768.0
    driver = source(f"voice={tmp_path}/long.wav", VOICE).driver
    driver.open()
    frames = [next_frame(driver)]
    while not frames[-1].last:
        frames.append(next_frame(driver))
    assert len(frames) == 4  # 0.5 s, then hops of 50 ms: 0.55, 0.6, and the rest
    assert all(frame.data.size == 4000 for frame in frames)
    assert np.array_equal(frames[0].data, signal[:4000])
    assert np.array_equal(frames[-1].data, signal[-4000:])


@pytest.mark.parametrize(("width", "scale"), [(1, 2**7), (2, 2**15), (3, 2**23), (4, 2**31)])
def test_pcm_of_every_width_is_scaled_to_one(tmp_path: Path, width: int, scale: int) -> None:
    levels = [-scale, -1, 0, 1, scale - 1]
    stored = b"".join(
        (level + 128).to_bytes(1, "little") if width == 1 else level.to_bytes(width, "little", signed=True)
        for level in levels
    )
    with wave.open(str(tmp_path / "pcm.wav"), "wb") as file:
        file.setparams((1, width, 8000, 0, "NONE", ""))
        file.writeframes(stored)
    driver = source(f"voice={tmp_path}/pcm.wav", VOICE).driver
    driver.open()
    assert np.allclose(next_frame(driver).data, np.array(levels) / scale, rtol=0, atol=1e-7)


def test_the_simulated_sensors_show_one_world() -> None:
    world, rig = World(3, RATE_HZ), Rig(seed=3, rate_hz=RATE_HZ)
    for name in ("rgb", "depth", "ir"):
        driver = make_driver(parse_flag(f"rgb=sim:{name}"), RGB, world)
        driver.open()
        frame = next_frame(driver)
        assert frame.sequence is not None
        assert np.array_equal(frame.data, rig.frame(name, frame.sequence / RATE_HZ))


def test_a_busy_machine_lowers_the_nominal_rate_of_a_simulated_sensor_and_only_while_it_lasts() -> None:
    now_s, render_s = [70.0], [0.0]

    class SlowWorld(World):
        def render(self, modality: str, index: int) -> np.ndarray[Any, Any]:
            during_hz.append(driver.traits.rate_hz)
            now_s[0] += render_s[0]
            during_hz.append(driver.traits.rate_hz)
            return super().render(modality, index)

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    during_hz: list[float] = []
    world = SlowWorld(0, 15.0, clock=lambda: now_s[0])
    driver = SimulatedSensor(world, "ir", clock=lambda: now_s[0], sleep=sleep)
    driver.open()
    for _ in range(3):
        next_frame(driver)
    assert driver.traits.rate_hz == 15.0
    render_s[0] = 0.2
    next_frame(driver)
    assert during_hz[-1] == pytest.approx(5.0)
    assert driver.traits.rate_hz == pytest.approx(4.0, abs=1.0)
    render_s[0] = 9.0
    next_frame(driver)
    assert during_hz[-1] == 4.0
    render_s[0] = 0.0
    for _ in range(60):
        next_frame(driver)
    assert driver.traits.rate_hz == 15.0


def test_an_absent_camera_is_gone() -> None:
    driver = source("rgb=97", RGB).driver
    with pytest.raises(SensorError) as error:
        driver.open()
    assert error.value.gone
    assert str(error.value) == "/dev/video97: no such device"


@pytest.fixture
def mjpeg_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), MjpegHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/stream.mjpg"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_network_camera_gives_frames_and_then_an_error_when_the_server_ends(mjpeg_server: str) -> None:
    driver = NetworkCamera(mjpeg_server, rate_hz=15.0)
    driver.open()
    assert next_frame(driver).data.shape == (240, 320, 3)
    with pytest.raises(SensorError, match="gave no frame"):
        for _ in range(4):
            driver.read(0.1)
    driver.close()


@pytest.mark.parametrize(
    ("flag", "modality", "message"),
    [
        ("depth", DEPTH, "--sensor 'depth' is not NAME=SOURCE, e.g. depth=sim: or rgb=0"),
        ("depth=", DEPTH, "--sensor 'depth=' is not NAME=SOURCE, e.g. depth=sim: or rgb=0"),
        ("depth=ftp://x", DEPTH, f"--sensor depth=ftp://x: unknown source 'ftp:'; allowed: {ALLOWED}"),
        ("depth=no.png", DEPTH, f"--sensor depth=no.png: no such file; allowed: {ALLOWED}"),
        ("depth=no/*.png", DEPTH, "--sensor depth=no/*.png: no file matches"),
        ("voice=0", VOICE, "--sensor voice=0: a camera cannot feed voice, which is audio"),
        ("voice=http://x", VOICE, "--sensor voice=http://x: a video stream cannot feed voice, which is audio"),
        (
            "depth=replay:#depth",
            DEPTH,
            "--sensor depth=replay:#depth: a recorded sensor is replay:FILE#SENSOR, e.g. replay:run.mcap#depth",
        ),
        ("depth=replay:no.mcap", DEPTH, "no.mcap: no such recording"),
        ("voice=sim:", VOICE, "--sensor voice=sim:: the simulated rig has no 'voice'; it has: rgb, depth, ir"),
        (
            "rgb=sim:thermal",
            RGB,
            "--sensor rgb=sim:thermal: the simulated rig has no 'thermal'; it has: rgb, depth, ir",
        ),
    ],
)
def test_a_wrong_source_is_one_line_that_says_what_is_allowed(flag: str, modality: Modality, message: str) -> None:
    with pytest.raises(UsageError) as error:
        source(flag, modality)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("file", "modality", "message"),
    [
        ("grey.png", RGB, "rgb: image has shape (24, 32), expected (H, W, 3)"),
        ("grey.png", DEPTH, "depth: sample is uint8, expected uint16"),
        ("broken.png", RGB, "{path}: not a readable image"),
        ("empty.png", RGB, "{path}: the file is empty"),
        ("broken.npy", MOTION, "{path}: not a readable .npy array"),
        ("broken.mp4", RGB, "{path}: not a video OpenCV can decode"),
        ("grey.png", VOICE, "a .png file cannot feed voice, which is audio"),
        ("notes.txt", RGB, "unknown file type '.txt'; known: "),
        (".", RGB, "is a folder; name its files, e.g. "),
    ],
)
def test_a_wrong_file_is_refused_before_anything_starts(
    tmp_path: Path, file: str, modality: Modality, message: str
) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), picture(0)[:, :, 0])
    for name in ("broken.png", "broken.npy", "broken.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"this is no picture")
    (tmp_path / "empty.png").touch()
    path = tmp_path / file
    with pytest.raises(UsageError) as error:
        source(f"{modality.name}={path}", modality)
    assert str(error.value).startswith(f"--sensor {modality.name}={path}: {message.format(path=path)}")


@pytest.mark.parametrize(
    ("rate_hz", "channels", "seconds", "message"),
    [
        (16000, 1, 0.1, "is sampled at 16000 Hz, expected 8000 Hz"),
        (8000, 2, 0.1, "has 2 channels, expected 1 (mono)"),
        (8000, 1, 0.0, "holds no audio samples"),
    ],
)
def test_a_wrong_wav_is_refused(tmp_path: Path, rate_hz: int, channels: int, seconds: float, message: str) -> None:
    path = tmp_path / "odd.wav"
    write_wav(path, seconds, rate_hz, channels)
    with pytest.raises(UsageError) as error:
        source(f"voice={path}", VOICE)
    assert str(error.value) == f"--sensor voice={path}: {path}: {message}"


def test_no_bytes_crash_the_readers(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    good = {".png": cv2.imencode(".png", picture(0))[1].tobytes()}
    write_wav(tmp_path / "good.wav", 0.1)
    good[".wav"] = (tmp_path / "good.wav").read_bytes()
    np.save(tmp_path / "good.npy", picture(0))
    good[".npy"] = (tmp_path / "good.npy").read_bytes()
    for suffix, content in good.items():
        modality = VOICE if suffix == ".wav" else RGB
        for trial in range(60):
            damaged = bytearray(content[: generator.integers(1, len(content))])
            for at in generator.integers(0, min(64, len(damaged)), 3):
                damaged[at] = generator.integers(0, 256)
            path = tmp_path / f"damaged{suffix}"
            path.write_bytes(damaged)
            try:
                case = source(f"{modality.name}={path}", modality)
            except MarsEdgeError as error:
                assert "\n" not in str(error), trial
            else:
                case.driver.open()


def test_names_must_be_the_models_and_unique() -> None:
    with pytest.raises(UsageError) as error:
        check_names([SensorSpec(name="thermal", source="0")], ["rgb", "depth"])
    assert str(error.value) == "unknown sensor 'thermal'; this model has: rgb, depth"
    with pytest.raises(UsageError) as error:
        check_names([SensorSpec(name="rgb", source="0"), SensorSpec(name="rgb", source="1")], ["rgb", "depth"])
    assert str(error.value) == "sensor 'rgb' is given twice; each of rgb, depth may have one source"


def test_a_toml_file_gives_the_same_specs_as_flags(tmp_path: Path) -> None:
    path = tmp_path / "sensors.toml"
    path.write_text(
        '[sensor.rgb]\nsource = "0"\n[sensor.depth]\nsource = "sim:"\nrate_hz = 5\nhealth = {stale_s = 1}\n'
    )
    assert load_table(path) == [
        parse_flag("rgb=0"),
        SensorSpec(name="depth", source="sim:", rate_hz=5.0, health={"stale_s": 1}),
    ]


def test_a_learned_fingerprint_sets_limits_beside_the_file_and_the_users_own_stand_above_it(tmp_path: Path) -> None:
    found = Fingerprint(kind="infrared", samples=50, seconds=5.0, period_s=0.1, jitter_s=0.0, strobe_frames=2)
    fingerprint.save(found, tmp_path / "ir.json")
    path = tmp_path / "sensors.toml"
    path.write_text('[sensor.ir]\nsource = "0"\nfingerprint = "ir.json"\n')
    assert load_table(path)[0].health == fingerprint.overrides(found) != {}
    path.write_text('[sensor.ir]\nsource = "0"\nfingerprint = "ir.json"\nhealth = {strobe_frames = 3}\n')
    assert load_table(path)[0].health["strobe_frames"] == 3
    path.write_text('[sensor.ir]\nsource = "0"\nfingerprint = "no.json"\n')
    with pytest.raises(UsageError) as error:
        load_table(path)
    assert str(error.value) == f"fingerprint {tmp_path}/no.json: No such file or directory"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[camera]\n", "unknown key 'camera'; known keys: sensor"),
        ("[sensor.rgb]\n", "sensor.rgb: source is None, expected one of: "),
        (
            '[sensor.rgb]\nsource="0"\nfps=3',
            "sensor.rgb: unknown key 'fps'; known keys: source, rate_hz, fingerprint, health",
        ),
        ('[sensor.rgb]\nsource="0"\nrate_hz=0', "sensor.rgb: rate_hz is 0, expected a number above 0, up to 1000"),
        (
            '[sensor.rgb]\nsource="0"\nfingerprint=3',
            "sensor.rgb: fingerprint is 3, expected a file that `mars-edge doctor --learn` wrote",
        ),
        ("sensor = 3", "expected one [sensor.NAME] table per sensor"),
        ("sensor.rgb = [", "not TOML: "),
    ],
)
def test_a_wrong_toml_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sensors.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_table(path)
    assert str(error.value).startswith(f"--sensors {path}: {message}")
    assert "\n" not in str(error.value)


def test_a_pacer_grants_one_frame_per_period_and_skips_what_was_missed() -> None:
    now_s = [100.0]

    def sleep(duration_s: float) -> None:
        now_s[0] += duration_s

    pacer = Pacer(10.0, clock=lambda: now_s[0], sleep=sleep)
    assert pacer.wait(0.0)
    assert not pacer.wait(0.05)
    assert pacer.wait(0.06)
    assert now_s[0] == pytest.approx(100.1)
    now_s[0] += 0.55
    assert pacer.wait(0.0)
    assert not pacer.wait(0.01)
    assert pacer.wait(0.1)
    assert now_s[0] == pytest.approx(100.7)
