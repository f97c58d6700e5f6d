"""A training killed with SIGKILL, at any moment and as often as one likes, ends with the weights of a whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "helpers" / "killed_training.py"
RESULTS = ("last.safetensors", "selected.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(SCRIPT), str(folder)]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def numbers(run: Path) -> Any:
    """What metrics.json says, but for the time it took."""
    metrics = json.loads((run / "metrics.json").read_text())
    for report in [*metrics["history"], metrics["selected"], metrics["last"]]:
        for timed in ("seconds", "eta_s", "samples_per_s"):
            del report[timed]
    return metrics


def test_a_run_killed_at_random_moments_ends_as_a_whole_one(trained: tuple[Path, dict[str, int]]) -> None:
    folder, kills = trained
    assert kills["random"] >= 5
    assert sorted(p.name for p in (folder / "random").iterdir()) == sorted(p.name for p in (folder / "whole").iterdir())
    assert numbers(folder / "random") == numbers(folder / "whole")
    for name in RESULTS:
        assert (folder / "random" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_a_run_killed_around_the_writing_of_any_of_its_files_ends_as_a_whole_one(
    trained: tuple[Path, dict[str, int]],
) -> None:
    folder, kills = trained
    # run.json, then two epochs of three resume files within, and at the end four files, or three: none is selected.
    assert kills["files"] >= 1 + 2 * (3 + 3)
    runs = [folder / str(number) for number in range(1, kills["files"] + 1)]
    for run in runs:
        assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in (folder / "whole").iterdir())
        assert numbers(run) == numbers(folder / "whole")
        for name in RESULTS:
            assert (run / name).read_bytes() == (folder / "whole" / name).read_bytes(), run.name
