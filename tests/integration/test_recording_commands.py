"""`record`, `replay`, `inject` and `run --record` as a user meets them, and the runtime inside an application."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap_protobuf")

import mars_runtime
from mars_edge import cli
from mars_edge.errors import UsageError
from mars_runtime import engines
from mars_runtime.commands import options
from mars_runtime.recording.reader import open_recording
from tests.fake_engine import FakeEngine, manifest

Lines = list[dict[str, Any]]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine(manifest())
    monkeypatch.setattr(options, "open_engine", lambda *args, **kwargs: fake)
    monkeypatch.setattr(engines, "open_engine", lambda *args, **kwargs: fake)
    return fake


def mars_edge(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, Lines, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


MODEL = ("--model", "any.onnx")


def without_latency(lines: Lines) -> Lines:
    return [{key: value for key, value in line.items() if key != "latency_ms"} for line in lines]


def test_a_run_that_is_recorded_is_replayed_line_for_line_and_verified(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "run.mcap"
    fault = ("--inject", "depth=off@0.2s+1s")
    code, lines, stderr = mars_edge(capsys, "run", *MODEL, "--max-seconds", "1.5", "--record", path, *fault)
    assert (code, stderr.splitlines()[1]) == (0, f"mars-edge: recorded {path} ({len(lines)} decisions)")
    assert len({line["subset"] for line in lines}) > 1
    code, again, stderr = mars_edge(capsys, "replay", path, *MODEL, "--fast")
    assert (code, stderr) == (0, "")
    assert without_latency(again) == without_latency(lines)
    code, (summary,), _ = mars_edge(capsys, "replay", path, *MODEL, "--verify")
    assert (code, summary) == (0, {"decisions": len(lines), "equal": len(lines), "first": None, "cut": False})


def test_verify_fails_when_the_engine_answers_otherwise(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "run.mcap"
    mars_edge(capsys, "run", *MODEL, "--max-decisions", "5", "--record", path)
    engine.logits = np.array([5.0, 0.0], np.float32)
    code, (summary,), stderr = mars_edge(capsys, "replay", path, *MODEL, "--verify")
    assert (code, summary["equal"]) == (1, 0)
    assert stderr.startswith(f"mars-edge: {path}: 5 of 5 decisions differ; first 0: outcome.label was ")


def test_verify_refuses_another_model_and_sensors_alone(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mars_edge(capsys, "run", *MODEL, "--max-decisions", "3", "--record", tmp_path / "run.mcap")
    engine.manifest = manifest(name="other")
    code, _, stderr = mars_edge(capsys, "replay", tmp_path / "run.mcap", *MODEL, "--verify")
    assert (code, stderr) == (
        2,
        f"mars-edge: {tmp_path}/run.mcap: was decided by another model (fake) than any.onnx; "
        "without --verify it is decided on anew\n",
    )
    assert len(mars_edge(capsys, "replay", tmp_path / "run.mcap", *MODEL, "--fast")[1]) == 3
    mars_edge(capsys, "record", tmp_path / "alone.mcap", "--sensor", "ir=sim:", "--max-seconds", "0.3")
    code, _, stderr = mars_edge(capsys, "replay", tmp_path / "alone.mcap", *MODEL, "--verify")
    assert (code, stderr) == (
        2, f"mars-edge: {tmp_path}/alone.mcap: holds sensors alone, so there is no decision to compare with\n",
    )  # fmt: skip


def test_a_replay_takes_as_long_as_the_run_unless_it_is_fast(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mars_runtime.commands import replay

    mars_edge(capsys, "run", *MODEL, "--max-decisions", "8", "--record", tmp_path / "run.mcap")
    slept: list[float] = []

    class Stop:
        def set(self) -> None:
            pytest.fail("no signal was sent")

        def is_set(self) -> bool:
            return False

        def wait(self, seconds: float) -> None:
            slept.append(seconds)

    monkeypatch.setattr(replay.threading, "Event", Stop)
    mars_edge(capsys, "replay", tmp_path / "run.mcap", *MODEL)
    ticks = [entry.readings.end_s for entry in open_recording(tmp_path / "run.mcap").entries()]  # type: ignore[union-attr]
    # Nothing sleeps here, so each wait is about the whole time since the first decision.
    assert slept == pytest.approx([at_s - ticks[0] for at_s in ticks], abs=0.2)
    slept.clear()
    mars_edge(capsys, "replay", tmp_path / "run.mcap", *MODEL, "--fast")
    assert slept == []


def test_sensors_alone_are_recorded_losslessly_and_feed_a_model_later(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "desk.mcap"
    sensors = [part for name in ("rgb", "depth", "ir") for part in ("--sensor", f"{name}=sim:")]
    code, lines, stderr = mars_edge(capsys, "record", path, *sensors, "--max-seconds", "1", "--seed", "7")
    assert (code, lines) == (0, [])
    assert re.fullmatch(rf"mars-edge: recorded {path} \(\d+ deliveries of rgb, depth, ir\)\n", stderr)
    from mars_edge.rig import Rig

    rig = Rig(seed=7, rate_hz=15.0)
    samples = [(e.name, e.delivery.sample) for e in open_recording(path).entries() if e.delivery.sample]  # type: ignore[union-attr]
    assert {name for name, _ in samples} == {"rgb", "depth", "ir"}
    for name, sample in samples:
        assert np.array_equal(sample.frame.data, rig.frame(name, sample.frame.sequence / 15.0))
    _, made, _ = mars_edge(capsys, "replay", path, *MODEL, "--fast", "--rate-hz", "10")
    # A starved machine may have rendered one of them late now and then.
    assert "rgb+depth+ir" in {line["subset"] for line in made}


def test_faults_added_to_a_recording_touch_their_sensor_alone(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sensors = [part for name in ("rgb", "ir") for part in ("--sensor", f"{name}=sim:")]
    mars_edge(capsys, "record", tmp_path / "a.mcap", *sensors, "--max-seconds", "2")
    broken = ("--recording", tmp_path / "a.mcap", "--inject", "ir=off@0.5s", "--inject", "rgb=black@1s+0.3s")
    assert mars_edge(capsys, "inject", tmp_path / "b.mcap", *broken)[0] == 0
    before, after = (
        {
            name: [
                entry.delivery.sample
                for entry in open_recording(tmp_path / file).entries()
                if entry.name == name and entry.delivery.sample  # type: ignore[union-attr]
            ]
            for name in ("rgb", "ir")
        }
        for file in ("a.mcap", "b.mcap")
    )
    begin_s = min(samples[0].at_s for samples in before.values())
    for was, now in zip(before["rgb"], after["rgb"], strict=True):
        black, at_s = not now.frame.data.any(), was.at_s - begin_s
        assert black or now.frame.data.tobytes() == was.frame.data.tobytes()
        assert black if 1.05 < at_s < 1.25 else True
        assert not black if at_s < 0.95 or at_s > 1.35 else True
    assert 0 < sum(not sample.frame.data.any() for sample in after["rgb"]) < len(after["rgb"])
    assert 0 < len(after["ir"]) < len(before["ir"])
    assert after["ir"][-1].at_s < before["ir"][0].at_s + 0.6
    _, lines, _ = mars_edge(capsys, "replay", tmp_path / "b.mcap", *MODEL, "--fast")
    assert lines[-1]["modalities"]["ir"]["reason"] in ("stale", "lost")


@pytest.mark.parametrize(("fault", "sensor"), [("ir=off@99s", "ir"), ("rgb=black@1.5s", "rgb")])
def test_a_fault_after_the_end_of_a_recorded_sensor_is_refused_with_the_recordings_length(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, fault: str, sensor: str
) -> None:
    ends = ("--inject", "rgb=off@0.5s", "--max-seconds", "2")
    mars_edge(capsys, "inject", tmp_path / "a.mcap", "--sensor", "ir=sim:", "--sensor", "rgb=sim:", *ends)
    last_s = {
        name: [e.at_s for e in open_recording(tmp_path / "a.mcap").entries() if e.name == name]  # type: ignore[union-attr]
        for name in ("ir", "rgb")
    }
    begin_s = min(times[0] for times in last_s.values())
    code, _, stderr = mars_edge(
        capsys, "inject", tmp_path / "b.mcap", "--recording", tmp_path / "a.mcap", "--inject", fault
    )
    assert (code, stderr) == (
        2,
        f"mars-edge: --inject {fault}: would break nothing: {tmp_path}/a.mcap is {last_s['ir'][-1] - begin_s:.2f} s "
        f"long, and {sensor} ends at {last_s[sensor][-1] - begin_s:.2f} s\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.mcap"]


@pytest.mark.parametrize("fault", ["rgb=off@0.7s+0.1s", "rgb=off@0.1s+0s"])
def test_a_fault_that_meets_no_sample_is_refused_and_leaves_no_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, fault: str
) -> None:
    gap = ("--inject", "rgb=off@0.5s+0.5s", "--max-seconds", "2")
    mars_edge(capsys, "inject", tmp_path / "a.mcap", "--sensor", "ir=sim:", "--sensor", "rgb=sim:", *gap)
    entries = list(open_recording(tmp_path / "a.mcap").entries(only=["rgb"]))
    count = sum(entry.delivery.sample is not None for entry in entries)  # type: ignore[union-attr]
    both = ("--inject", "ir=off@0.5s", "--inject", fault)
    code, _, stderr = mars_edge(capsys, "inject", tmp_path / "b.mcap", "--recording", tmp_path / "a.mcap", *both)
    assert (code, stderr) == (
        2,
        f"mars-edge: --inject {fault}: would break nothing: none of the {count} samples of rgb in {tmp_path}/a.mcap "
        "is of that time\n",
    )
    assert count > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.mcap"]


def cut_before_the_first_decision(path: Path) -> Path:
    """A recording as a kill before its first whole chunk leaves it: the head, and nothing else."""
    from mcap.stream_reader import StreamReader

    with path.open("rb") as file:
        for record in StreamReader(file).records:
            if type(record).__name__ == "Metadata":
                break
        end = file.tell()
    cut = path.with_name("cut.mcap.partial")
    cut.write_bytes(path.read_bytes()[:end])
    return cut


@pytest.mark.parametrize("arguments", [["--fast"], [], ["--verify"]])
def test_a_recording_without_a_decision_is_refused_with_what_it_holds(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]
) -> None:
    mars_edge(capsys, "run", *MODEL, "--max-decisions", "3", "--record", tmp_path / "run.mcap")
    cut = cut_before_the_first_decision(tmp_path / "run.mcap")
    code, lines, stderr = mars_edge(capsys, "replay", cut, *MODEL, *arguments)
    assert (code, lines, stderr) == (
        2,
        [],
        f"mars-edge: {cut}: holds no decision, so there is nothing to make again (samples: 0 of rgb, 0 of depth, "
        "0 of ir); it ends in the middle, as a killed recording does\n",
    )


def test_sensors_that_gave_nothing_are_said_to_have_given_nothing(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    silent = ("--sensor", "ir=sim:", "--inject", "ir=off@0s", "--max-seconds", "0.3")
    mars_edge(capsys, "inject", tmp_path / "a.mcap", *silent)
    code, lines, stderr = mars_edge(capsys, "replay", tmp_path / "a.mcap", *MODEL, "--fast")
    assert (code, lines, stderr) == (
        2, [], f"mars-edge: {tmp_path}/a.mcap: holds nothing to decide on (samples: 0 of ir)\n",
    )  # fmt: skip
    code, lines, stderr = mars_edge(capsys, "run", *MODEL, "--sensor", f"ir=replay:{tmp_path}/a.mcap#ir")
    assert (code, lines, stderr) == (
        2, [], f"mars-edge: --sensor ir=replay:{tmp_path}/a.mcap#ir: the recording holds nothing of ir\n",
    )  # fmt: skip


def test_a_replay_decides_by_a_stricter_policy_where_it_is_asked_to(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "run.mcap"
    fault = ("--inject", "depth=off@0.3s")
    _, lines, _ = mars_edge(capsys, "run", *MODEL, "--max-seconds", "1.2", "--record", path, *fault)
    _, again, _ = mars_edge(capsys, "replay", path, *MODEL, "--fast", "--require", "depth")
    assert {line["subset"] for line in lines} == {"rgb+depth+ir", "rgb+ir"}
    for was, now in zip(lines, again, strict=True):
        changed = {key for key in was if was[key] != now[key] and key != "latency_ms"}
        assert ("verdict" in changed) == ("depth" not in was["subset"])
        assert changed <= {"verdict", "label", "score", "reason", "alarm"}


def test_a_recording_with_a_model_takes_the_region_and_the_maps_of_a_run(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine.manifest = manifest(task="segmentation", labels=("sky", "sea"), positive_label=None)
    engine.logits = np.zeros((2, 112, 112), np.float32)
    code, lines, _ = mars_edge(
        capsys, "record", tmp_path / "a.mcap", *MODEL, "--maps", tmp_path / "maps", "--max-seconds", "0.4"
    )
    assert (code, lines) == (0, [])
    assert "map-00000000.png" in [path.name for path in (tmp_path / "maps").iterdir()]
    mars_edge(capsys, "record", tmp_path / "b.mcap", *MODEL, "--region", "face", "--max-seconds", "0.4")
    settings = [open_recording(tmp_path / name).session.settings for name in ("a.mcap", "b.mcap")]
    assert [each is not None and each.region is not None for each in settings] == [False, True]


def test_a_model_that_gets_no_sample_at_all_records_and_ends_with_the_reason(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ("--sensor", "ir=/dev/video97", "--max-seconds", "0.3")
    code, lines, stderr = mars_edge(capsys, "record", tmp_path / "a.mcap", *MODEL, *given)
    assert (code, lines) == (3, [])
    assert stderr.splitlines()[0] == "mars-edge: ir: /dev/video97: no such device"
    last = "mars-edge: no sensor ever gave a sample (ir: /dev/video97: no such device)"
    assert stderr.splitlines()[-1] == last


def test_an_application_names_its_folder(engine: FakeEngine) -> None:
    with pytest.raises(UsageError) as caught:
        mars_runtime.open("any.onnx", flight_recorder="")
    assert str(caught.value) == "flight_recorder is '', which names no folder"
    assert engine.closed


def test_sensors_can_be_broken_while_they_are_recorded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("--sensor", "ir=sim:", "--inject", "ir=black@0s", "--max-seconds", "0.5")
    assert mars_edge(capsys, "inject", tmp_path / "b.mcap", *arguments)[0] == 0
    entries = list(open_recording(tmp_path / "b.mcap").entries())
    assert entries
    assert not any(entry.delivery.sample.frame.data.any() for entry in entries if entry.delivery.sample)  # type: ignore[union-attr]


def test_recorded_sensors_feed_a_run_like_live_ones(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.mcap"
    mars_edge(capsys, "record", path, "--sensor", "rgb=sim:", "--sensor", "ir=sim:", "--max-seconds", "1")
    played = ("--sensor", f"rgb=replay:{path}#rgb", "--sensor", f"ir=replay:{path}#ir", "--quiet")
    code, lines, stderr = mars_edge(capsys, "run", *MODEL, *played)
    assert (code, stderr) == (0, "")
    assert len(lines) > 5
    assert "rgb+ir" in {line["subset"] for line in lines}


def test_a_signal_ends_a_recording_whole(tmp_path: Path, repository: Path) -> None:
    folders = [str(repository / part) for part in (".", "runtime")]
    arguments = [sys.executable, "-m", "mars_edge", "record", str(tmp_path / "a.mcap"), "--sensor", "ir=sim:"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as process:
        end_s = time.monotonic() + 30.0
        while not (tmp_path / "a.mcap.partial").exists() and time.monotonic() < end_s:
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert stderr.startswith(f"mars-edge: recorded {tmp_path}/a.mcap (")
    recording = open_recording(tmp_path / "a.mcap")
    assert list(recording.entries())
    assert not recording.cut


def test_a_file_is_recorded_to_its_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import cv2

    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((6, 8), 1000 * index, np.uint16))
    code, _, _ = mars_edge(capsys, "record", tmp_path / "d.mcap", "--sensor", f"depth={tmp_path}/*.png")
    assert code == 0
    entries = [e for e in open_recording(tmp_path / "d.mcap").entries() if e.delivery.sample]  # type: ignore[union-attr]
    assert [int(e.delivery.sample.frame.data.max()) for e in entries] == [0, 1000, 2000, 3000]  # type: ignore[union-attr]
    assert open_recording(tmp_path / "d.mcap").session.modalities["depth"].dtype == "uint16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["record", "x.mcap"],
            "record: no sensor is named; give --sensor NAME=SOURCE, or --model for the sensors of a model",
        ),
        (
            ["record", "x.mcap", "--sensor", "sonar=sim:"],
            "--sensor sonar=sim:: the simulated rig has no 'sonar'; it has: ",
        ),
        (["record", "no/x.mcap", "--sensor", "ir=sim:"], "no/x.mcap: there is no folder no"),
        (["replay", "no.mcap", "--model", "any.onnx"], "no.mcap: no such recording"),
        (["inject", "x.mcap", "--sensor", "ir=sim:"], "inject: no fault is given, e.g. --inject depth=off@1s+2s"),
        (["inject", "x.mcap", "--inject", "ir=off"], "inject: give either --recording FILE or --sensor NAME=SOURCE"),
        (
            ["run", "--model", "any.onnx", "--maps", "m"],
            "--maps: fake answers with a label (classification), not with a map",
        ),
        (["run", "--model", "any.onnx", "--record", "no/x.mcap"], "no/x.mcap: there is no folder no"),
        (
            ["run", "--model", "any.onnx", "--flight-recorder", ""],
            "run: argument --flight-recorder: '' names no folder",
        ),
        (
            ["run", "--model", "any.onnx", "--flight-recorder", "no/where"],
            "--flight-recorder no/where: no folder no",
        ),
        (["run", "--model", "any.onnx", "--maps", " "], "run: argument --maps: ' ' names no folder"),
        (
            ["run", "--model", "any.onnx", "--inject", "ir=off@3s", "--max-seconds", "2"],
            "--inject ir=off@3s: would break nothing, since --max-seconds is 2",
        ),
        (
            ["inject", "x.mcap", "--sensor", "ir=sim:", "--inject", "ir=off@3s", "--max-seconds", "3"],
            "--inject ir=off@3s: would break nothing, since --max-seconds is 3",
        ),
        (
            ["inject", "x.mcap", "--recording", "a.mcap", "--inject", "ir=off", "--max-seconds", "3"],
            "inject: --max-seconds has no meaning with --recording, which is taken whole",
        ),
        (
            ["record", "x.mcap", "--sensor", "ir=sim:", "--rate-hz", "5"],
            "record: --rate-hz has no meaning without --model: nothing is decided",
        ),
        (
            ["record", "x.mcap", "--sensor", "ir=sim:", "--region", "face"],
            "record: --region has no meaning without --model: nothing is decided",
        ),
        (
            ["record", "x.mcap", "--model", "any.onnx", "--calibration", "c.toml"],
            "--calibration has no meaning without --region face",
        ),
        (
            ["record", "x.mcap", "--model", "any.onnx", "--maps", "m"],
            "--maps: fake answers with a label (classification), not with a map",
        ),
        (
            ["replay", "a.mcap", "--model", "any.onnx", "--verify", "--rate-hz", "5"],
            "replay: --rate-hz has no meaning with --verify: what was recorded is decided as it was",
        ),
        (
            ["replay", "a.mcap", "--model", "any.onnx", "--verify", "--require", "ir"],
            "replay: --require has no meaning with --verify: what was recorded is decided as it was",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, lines, stderr = mars_edge(capsys, *arguments)
    assert (code, lines) == (2, [])
    assert stderr.startswith(f"mars-edge: {message}")
    assert stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_segmentation_writes_the_map_and_an_overlay_of_each_decision(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import cv2

    engine.manifest = manifest(task="segmentation", labels=("sky", "sea", "sand"), positive_label=None)
    engine.logits = np.zeros((3, 112, 112), np.float32)
    engine.logits[2, :56] = 1.0
    _, lines, _ = mars_edge(capsys, "run", *MODEL, "--max-decisions", "3", "--maps", tmp_path / "maps")
    assert [line["shares"] for line in lines] == [{"sky": 0.5, "sea": 0.0, "sand": 0.5}] * 3
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == [f"{kind}-0000000{seq}.png" for kind in ("map", "overlay") for seq in range(3)]
    stored = cv2.imread(str(tmp_path / "maps" / "map-00000000.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(stored, engine.logits.argmax(axis=0))
    assert cv2.imread(str(tmp_path / "maps" / "overlay-00000000.png")).shape == (112, 112, 3)


def test_an_application_opens_a_stream_by_names_and_closes_the_engine(engine: FakeEngine, tmp_path: Path) -> None:
    with mars_runtime.open("any.onnx", {"rgb": "sim:", "ir": "sim:"}, record=tmp_path / "run.mcap") as stream:
        for decision in stream:
            assert set(decision.modalities) == {"rgb", "depth", "ir"}
            if decision.seq == 3:
                break
    assert engine.closed
    assert len(list(open_recording(tmp_path / "run.mcap").entries())) == 4


def test_an_application_may_only_tighten(monkeypatch: pytest.MonkeyPatch) -> None:
    from mars_edge.manifest import Policy

    fake = FakeEngine(manifest(policy=Policy(on_missing="abstain")))
    monkeypatch.setattr(engines, "open_engine", lambda *args, **kwargs: fake)
    with pytest.raises(UsageError, match="--on-missing continue is laxer than the model's abstain"):
        mars_runtime.open("any.onnx", on_missing="continue")
    assert fake.closed


def test_the_example_of_the_readme_runs(repository: Path) -> None:
    """Every Python block of README.md that opens a stream runs as it stands, with the bundled model."""
    readme = (repository / "README.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "mars_runtime.open" in block]
    if not blocks:
        pytest.skip("README.md has no python block with mars_runtime.open yet")
    for block in blocks:
        code = len([line for line in block.splitlines() if line.strip()])
        assert code <= 10
        done = subprocess.run(
            [sys.executable, "-c", block], capture_output=True, text=True, timeout=60, check=False, cwd=repository
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


def test_losing_a_sensor_that_liveness_depends_on_raises_the_alarm_and_holds_decisions(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = ("--require", "depth|ir", "--latch", "30", "--quiet", "--sensor", "rgb=sim:", "--sensor", "depth=sim:")
    broken = ("--sensor", "ir=sim:", "--inject", "depth=unplug@0.4s", "--max-seconds", "1.2")
    _, lines, _ = mars_edge(capsys, "run", *MODEL, *watched, *broken)
    assert lines[0]["alarm"] == []
    held = [line for line in lines if "depth" in line["alarm"]]
    assert held
    assert {line["verdict"] for line in held} == {"abstain"}
    # On a starved machine another sensor may be late as well.
    assert all(re.fullmatch(r"depth.* went missing: no decision for 30 s", line["reason"]) for line in held)
