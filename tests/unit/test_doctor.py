"""What `mars-edge doctor` measures and the causes it names, each from both sides."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mars_edge.cli import main
from mars_edge.errors import SensorError, UsageError
from mars_edge.faults import parse_fault
from mars_edge.modality import Modality
from mars_runtime import examination, fingerprint
from mars_runtime.commands import doctor
from mars_runtime.diagnosis import RULES, diagnose
from mars_runtime.examination import Measured, examine, modality_of, slow_link
from mars_runtime.inventory import Device, Inventory
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.faulty import FaultyDriver
from mars_runtime.sensors.simulated import SimulatedSensor, World

WELL: dict[str, Any] = {
    "description": "camera", "nominal_hz": 30.0, "open_s": 0.3, "samples": 150, "seconds": 4.97, "longest_gap_s": 0.05,
}  # fmt: skip
COLOUR = Measured(kind="colour", dark=0.1, saturated=0.0, flat=0.1, noise=0.01, brightness=0.4, **WELL)
INFRARED = replace(COLOUR, kind="infrared")
DEPTH = Measured(kind="depth", saturated=0.0, noise=0.0, invalid_depth=0.1, depth=0.3, **WELL)
SOUND = Measured(kind="audio", zeros_s=0.0, loudness_dbfs=-30.0, clipped=0.0, **WELL)


def causes(measured: Measured, **others: Measured) -> list[str]:
    return [finding.cause for finding in diagnose(measured, others)[1]]


def test_sensors_that_are_well_have_no_finding() -> None:
    every = {"rgb": COLOUR, "ir": INFRARED, "depth": DEPTH, "voice": SOUND}
    for name, measured in every.items():
        others = {other: every[other] for other in every if other != name}
        assert diagnose(measured, others) == ("ok", [])


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("permission denied on /dev/video0: add the user to group video", "permission"),
        ("/dev/video0: busy, used by zoom (process 7)", "busy"),
        ("/dev/video0: no such device", "not there"),
        ("camera /dev/video0: unplugged", "not there"),
        (
            "microphone (default): no sound input: this machine has no sound card, and no PulseAudio or PipeWire"
            " server runs for this user",
            "no sound device",
        ),
        (
            "microphone (default): no sound input: this machine has no sound card, and ALSA has no way to the sound"
            " server that runs: apt install libasound2-plugins",
            "not installed",
        ),
        ("microphone x: No input device matching 'x': `mars-edge devices` lists those there are", "not there"),
        ("RealSense 7 depth: no such camera; connected: none", "not there"),
        ("stream http://h/x: http 401: the user name or the password is missing or wrong", "no access"),
        ("stream http://h/x: http 404: nothing is at /x", "wrong address"),
        ("stream http://h/x: connection refused by h:80: no server is running there", "no server"),
        ("stream http://h/x: h:80 does not answer within 1 s", "no answer"),
        ("camera /dev/video0: did not open within 5 s", "no answer"),
        ("camera /dev/video0: opens, but gave no sample in 5 s", "silent"),
        ("a RealSense camera needs librealsense: pip install 'mars-edge[realsense]'", "not installed"),
        ("/dev/video0: asked for format Y16, gives MJPG", "other settings"),
        ("camera /dev/video0: something unheard of", "fails"),
    ],
)
def test_an_error_is_a_cause_with_the_drivers_own_words_as_evidence(error: str, cause: str) -> None:
    verdict, found = diagnose(Measured(kind="other", description="x", nominal_hz=30.0, error=error), {})
    assert verdict == "broken"
    assert [(finding.cause, finding.evidence) for finding in found] == [(cause, error)]


@pytest.mark.parametrize(
    ("well", "change", "near", "cause"),
    [
        (COLOUR, {"misfit": "rgb: wrong"}, {"misfit": None}, "wrong kind of sample"),
        (COLOUR, {"unusable": 0.1}, {"unusable": 0.0}, "not finite"),
        (COLOUR, {"repeated": 0.9}, {"repeated": 0.4}, "frozen"),
        (COLOUR, {"dark": 0.99}, {"dark": 0.97}, "covered or dark"),
        (COLOUR, {"flat": 0.8}, {"flat": 0.76}, "covered"),
        (COLOUR, {"saturated": 0.5}, {"saturated": 0.49}, "too bright"),
        (COLOUR, {"noise": 0.13}, {"noise": 0.11}, "noise"),
        (DEPTH, {"noise": 0.017}, {"noise": 0.015}, "noise"),
        (COLOUR, {"seconds": 149 / 23.0}, {"seconds": 149 / 24.5}, "rate below nominal"),
        (COLOUR, {"longest_gap_s": 0.21}, {"longest_gap_s": 0.19}, "gaps"),
        (COLOUR, {"slow_link": True}, {"slow_link": False}, "USB 2 link"),
        (COLOUR, {"late_s": 0.31}, {"late_s": 0.29}, "late"),
        (INFRARED, {"strobe_frames": 2, "phase_dark": 0.5}, {"strobe_frames": 1}, "strobe phase"),
        (INFRARED, {"dark": 0.99}, {"dark": 0.97}, "emitter off or covered"),
        (DEPTH, {"invalid_depth": 0.91}, {"invalid_depth": 0.9}, "too far, too near or covered"),
        (DEPTH, {"invalid_depth": 0.95, "depth": 0.95}, {}, "too far"),
        (DEPTH, {"depth": 0.9}, {"depth": 0.89}, "too far"),
        (SOUND, {"zeros_s": 0.5}, {"zeros_s": 0.4}, "muted"),
        (SOUND, {"clipped": 0.02}, {"clipped": 0.01}, "too loud"),
        (SOUND, {"loudness_dbfs": -61.0}, {"loudness_dbfs": -59.0}, "too quiet"),
        (SOUND, {"overflows": 1}, {"overflows": 0}, "overflow"),
    ],
)
def test_a_cause_is_named_beyond_its_limit_and_not_before(
    well: Measured, change: dict[str, Any], near: dict[str, Any], cause: str
) -> None:
    assert causes(replace(well, **change)) == [cause]
    assert causes(replace(well, **near)) == []


def test_an_emitter_is_off_when_colour_sees_what_infrared_and_depth_do_not() -> None:
    black, blind = replace(INFRARED, dark=1.0), replace(DEPTH, invalid_depth=0.97, depth=None)
    assert causes(black, rgb=COLOUR) == ["emitter off"]
    assert causes(black, rgb=replace(COLOUR, dark=1.0)) == ["emitter off or covered"]
    assert causes(blind, ir=black) == ["emitter off"]
    assert causes(blind, ir=INFRARED) == ["too far, too near or covered"]


def test_a_low_rate_is_explained_by_what_was_measured_beside_it() -> None:
    slow = replace(COLOUR, seconds=10.0)

    def advice(measured: Measured) -> str:
        return next(each for each in diagnose(measured, {})[1] if each.cause == "rate below nominal").advice

    assert advice(slow) == "end what else uses this machine, the bus or the network"
    assert advice(replace(slow, brightness=0.1)) == "more light: automatic exposure takes longer than a frame"
    assert advice(replace(slow, slow_link=True)) == "a USB 3 port and cable"


def test_every_rule_can_speak_and_every_finding_is_complete() -> None:
    spoken = set()
    for well in (COLOUR, INFRARED, DEPTH, SOUND):
        for change in (
            {"error": "x"}, {"misfit": "x"}, {"unusable": 1.0}, {"repeated": 1.0}, {"dark": 1.0}, {"depth": 1.0},
            {"invalid_depth": 1.0}, {"strobe_frames": 3}, {"flat": 1.0}, {"saturated": 1.0}, {"noise": 1.0},
            {"seconds": 99.0}, {"longest_gap_s": 9.0}, {"slow_link": True}, {"late_s": 9.0}, {"zeros_s": 9.0},
            {"overflows": 3},
        ):  # fmt: skip
            for rule in RULES:
                finding = rule(replace(well, **change), {})
                if finding is not None:
                    spoken.add(rule)
                    assert finding.cause and finding.evidence and finding.advice
    assert spoken == set(RULES)


class Time:
    """Made-up time; sleeping is free."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def simulated(view: str, fault: str, clock: Time) -> FaultyDriver:
    world = World(0, 15.0, clock=clock)
    inner = SimulatedSensor(world, view, clock=clock, sleep=clock.sleep)
    faults = [parse_fault(f"{view}={fault}@0s", [view])] if fault else []
    return FaultyDriver(inner, faults, stream_s=lambda: clock.now_s - 100.0, seed=0)


