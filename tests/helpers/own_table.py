"""A tiny data set of one's own: depth images, an inertial sequence, a vector, voice and a text; some rows lack some.

What is in a file follows from its label, so that a small network can tell the classes apart.
"""

from __future__ import annotations

import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

LABELS = ("idle", "walk", "fall")
MODALITIES = ("depth", "inertial", "scene", "voice", "note")
HEADER = "id,split,label,group," + ",".join(MODALITIES)
TOML = """
name = "my_sensors"
task = "classification"
labels = ["idle", "walk", "fall"]
[modality.depth]
kind = "image"
size = [16, 16]
channels = 2
channels_first = true
range = [0, 4500]
[modality.inertial]
kind = "sequence"
channels = 6
length = 20
rate_hz = 50
range = [-20, 20]
[modality.scene]
kind = "vector"
length = 5
[modality.voice]
kind = "audio"
rate_hz = 8000
window_s = 0.5
mel_bands = 16
[modality.note]
kind = "text"
length = 8
vocabulary = 256
"""
COUNTS = {"train": 18, "validation": 9, "test": 9}
PERSONS = {"train": ("anna", "bo"), "validation": ("cem",), "test": ("dana",)}


def write(folder: Path) -> Path:
    """18 training rows of two persons, 9 and 9 of one other each; every third row lacks one modality or more."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.toml").write_text(TOML, encoding="utf-8")
    rows = [_row(folder, split, at) for split, count in COUNTS.items() for at in range(count)]
    write_csv(folder, [HEADER, *map(",".join, rows)])
    return folder


def more_rows(folder: Path, *, split: str, count: int) -> None:
    """Add `count` complete rows more0, more1, ... to a split, of a person of their own."""
    lines = read_csv(folder)
    for at in range(count):
        rng = np.random.default_rng([77, at])
        label, name = at % 3, f"more{at}"
        cells = [
            save(folder / f"depth/{name}.npy", rng.integers(0, 900, (2, 12, 14)).astype("u2") + 1500 * label),
            save(folder / f"inertial/{name}.npy", rng.normal(5.0 * label, 1.0, (30, 6))),
            save(folder / f"scene/{name}.npy", rng.random(5) * 0.3 + 0.3 * label),
            write_wav(folder / f"voice/{name}.wav", rng.normal(0.0, 100.0 * 10.0**label, 3000)),
        ]
        paths = [str(cell).removeprefix(f"{folder}/") for cell in cells]
        lines.append(",".join([name, split, LABELS[label], "more", *paths, f"{LABELS[label]} more {at}"]))
    write_csv(folder, lines)


def write_csv(folder: Path, lines: Sequence[str], *, newline: str = "\n", start: str = "", end: str = "\n") -> None:
    """samples.csv from its lines, byte for byte."""
    (folder / "samples.csv").write_bytes((start + newline.join(lines) + end).encode("utf-8"))


def read_csv(folder: Path) -> list[str]:
    """The lines of samples.csv, the header first."""
    return (folder / "samples.csv").read_text(encoding="utf-8").splitlines()


def replace_cell(folder: Path, row: int, column: str, value: str) -> None:
    """Another value in one cell; rows count from 0 below the header."""
    lines = read_csv(folder)
    cells = lines[row + 1].split(",")
    cells[lines[0].split(",").index(column)] = value
    lines[row + 1] = ",".join(cells)
    write_csv(folder, lines)


def _row(folder: Path, split: str, at: int) -> list[str]:
    label, name = at % 3, f"{split}{at}"
    rng = np.random.default_rng([len(split), at])
    cells = {
        "depth": save(folder / f"depth/{name}.npy", rng.integers(0, 900, (2, 12, 14)).astype("u2") + 1500 * label),
        "inertial": _inertial(folder / "inertial" / name, rng.normal(5.0 * label, 1.0, (30 + at, 6)), at),
        "scene": save(folder / f"scene/{name}.npy", rng.random(5) * 0.3 + 0.3 * label),
        "voice": write_wav(folder / f"voice/{name}.wav", rng.normal(0.0, 100.0 * 10.0**label, 3000 + 10 * at)),
        "note": f"{LABELS[label]} number {at}",
    }
    lacking = {4: ("note",), 7: ("depth", "voice")}.get(at % 9, ())
    person = PERSONS[split][at % len(PERSONS[split])]
    found = ["" if m in lacking else str(cells[m]).removeprefix(f"{folder}/") for m in MODALITIES]
    return [name, split, LABELS[label], person, *found]


def _inertial(stem: Path, rows: NDArray[np.float64], at: int) -> Path:
    """Half of them as .csv, half of these with a header."""
    if at % 2:
        return save(stem.with_suffix(".npy"), rows)
    head = ["ax,ay,az,gx,gy,gz"] if at % 4 else []
    path = stem.with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*head, *(",".join(f"{v:.4f}" for v in row) for row in rows)]), encoding="utf-8")
    return path


def save(path: Path, values: NDArray[Any]) -> Path:
    """A .npy file, or a picture where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        assert cv2.imwrite(str(path), values)
    return path


def write_wav(path: Path, samples: NDArray[np.float64], *, rate_hz: int = 8000, channels: int = 1) -> Path:
    """A 16-bit .wav file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.clip(samples, -32768, 32767).astype("<i2").tobytes())
    return path


def segmentation(folder: Path, *, values: Mapping[str, NDArray[Any]] | None = None) -> Path:
    """Four rows of two images of one size and a label map: class 0 on the left, 1 on the right, the top row ignored."""
    (folder / "dataset.toml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.toml").write_text(
        'name = "roads"\ntask = "segmentation"\nlabels = ["road", "grass"]\n'
        '[modality.rgb]\nkind = "image"\nsize = [8, 10]\nchannels = 3\n'
        '[modality.nir]\nkind = "image"\nsize = [8, 10]\n',
        encoding="utf-8",
    )
    lines = ["id,split,label,rgb,nir"]
    for at, split in enumerate(("train", "train", "validation", "test")):
        labels = np.repeat([[0] * 10 + [1] * 10], 16, axis=0).astype(np.uint8)
        labels[0] = 255
        labels = (values or {}).get(f"r{at}", labels)
        rng = np.random.default_rng(at)
        save(folder / f"gt/{at}.png", labels)
        save(folder / f"rgb/{at}.png", rng.integers(0, 256, (16, 20, 3), dtype=np.uint8))
        save(folder / f"nir/{at}.jpg", rng.integers(0, 256, (16, 20), dtype=np.uint8))
        lines.append(f"r{at},{split},gt/{at}.png,rgb/{at}.png,nir/{at}.jpg")
    write_csv(folder, lines)
    return folder
