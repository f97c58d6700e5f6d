"""The example of "bring your own data" is a data set that the check calls usable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mars_training.commands import data as data_command


def write(repository: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    script = repository / "docs" / "make_own_data.py"
    return subprocess.run([sys.executable, str(script), "-o", str(folder)], capture_output=True, text=True, timeout=60)


def test_the_example_is_usable_and_says_which_rows_lack_a_microphone(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my_sensors"
    assert write(repository, folder).stdout.split() == [str(folder)]
    assert data_command.main(["check", str(folder), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: split["rows"] for name, split in found["splits"].items()} == {
        "train": 80,
        "validation": 20,
        "test": 20,
    }
    assert found["splits"]["train"]["lacking"] == {"depth": 0, "inertial": 0, "voice": 16}


def test_the_example_never_writes_into_a_folder_that_is_there(repository: Path, tmp_path: Path) -> None:
    ended = write(repository, tmp_path)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"make_own_data: {tmp_path} exists already; give a new folder\n",
    )
    assert list(tmp_path.iterdir()) == []
