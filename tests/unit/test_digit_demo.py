"""The demonstration files are what the data sets hold, in the form a sensor gives them."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

from mars_edge.modality import Modality

PICTURE = Modality(name="image", kind="image", size=(8, 8), dtype="uint8", range=(0, 255))


@pytest.mark.parametrize(("digit", "name"), [(0, "zero"), (7, "seven")])
def test_the_files_hold_one_take_and_the_pixels_of_one_written_digit(
    digit: int, name: str, shared_data: Path, repository: Path, tmp_path: Path
) -> None:
    script = repository / "docs" / "make_digit_demo.py"
    command = [sys.executable, str(script), str(shared_data), "--digit", str(digit), "--take", "3", "-o", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == [str(tmp_path / f"{name}.wav"), str(tmp_path / f"{name}.png")]

    recordings = shared_data / "free-spoken-digit-dataset" / "recordings"
    assert (tmp_path / f"{name}.wav").read_bytes() == (recordings / f"{digit}_jackson_3.wav").read_bytes()
    with wave.open(str(tmp_path / f"{name}.wav")) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (8000, 1, 2)

    picture = cv2.imread(str(tmp_path / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    assert picture.shape == (64, 64)
    assert picture.dtype == np.uint8
    lines = (shared_data / "optdigits" / "optdigits.tes").read_text(encoding="ascii").splitlines()[1:]
    rows = [[int(cell) for cell in line.split(",")] for line in lines]
    drawn = [row[:64] for row in rows if row[64] == digit][3]
    assert np.abs(PICTURE.preprocess(picture).ravel() - np.array(drawn) / 16).max() < 0.002


def test_a_take_that_is_not_there_is_named(shared_data: Path, repository: Path, tmp_path: Path) -> None:
    script = repository / "docs" / "make_digit_demo.py"
    command = [sys.executable, str(script), str(shared_data), "--speaker", "nobody", "-o", str(tmp_path / "new")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "no recording" in ended.stderr
    assert "7_nobody_0.wav" in ended.stderr
    assert not (tmp_path / "new").exists()
