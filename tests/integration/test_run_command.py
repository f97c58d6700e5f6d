"""`mars-edge run` and `predict` as a user meets them: real rig, real threads, real processes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mars_edge import cli
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.manifest import Manifest
from mars_edge.modality import Modality
from mars_runtime.commands import options
from mars_runtime.models import bundled_models
from tests.fake_engine import RIG, FakeEngine, manifest, point

ROOT = Path(__file__).resolve().parents[2]
DIGITS = (
    Modality(name="audio", kind="audio", rate_hz=8000, window_s=1.0, mel_bands=32),
    Modality(name="image", kind="image", size=(8, 8), dtype="uint8", range=(0, 255), rate_hz=1.0),
)
Lines = list[dict[str, Any]]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return use(monkeypatch, manifest())


def use(monkeypatch: pytest.MonkeyPatch, model: Manifest) -> FakeEngine:
    fake = FakeEngine(model)
    monkeypatch.setattr(options, "open_engine", lambda *args, **kwargs: fake)
    return fake


def run(capsys: pytest.CaptureFixture[str], *arguments: str, command: str = "run") -> tuple[int, Lines, str]:
    code = cli.main([command, "--model", "any.onnx", *arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_without_sensors_it_uses_the_simulated_rig_and_says_so_in_one_line(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, stderr = run(capsys, "--max-decisions", "4", "--rate-hz", "30")
    assert code == 0
    assert [line["seq"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["subset"] == "rgb+depth+ir"
    assert stderr == (
        "mars-edge: rgb, depth, ir from the simulated rig (seed 0), not from real sensors;"
        " name your own with --sensor NAME=SOURCE\n"
    )
    assert engine.closed


def test_quiet_leaves_stderr_empty(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--max-decisions", "1", "--quiet")[2] == ""


def test_a_sensor_left_out_is_missing_and_the_others_decide(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines, _ = run(capsys, "--sensor", "ir=sim:", "--max-decisions", "1")
    assert lines[0]["subset"] == "ir"
    assert lines[0]["modalities"]["depth"] == {"status": "missing", "reason": "not configured", "age_ms": None}
    assert engine.calls == [({"ir"}, set())]


@pytest.mark.parametrize("fault", ["off", "unplug", "stuck"])
def test_an_injected_fault_masks_the_sensor_and_it_comes_back(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path, fault: str
) -> None:
    # Quicker recovery than the default, so that the test is; longer silence, as test machines are busy.
    health = "good_samples = 3\ngood_s = 0.2\nfrozen_s = 0.2\nstale_s = 0.6\nlost_s = 5"
    table = "\n".join(
        f'[sensor.{name}]\nsource = "sim:"\n[sensor.{name}.health]\n{health}' for name in ("rgb", "depth", "ir")
    )
    (tmp_path / "sensors.toml").write_text(table)
    inject = f"depth={fault}@0.5s+1.2s"
    code, lines, _ = run(capsys, "--sensors", str(tmp_path / "sensors.toml"), "--inject", inject, "--max-seconds", "4")
    assert code == 0
    reason = {"off": "stale", "unplug": "disconnected", "stuck": "frozen"}[fault]
    depth = [line["modalities"]["depth"] for line in lines]
    masked = [line for line in lines if line["modalities"]["depth"]["status"] == "missing"]
    assert reason in {sensor["reason"] for sensor in depth}
    assert all("encode.depth" not in line["latency_ms"] and "depth" not in line["subset"] for line in masked)
    assert {line["experts"][0]["id"] for line in lines if line["subset"] == "rgb+ir"} == {1}
    back = [sensor["status"] for sensor in depth[[sensor["reason"] for sensor in depth].index(reason) :]]
    assert "ok" in back
    assert [line["seq"] for line in lines] == list(range(len(lines)))


def test_all_sensors_gone_abstains_and_goes_on(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    faults = [text for name in ("rgb", "depth", "ir") for text in ("--inject", f"{name}=unplug@0.3s")]
    code, lines, _ = run(capsys, *faults, "--max-seconds", "1")
    assert code == 0
    assert lines[-1]["verdict"] == "abstain"
    assert lines[-1]["subset"] == "none"
    assert lines[-1]["experts"] == []
    assert {m["reason"] for m in lines[-1]["modalities"].values()} == {"disconnected"}


def test_no_sensor_ever_ends_with_exit_code_3(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text('[sensor.rgb]\nsource = "97"\nhealth = {start_grace_s = 0.1}\n')
    code, lines, stderr = run(capsys, "--sensors", str(tmp_path / "s.toml"), "--rate-hz", "60")
    assert code == 3
    assert {line["verdict"] for line in lines} <= {"abstain"}
    assert stderr.splitlines()[-1] == "mars-edge: no sensor ever gave a sample (rgb: /dev/video97: no such device)"


def digits_files(folder: Path, seconds: float = 0.4) -> tuple[Path, Path]:
    values = np.random.default_rng(0).integers(-9999, 9999, round(8000 * seconds), np.int16)
    with wave.open(str(folder / "seven.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    cv2.imwrite(str(folder / "seven.png"), np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8))
    return folder / "seven.wav", folder / "seven.png"


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return use(monkeypatch, manifest(DIGITS, labels=("0", "1"), positive_label=None))


def test_a_short_wav_and_a_still_image_make_one_decision_and_the_stream_ends(
    digits: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sound, image = digits_files(tmp_path)
    code, lines, stderr = run(capsys, "--sensor", f"audio={sound}", "--sensor", f"image={image}")
    assert (code, stderr) == (0, "")
    assert [line["subset"] for line in lines] == ["audio+image"]


def test_a_long_wav_makes_decisions_until_it_ends(
    digits: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sound, image = digits_files(tmp_path, 1.35)
    code, lines, _ = run(capsys, "--sensor", f"audio={sound}", "--sensor", f"image={image}")
    assert code == 0
    assert 4 <= len(lines) <= 6
    assert {line["subset"] for line in lines} == {"audio+image"}


def test_predict_makes_one_decision_from_files(
    digits: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sound, image = digits_files(tmp_path)
    both = run(capsys, "--audio", str(sound), f"--image={image}", command="predict")
    assert (both[0], [line["subset"] for line in both[1]], both[2]) == (0, ["audio+image"], "")
    one = run(capsys, "--image", str(image), command="predict")
    assert [line["subset"] for line in one[1]] == ["image"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "predict: no file given; fake takes: --audio, --image"),
        (["--thermal", "x"], "predict: unknown argument '--thermal'; fake takes: --audio, --image"),
        (["--image", "no.png"], "predict: --image no.png: no such file"),
        (["--image"], "predict: --image: no such file"),
        (["seven.png"], "predict: unknown argument 'seven.png'; fake takes: --audio, --image"),
        ([f"--image={__file__}", "--image", __file__], "predict: --image is given twice; allowed: once"),
    ],
)
def test_a_wrong_predict_is_one_line_and_exit_2(
    digits: FakeEngine, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(capsys, *arguments, command="predict") == (2, [], f"mars-edge: {message}\n")


def test_a_model_the_rig_cannot_feed_says_which_sensors_it_needs(
    digits: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, stderr = run(capsys)
    assert (code, lines) == (2, [])
    assert stderr == (
        "mars-edge: fake takes audio, image, which the simulated rig has not:"
        " --sensor audio=SOURCE --sensor image=SOURCE\n"
    )


def test_wrong_channels_of_a_live_source_are_exit_2_at_its_first_sample(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, stderr = run(capsys, "--sensor", "rgb=sim:ir", "--quiet")
    assert (code, lines) == (2, [])
    assert stderr == (
        "mars-edge: sensor rgb (simulated ir (seed 0)): rgb: image has shape (112, 112), expected (H, W, 3)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sensor", "thermal=0"], "unknown sensor 'thermal'; this model has: rgb, depth, ir"),
        (
            ["--sensor", "rgb=sim:", "--sensor", "rgb=0"],
            "sensor 'rgb' is given twice; each of rgb, depth, ir may have one source",
        ),
        (["--sensors", "no.toml"], "--sensors no.toml: No such file or directory"),
        (["--inject", "lidar=off"], "--inject 'lidar=off': unknown sensor 'lidar'; sensors: rgb, depth, ir"),
        (["--max-decisions", "0"], "run: argument --max-decisions: 0 is not above 0"),
        (["--max-seconds", "soon"], "run: argument --max-seconds: invalid number value: 'soon'"),
        (["--on-missing", "hope"], "run: argument --on-missing: invalid choice: 'hope' (choose from "),
        (["--speed", "9"], "run: unrecognized arguments: --speed 9"),
        (["--seed", "-1"], "run: argument --seed: -1 is below 0"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, lines, stderr = run(capsys, "--quiet", *arguments)
    assert (code, lines) == (2, [])
    assert stderr.startswith(f"mars-edge: {message}")
    assert stderr.count("\n") == 1


def test_an_unknown_model_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--model", "no_such_model.pte"]) == 2
    assert capsys.readouterr().err.startswith("mars-edge: no model file no_such_model.pte; bundled models: ")


def test_a_policy_stricter_on_the_command_line_abstains(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines, _ = run(capsys, "--sensor", "ir=sim:", "--require", "depth|rgb", "--max-decisions", "1")
    assert (lines[0]["verdict"], lines[0]["reason"]) == ("abstain", "requires depth|rgb")


def test_uncertified_subsets_abstain_unless_unsafe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, manifest(operating_points={"ir": point(certified=False)}))
    arguments = ("--sensor", "ir=sim:", "--max-decisions", "1")
    assert run(capsys, *arguments)[1][0]["reason"] == "subset ir is not certified"
    assert run(capsys, *arguments, "--unsafe")[1][0]["verdict"] == "accept"


def test_on_a_terminal_stderr_shows_health_experts_and_the_simulated_truth(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert cli.main(["run", "--model", "any.onnx", "--max-decisions", "2", "--sensor", "ir=sim:"]) == 0
        shown = os.read(controller, 65536).decode()
    os.close(controller)
    for part in (
        "decision 0",
        "accept",
        "ir       ok",
        "depth    missing: not configured",
        "experts  #0 0.75  #3 0.25",
    ):
        assert part in shown
    assert "is on stage (the truth, not seen by the model)" in shown
    assert "stage" not in capsys.readouterr().out


# From here on: the program in its own process, with a real engine and a real artifact.


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    from tests.helpers.tiny_artifact import EXPERTS, SIZE, TinyModel, write_onnx

    model = TinyModel.create()
    rig = tuple(replace(modality, size=(SIZE, SIZE)) for modality in RIG)
    names = [modality.name for modality in rig]
    points = manifest(rig, experts=EXPERTS).operating_points
    assert [m.name for m in model.manifest().modalities] == names
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    write_onnx(model, path, manifest=replace(model.manifest(), modalities=rig, operating_points=points))
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mars_edge", *arguments]


@pytest.fixture
def environment() -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "runtime"))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def process(artifact: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    arguments = command("run", "--model", str(artifact), "--quiet")
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        yield running
        running.kill()


def test_a_real_artifact_makes_decisions_in_its_own_process(artifact: Path, environment: dict[str, str]) -> None:
    # Not the first few only: on a busy machine a sensor may come after the first decision.
    done = subprocess.run(
        command("run", "--model", str(artifact), "--max-decisions", "40"),
        capture_output=True, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 40
    full = [line for line in lines if line["subset"] == "rgb+depth+ir"]
    assert full
    assert all(len(line["experts"]) == 2 and line["verdict"] in ("accept", "reject") for line in full)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_stream_in_good_order(process: subprocess.Popen[str], number: signal.Signals) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().startswith('{"seq":0,')
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (0, "")
    assert all(json.loads(line) for line in stdout.splitlines())


def test_a_reader_that_leaves_ends_the_program_quietly(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(10) == 0


def test_the_runtime_imports_neither_torch_nor_a_library_it_does_not_use(environment: dict[str, str]) -> None:
    script = (
        "import sys, mars_runtime.commands.run; print([m for m in ('torch', 'cv2', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.skipif("face_antispoof.pte" not in bundled_models(), reason="face_antispoof.pte is not bundled yet")
def test_the_bundled_model_survives_a_depth_dropout(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(
            ["run", "--model", "face_antispoof.pte", "--inject", "depth=off@1s+1s", "--max-seconds", "4.5", "--quiet"]
        )
    except MarsEdgeError as error:  # pragma: no cover - the message is the point
        pytest.fail(str(error))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0
    masked = [line for line in lines if line["modalities"]["depth"]["reason"] in ("stale", "lost")]
    assert masked[0]["modalities"]["depth"]["age_ms"] <= 300
    assert all(line["subset"] == "rgb+ir" and "encode.depth" not in line["latency_ms"] for line in masked)
    assert lines[-1]["subset"] == "rgb+depth+ir"


def test_a_sensor_that_cannot_be_opened_says_why_at_once_and_a_short_run_without_a_sample_is_exit_3(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, errors = run(capsys, "--sensor", "rgb=/dev/video77", "--max-seconds", "1")
    assert code == 3 and lines
    assert errors == (
        "mars-edge: rgb: /dev/video77: no such device\n"
        "mars-edge: no sensor ever gave a sample (rgb: /dev/video77: no such device)\n"
    )


def test_sensors_that_make_no_sense_are_refused_in_an_application() -> None:
    import mars_runtime

    for sensors, message in (
        ({}, "sensors is empty; face_antispoof takes: rgb, depth, ir"),
        ({"rgb": 3.5}, "sensors['rgb'] is 3.5, expected a source such as 'sim:' or 0, or a driver"),
    ):
        with pytest.raises(UsageError) as caught:
            mars_runtime.open("face_antispoof.pte", sensors)  # type: ignore[arg-type]
        assert str(caught.value) == message


def test_a_recording_without_a_file_name_is_refused(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, errors = run(capsys, "--record", ".", "--max-seconds", "1")
    assert (code, lines) == (2, [])
    assert errors.endswith("mars-edge: '.' names no file to record into\n")