@pytest.mark.parametrize(
    ("view", "fault", "cause"),
    [
        ("rgb", "", None),
        ("depth", "", None),
        ("ir", "", None),
        ("rgb", "off", "silent"),
        ("rgb", "unplug", "not there"),
        ("rgb", "stuck", "frozen"),
        ("rgb", "slow", "rate below nominal"),
        ("rgb", "black", "covered or dark"),
        ("ir", "black", "emitter off or covered"),
        ("rgb", "saturate", "too bright"),
        ("rgb", "garbage", "noise"),
        ("depth", "black", "too far, too near or covered"),
        ("depth", "cover", "too far, too near or covered"),
        ("depth", "scatter", "noise"),
    ],
)
def test_an_injected_fault_of_the_rig_is_named(view: str, fault: str, cause: str | None) -> None:
    clock = Time()
    measured, _ = examine(simulated(view, fault, clock), "sim:", None, seconds=2.0, clock=clock)
    found = causes(measured)
    assert found == [] if cause is None else cause in found, measured


def test_an_examination_counts_what_came_and_when() -> None:
    clock = Time()
    measured, listener = examine(simulated("rgb", "", clock), "sim:", None, seconds=2.0, keep=True, clock=clock)
    assert measured.kind == "colour"
    assert measured.samples == len(listener.kept) == 31
    assert measured.rate_hz == pytest.approx(15.0, rel=1e-3)
    assert measured.longest_gap_s == pytest.approx(1 / 15.0, rel=1e-3)
    means = [float(sample.frame.data[::4, ::4].mean()) / 255.0 for sample in listener.kept]
    assert measured.brightness == pytest.approx(np.median(means))


