"""The script behind the documents' recorded run: its comparison refuses what a recording must not do."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("mcap")


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_recorded_run", repository / "docs" / "make_recorded_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def stream(*verdicts: str, depth: str | None = None) -> list[dict[str, Any]]:
    """Decisions 0.1 s apart; in those after the first one depth is missing for a reason, if any."""
    return [
        {
            "seq": seq,
            "t_utc": f"2026-01-01T00:00:00.{seq}00Z",
            "verdict": verdict,
            "reason": "requires depth" if verdict == "abstain" else None,
            "subset": "rgb+ir" if depth and seq else "rgb+depth+ir",
            "modalities": {"depth": {"status": "missing" if depth and seq else "ok", "reason": depth if seq else None}},
        }
        for seq, verdict in enumerate(verdicts)
    ]


def test_a_stretch_without_a_change_is_one_line(script: ModuleType) -> None:
    table = script.table(
        stream("accept", "accept", "accept", depth="stale"),
        stream("accept", "abstain", "abstain", depth="stale"),
    )
    assert table.splitlines()[2:] == [
        "| 0.00 | 1 | - | accept on rgb+depth+ir | accept on rgb+depth+ir |",
        "| 0.10 | 2 | depth (stale) | accept on rgb+ir | abstain: requires depth |",
    ]


@pytest.mark.parametrize(
    ("verified", "recorded", "replayed", "message"),
    [
        (
            {"decisions": 2, "equal": 1},
            stream("accept", "accept"),
            stream("accept", "abstain"),
            "2 decisions were printed, the replay says {'decisions': 2, 'equal': 1}",
        ),
        (
            {"decisions": 2, "equal": 2},
            stream("accept"),
            stream("abstain"),
            "1 decisions were printed, the replay says {'decisions': 2, 'equal': 2}",
        ),
        (
            {"decisions": 2, "equal": 2},
            stream("accept", "accept"),
            stream("accept"),
            "2 decisions were recorded, 1 made anew",
        ),
        (
            {"decisions": 2, "equal": 2},
            stream("accept", "accept"),
            stream("accept", "abstain", depth="stale"),
            "decision 1: a policy changed what is known of the sensors",
        ),
        (
            {"decisions": 2, "equal": 2},
            stream("accept", "abstain"),
            stream("accept", "accept"),
            "decision 1: was abstain, by a stricter policy accept",
        ),
        (
            {"decisions": 2, "equal": 2},
            stream("accept", "accept"),
            stream("accept", "accept"),
            "the stricter policy changed no decision: the fault was not seen",
        ),
    ],
)
def test_a_replay_that_breaks_its_promise_is_refused(
    script: ModuleType, verified: dict[str, Any], recorded: list[Any], replayed: list[Any], message: str
) -> None:
    with pytest.raises(RuntimeError) as error:
        script.check(verified, recorded, replayed)
    assert str(error.value) == message


def test_a_folder_that_is_there_is_never_written_into(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "docs" / "make_recorded_run.py"), "-o", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"make_recorded_run: {tmp_path} exists already; give a new folder\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_with_a_fault_is_made_again_bit_for_bit_and_decided_anew(
    repository: Path, script: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "recorded"
    command = [sys.executable, str(repository / "docs" / "make_recorded_run.py"), "-o", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (ended.returncode, ended.stderr) == (0, "")
    recorded, replayed = (script.decisions((folder / f"{name}ed.jsonl").read_text()) for name in ("record", "replay"))
    said = next(json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{"))
    assert said == {"decisions": len(recorded), "equal": len(recorded), "first": None, "cut": False}
    # The simulated fault is seen, and by the stricter policy nothing is decided without the sensor.
    without = [new for new in replayed if new["modalities"]["depth"]["status"] == "missing"]
    assert without and {new["verdict"] for new in without} == {"abstain"}
    assert script.table(recorded, replayed) in ended.stdout
