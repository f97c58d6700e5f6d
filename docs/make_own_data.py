"""Writes a tiny data set of one's own, as `training/README.md` describes it: depth, inertial and voice, made up.

    python docs/make_own_data.py -o my_sensors
    mars-edge data check my_sensors
    mars-edge train training/recipes/own_data.toml --data my_sensors -o runs/mine

Six people, three classes that noise of three strengths tells apart; every fifth row was recorded without a microphone.
The numbers mean nothing: it shows the files, and is the place to put your own.
"""

from __future__ import annotations

import argparse
import csv
import sys
import wave
from pathlib import Path

import numpy as np

LABELS = ("idle", "walk", "fall")
PEOPLE = {"anna": "train", "bo": "train", "cem": "train", "dana": "train", "eli": "validation", "fay": "test"}
ROWS_EACH = 20
DATASET = """name = "my_sensors"
task = "classification"
labels = ["idle", "walk", "fall"]

[modality.depth]
kind = "image"
size = [64, 64]
range = [0, 4500]

[modality.inertial]
kind = "sequence"
channels = 6
length = 180
rate_hz = 50
range = [-20, 20]

[modality.voice]
kind = "audio"
rate_hz = 16000
window_s = 1.0
"""


def write_sample(folder: Path, name: str, strength: int, rng: np.random.Generator) -> None:
    """One file per modality: depth (64, 64) uint16 mm, inertial (T, 6) float, voice 16 kHz 16-bit mono."""
    np.save(folder / f"{name}-depth.npy", rng.integers(500, 1000 + 1000 * strength, (64, 64)).astype(np.uint16))
    np.save(
        folder / f"{name}-inertial.npy",
        rng.normal(0.0, 1.0 + 2.0 * strength, (rng.integers(160, 200), 6)).clip(-20, 20),
    )
    with wave.open(str(folder / f"{name}.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        sound = rng.normal(0.0, 300.0 * 4.0**strength, 15000).clip(-32768, 32767)
        file.writeframes(sound.astype("<i2").tobytes())


def main() -> int:
    """Write dataset.toml, samples.csv and the files; print the folder."""
    parser = argparse.ArgumentParser(
        description='Write a tiny made-up data set in the layout of `reader = "table"`.',
        epilog="example: python docs/make_own_data.py -o my_sensors",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet"
    )
    folder = parser.parse_args().output
    if folder.exists():
        print(f"make_own_data: {folder} exists already; give a new folder", file=sys.stderr)
        return 2
    folder.mkdir(parents=True)
    (folder / "dataset.toml").write_text(DATASET, encoding="utf-8")
    rng = np.random.default_rng(0)
    rows = [["id", "split", "label", "group", "depth", "inertial", "voice"]]
    for person, split in PEOPLE.items():
        for at in range(ROWS_EACH):
            strength, name = at % len(LABELS), f"{person}{at}"
            write_sample(folder, name, strength, rng)
            voice = "" if at % 5 == 4 else f"{name}.wav"
            rows.append([name, split, LABELS[strength], person, f"{name}-depth.npy", f"{name}-inertial.npy", voice])
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