def test_a_silent_sensor_is_waited_for_five_seconds_and_no_longer() -> None:
    clock = Time()
    measured, _ = examine(simulated("rgb", "off", clock), "sim:", None, seconds=60.0, clock=clock)
    assert measured.error == "simulated rgb (seed 0) [rgb=off@0s]: opens, but gave no sample in 5 s"
    assert clock.now_s - 100.0 < 5.5


class Strobed:
    """An infrared camera whose emitter lights every second frame, and stamps each frame half a second late."""

    traits = Traits(description="strobed", rate_hz=20.0, raw=True)

    def __init__(self, clock: Time) -> None:
        self._clock = clock
        self._generator = np.random.default_rng(0)
        self._index = 0
        self.closed = 0

    def open(self) -> None: ...

    def read(self, timeout_s: float) -> Frame:
        self._clock.sleep(0.05)
        self._index += 1
        data = self._generator.integers(0, 12, (64, 64), np.uint8)
        data[::7] += np.uint8(150 * (self._index % 2))
        data[::5] += np.uint8(90 * (self._index % 2))
        return Frame(data=data, sequence=self._index, captured_s=self._clock() - 0.5)

    def close(self) -> None:
        self.closed += 1


def test_a_strobe_is_seen_and_the_picture_judged_by_its_bright_phase() -> None:
    clock = Time()
    measured, _ = examine(Strobed(clock), "x", None, seconds=3.0, clock=clock)
    assert measured.strobe_frames == 2
    assert measured.phase_dark == pytest.approx(0.5, abs=0.02)
    assert measured.dark is not None and measured.dark < 0.9
    assert measured.late_s == pytest.approx(0.5)
    assert causes(measured) == ["strobe phase", "late"]


