"""Writes one spoken and one written digit as files that `mars-edge run` can read.

    python docs/make_digit_demo.py ../shared/data -o digit-demo
    mars-edge run --model spoken_digits.pte --sensor audio=digit-demo/seven.wav --sensor image=digit-demo/seven.png

The take is of a speaker and the digit of a writer that the bundled model never saw in training (fold 0). The
8 x 8 pixels are enlarged by repetition: the model's own resizing averages them back to exactly the same 64 values.
The recordings are no part of this project (Free Spoken Digit Dataset, CC BY-SA 4.0; UCI Optical Recognition of
Handwritten Digits, CC BY 4.0).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE_PIXELS = 64


def written_digit(data: Path, digit: int, index: int) -> NDArray[np.uint8]:
    """The `index`-th written `digit` of the test writers, (64, 64) uint8 grey."""
    # The first line is a stray header.
    table = np.loadtxt(data / "optdigits" / "optdigits.tes", delimiter=",", skiprows=1, dtype=np.int64)
    rows = table[table[:, 64] == digit]
    pixels = np.rint(rows[index, :64].reshape(8, 8) * (255.0 / 16.0)).astype(np.uint8)
    return np.kron(pixels, np.ones((SIDE_PIXELS // 8, SIDE_PIXELS // 8), dtype=np.uint8))


def main() -> int:
    """Copy the take, draw the picture, print the two paths."""
    parser = argparse.ArgumentParser(
        description="Write one spoken and one written digit as .wav and .png.",
        epilog="example: python docs/make_digit_demo.py ../shared/data --digit 7 -o digit-demo",
    )
    parser.add_argument("data", type=Path, help="folder with free-spoken-digit-dataset and optdigits")
    parser.add_argument("--digit", type=int, default=7, choices=range(10))
    parser.add_argument("--speaker", default="jackson", help="george and jackson are the test speakers of fold 0")
    parser.add_argument("--take", type=int, default=0, help="which of the 50 takes, and which written digit")
    parser.add_argument("-o", "--output", type=Path, default=Path("digit-demo"), help="folder for the two files")
    options = parser.parse_args()

    recordings = options.data / "free-spoken-digit-dataset" / "recordings"
    take = recordings / f"{options.digit}_{options.speaker}_{options.take}.wav"
    if not take.is_file():
        parser.error(f"no recording {take}")
    options.output.mkdir(parents=True, exist_ok=True)
    sound = options.output / f"{NAMES[options.digit]}.wav"
    picture = sound.with_suffix(".png")
    shutil.copyfile(take, sound)
    if not cv2.imwrite(str(picture), written_digit(options.data, options.digit, options.take)):
        parser.error(f"cannot write {picture}")
    print(sound)
    print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