def test_a_sample_that_does_not_fit_the_model_is_told_by_the_models_words() -> None:
    clock = Time()
    wanted = Modality(name="depth", kind="image", size=(24, 32), dtype="uint16", range=(0, 4000))
    measured, _ = examine(simulated("rgb", "", clock), "sim:", wanted, seconds=0.5, clock=clock)
    assert measured.misfit == "depth: sample is uint8, expected uint16"
    assert diagnose(measured, {})[0] == "broken"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (np.zeros(800, np.float32), "audio"),
        (np.zeros((4, 6), np.uint16), "image"),
        (np.zeros((4, 6), np.uint8), "image"),
        (np.zeros((4, 6, 3), np.uint8), "image"),
        (np.zeros((4, 6), np.float32), "sequence"),
    ],
)
def test_a_sample_tells_its_own_modality(data: np.ndarray[Any, Any], kind: str) -> None:
    found = modality_of(Frame(data=data))
    assert found.kind == kind
    found.preprocess(data)


@pytest.mark.parametrize(
    ("version", "speed", "slow"),
    [(" 2.10", "480", True), (" 3.20", "5000", False), (" 2.00", "480", False), (" 2.10", "12", True)],
)
def test_a_camera_that_knows_usb_3_on_a_usb_2_link_is_told_from_one_that_does_not(
    tmp_path: Path, version: str, speed: str, slow: bool
) -> None:
    interface = tmp_path / "usb" / "1-1:1.0"
    interface.mkdir(parents=True)
    (tmp_path / "usb" / "version").write_text(version + "\n")
    (tmp_path / "usb" / "speed").write_text(speed + "\n")
    (tmp_path / "class" / "video2").mkdir(parents=True)
    (tmp_path / "class" / "video2" / "device").symlink_to(interface)
    for source in ("2", "/dev/video2", "v4l2:/dev/video2?format=Y16"):
        assert slow_link(source, "camera", tmp_path / "class") is slow
    assert not slow_link("3", "camera", tmp_path / "class")


@pytest.mark.parametrize(
    ("description", "slow"),
    [
        ("D435 0123 depth (640 x 480, 30 Hz, USB 2.1)", True),
        ("D435 0123 depth (640 x 480, 30 Hz, USB 3.2)", False),
        ("OAK 1 rgb (640 x 400, USB HIGH)", True),
        ("OAK 1 rgb (640 x 400, USB SUPER)", False),
    ],
)
def test_depth_cameras_name_their_link(description: str, slow: bool) -> None:
    assert slow_link("realsense:0123/depth", description) is slow


@pytest.fixture
def own_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    """Doctor's simulated sensors in made-up time."""
    clock = Time()

    def make(specs: Any, modalities: Any, world: Any) -> dict[str, FaultyDriver]:
        parts = {spec.name: spec.source.removeprefix("sim:").partition("+") for spec in specs}
        return {name: simulated(view, fault, clock) for name, (view, _, fault) in parts.items()}

    def in_own_time(driver: Any, source: str, modality: Any, **options: Any) -> Any:
        return examine(driver, source, modality, clock=clock, **options)

    monkeypatch.setattr(doctor, "make_drivers", make)
    monkeypatch.setattr(doctor, "examine", in_own_time)
    yield clock


def test_the_report_names_causes_with_evidence_and_what_to_do(
    own_time: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    sensor = ["--sensor", "rgb=sim:rgb+black", "--model", "face_antispoof.pte"]
    assert main(["doctor", *sensor]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rgb: suspect"
    assert "  cause       covered or dark: 100 % of the pixels are dark" in lines
    assert "  do          take the cover off, or switch a light on" in lines
    assert main(["doctor", "--json", *sensor]) == 0
    (report,) = json.loads(capsys.readouterr().out)["sensors"]
    assert (report["name"], report["verdict"]) == ("rgb", "suspect")
    assert [finding["cause"] for finding in report["findings"]] == ["covered or dark"]


def test_without_any_sample_the_exit_code_is_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--sensor", "rgb=/dev/video97"]) == 3
    shown = capsys.readouterr()
    assert shown.out.splitlines()[:1] == ["rgb: broken"]
    assert shown.err == "mars-edge: no sensor gave a sample\n"


def test_a_healthy_sensor_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ir.json"
    begin_s = time.monotonic()
    assert main(["doctor", "--sensor", "ir=sim:", "--seconds", "2.5", "--learn", str(path)]) == 0
    assert time.monotonic() - begin_s < 60.0
    learned = fingerprint.load(path)
    assert learned.kind == "infrared"
    shown = capsys.readouterr()
    expected = (
        f'learned from {learned.samples} samples; fingerprint = "{path}" under [sensor.ir] of a sensors file uses it'
    )
    assert shown.err == f"mars-edge: {expected}\n"


def test_nothing_is_learned_from_a_broken_sensor(
    own_time: Time, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sensor = ["--sensor", "rgb=sim:rgb+stuck", "--model", "face_antispoof.pte"]
    assert main(["doctor", *sensor, "--learn", str(tmp_path / "x")]) == 2
    expected = "mars-edge: doctor: nothing is learned from a sensor that is broken (frozen)\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "x").exists()


def test_a_name_that_the_model_does_not_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--sensor", "thermal=sim:rgb", "--model", "face_antispoof.pte"]) == 2
    assert capsys.readouterr().err == "mars-edge: unknown sensor 'thermal'; this model has: rgb, depth, ir\n"


@pytest.mark.parametrize("sensors", [[], ["rgb=sim:", "ir=sim:"]])
def test_one_sensor_is_learned_at_a_time(sensors: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = [part for sensor in sensors for part in ("--sensor", sensor)]
    assert main(["doctor", *flags, "--learn", "x.json"]) == 2
    expected = f"mars-edge: doctor: --learn takes exactly one --sensor, given are {len(sensors)}\n"
    assert capsys.readouterr().err == expected


def test_a_sensor_error_while_listening_keeps_what_was_measured_before() -> None:
    clock = Time()

    class Dies(Strobed):
        def read(self, timeout_s: float) -> Frame:
            if self._index == 20:
                raise SensorError("strobed: unplugged", gone=True)
            return super().read(timeout_s)

    driver = Dies(clock)
    measured, _ = examine(driver, "x", None, seconds=5.0, clock=clock)
    assert driver.closed == 1
    assert (measured.samples, measured.error, measured.gone) == (20, "strobed: unplugged", True)
    assert causes(measured)[0] == "not there"


def test_the_longest_gap_is_between_two_samples_and_not_the_usual_one() -> None:
    clock = Time()

    class Stutters(Strobed):
        def read(self, timeout_s: float) -> Frame:
            if self._index == 10:
                self._clock.sleep(0.4)
            return super().read(timeout_s)

    measured, _ = examine(Stutters(clock), "x", None, seconds=2.0, clock=clock)
    assert measured.longest_gap_s == pytest.approx(0.45)
    assert "gaps" in causes(measured)


def test_samples_for_learning_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "MOST_KEPT_BYTES", 10 * 64 * 64)
    clock = Time()
    measured, listener = examine(Strobed(clock), "x", None, seconds=2.0, keep=True, clock=clock)
    assert (len(listener.kept), measured.samples > 30) == (10, True)
    assert not examine(Strobed(clock), "x", None, seconds=0.2, clock=clock)[1].kept


def test_without_a_named_sensor_everything_that_devices_lists_is_examined(
    own_time: Time, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (Device(kind="camera", source="sim:rgb", name="Rig"),)
    monkeypatch.setattr(doctor, "look", lambda *, probe: Inventory(devices=found, notes=("orbbec: not looked for",)))
    assert main(["doctor", "--json"]) == 0
    shown = capsys.readouterr()
    reports = json.loads(shown.out)["sensors"]
    assert [(report["name"], report["verdict"]) for report in reports] == [("camera0", "ok")]
    assert shown.err == "mars-edge: orbbec: not looked for\n"


def test_a_machine_without_sensors_has_nothing_to_examine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "look", lambda *, probe: Inventory(devices=(), notes=()))
    assert main(["doctor"]) == 3
    expected = "mars-edge: no camera and no microphone found; name a source: --sensor NAME=SOURCE\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seconds", "0.01"), "doctor: --seconds is 0.01; a sensor shows nothing in less than 0.5 s"),
        (
            ("--learn", "no/such/folder/x.json"),
            "doctor: --learn no/such/folder/x.json: there is no folder no/such/folder",
        ),
    ],
)
def test_a_measurement_that_would_say_nothing_or_be_lost_is_refused_before_it_begins(
    arguments: tuple[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        doctor.main(["--sensor", "rgb=sim:", *arguments])
    assert str(caught.value) == message
