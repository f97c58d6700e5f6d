"""Spoken and written digits: real recordings and real pen strokes, paired at random within a class.

Sources: Free Spoken Digit Dataset (Jakobovski, CC BY-SA 4.0), `{digit}_{speaker}_{take}.wav`, 8 kHz int16
mono; UCI Optical Recognition of Handwritten Digits, rows of 64 pixels in 0..16 and a label, `.tra` and
`.tes` from disjoint writers. The pairing is synthetic and fixed by the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.columns import RawFiles, RawRows
from mars_training.data.files import read_wav
from mars_training.data.listing import Entry, Listing
from mars_training.data.split import Source, Split, preprocess_all
from mars_training.recipe import DataRecipe, SplitName

TEST_SPEAKERS = (("george", "jackson"), ("lucas", "nicolas"), ("theo", "yweweler"))
_SPEAKERS = tuple(sorted(name for pair in TEST_SPEAKERS for name in pair))
_RATE_HZ = 8000
_VALIDATION_SHARE = 0.2

AUDIO = Modality(name="audio", kind="audio", rate_hz=_RATE_HZ, window_s=1.0, mel_bands=32)
IMAGE = Modality(name="image", kind="image", channels=1, size=(8, 8), dtype="uint8", range=(0.0, 255.0), rate_hz=1.0)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One take: samples (T,) float32 in -1..1."""

    digit: int
    speaker: str
    path: Path

    def read(self) -> NDArray[np.float32]:
        """The waveform.

        Raises:
            UsageError: not a mono 16-bit wav at 8 kHz.
        """
        return read_wav(self.path, rate_hz=_RATE_HZ)


def describe(recipe: DataRecipe) -> Source:
    """Two modalities, ten classes; says which speakers are unseen."""
    speakers = "+".join(TEST_SPEAKERS[_fold(recipe)])
    return Source(
        modalities=(AUDIO, IMAGE),
        labels=tuple(str(d) for d in range(10)),
        positive_label=None,
        note=f"real recordings, synthetic pairing; test speakers {speakers} (fold {recipe.fold})",
    )


def read(recipe: DataRecipe, split: SplitName, folder: Path) -> Split:
    """The pairs of one split; groups are speakers. The three splits share no speaker and no written digit."""
    recordings = [r for r in find_recordings(folder) if r.speaker in split_speakers(_fold(recipe), split)]
    if not recordings:
        raise UsageError(f"no recordings of the {split} speakers in {folder}/free-spoken-digit-dataset/recordings")
    images, image_labels = _written(folder, split)
    waves = [r.read() for r in recordings]
    heard = preprocess_all(AUDIO, waves)
    seen = preprocess_all(IMAGE, images)
    labels = np.array([r.digit for r in recordings], dtype=np.int64)
    generator = np.random.default_rng([recipe.seed, ("train", "validation", "test").index(split)])
    audio_at, image_at = pair_within_class(labels, image_labels, recipe.pairings, generator)
    groups = np.array([_SPEAKERS.index(r.speaker) for r in recordings], dtype=np.int64)
    return Split(
        inputs={"audio": heard[audio_at], "image": seen[image_at]},
        labels=torch.from_numpy(labels[audio_at]),
        groups=torch.from_numpy(groups[audio_at]),
        group_names=_SPEAKERS,
        raw={"audio": [waves[i] for i in audio_at], "image": [images[i] for i in image_at]},
    )


def listing(recipe: DataRecipe, split: SplitName, folder: Path) -> Listing:
    """The recordings of one split, each with one written digit; groups are speakers.

    Raises:
        UsageError: either part of the data is not there or broken.
    """
    recordings = [r for r in find_recordings(folder) if r.speaker in split_speakers(_fold(recipe), split)]
    if not recordings:
        return Listing(entries=[], raw={"audio": RawFiles([], _hear), "image": RawRows([], np.asarray)})
    images, image_labels = _written(folder, split)
    labels = np.array([r.digit for r in recordings], dtype=np.int64)
    audio_at, image_at = pair_within_class(labels, image_labels, 1, np.random.default_rng(recipe.seed))
    taken = [recordings[at] for at in audio_at]
    entries = [
        Entry(
            id=r.path.stem, label=str(r.digit), group=r.speaker, files={"audio": r.path, "image": _strokes(images[at])}
        )
        for r, at in zip(taken, image_at.tolist(), strict=True)
    ]
    paths = [r.path for r in taken]
    return Listing(
        entries=entries, raw={"audio": RawFiles(paths, _hear), "image": RawRows(list(images[image_at]), np.asarray)}
    )


def _hear(path: Path) -> NDArray[np.float32]:
    return read_wav(path, rate_hz=_RATE_HZ)


def _strokes(image: NDArray[np.uint8]) -> str:
    """The pixels as a text, which tells equal written digits."""
    return image.tobytes().hex()


def split_speakers(fold: int, split: SplitName) -> tuple[str, ...]:
    """Two test speakers per fold; of the other four, one validates and three train."""
    test = TEST_SPEAKERS[fold]
    others = [name for name in _SPEAKERS if name not in test]
    validation = others[fold]
    train = tuple(name for name in others if name != validation)
    return {"train": train, "validation": (validation,), "test": test}[split]


def pair_within_class(
    first: NDArray[np.int64], second: NDArray[np.int64], times: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (len(first) * times,) into both: a pair has one label, each of `first` comes `times` times.

    Within a class every member of `second` is used once before any is used again.
    """
    left: list[NDArray[np.int64]] = []
    right: list[NDArray[np.int64]] = []
    for label in np.unique(first):
        mine = np.tile(np.flatnonzero(first == label), times)
        theirs = np.flatnonzero(second == label)
        rounds = -(-mine.size // theirs.size)
        shuffled = np.concatenate([generator.permutation(theirs) for _ in range(rounds)])
        left.append(mine)
        right.append(shuffled[: mine.size])
    return np.concatenate(left), np.concatenate(right)


def find_recordings(folder: Path) -> list[Recording]:
    """Every take, in the order of file names.

    Raises:
        UsageError: the folder or its recordings are not there, or a name is not `{digit}_{speaker}_{take}.wav`.
    """
    where = folder / "free-spoken-digit-dataset" / "recordings"
    paths = sorted(where.glob("*.wav"))
    if not paths:
        raise UsageError(f"no .wav files in {where}; give the folder that holds free-spoken-digit-dataset with --data")
    return [_recording(path) for path in paths]


def _recording(path: Path) -> Recording:
    parts = path.stem.split("_")
    if len(parts) != 3 or not parts[0].isdigit() or parts[1] not in _SPEAKERS:
        raise UsageError(f"{path.name}: expected a name like 7_theo_12.wav with a speaker of {', '.join(_SPEAKERS)}")
    return Recording(digit=int(parts[0]), speaker=parts[1], path=path)


def read_optdigits(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 8, 8) uint8 scaled from 0..16 to 0..255, and labels (n,); a header line is skipped.

    Raises:
        UsageError: no such file, or a row that is not 65 whole numbers.
    """
    if not path.exists():
        raise UsageError(f"no file {path}; give the folder that holds optdigits with --data")
    lines = [line for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    body = lines if _is_row(lines[0]) else lines[1:]
    wrong = [i for i, line in enumerate(body) if not _is_row(line)]
    if wrong:
        raise UsageError(f"{path}: data row {wrong[0] + 1} is not 64 pixels and a label")
    table = np.array([[int(cell) for cell in line.split(",")] for line in body], dtype=np.int64)
    pixels = np.rint(table[:, :64] * (255.0 / 16.0)).astype(np.uint8)
    return pixels.reshape(-1, 8, 8), table[:, 64]


def _is_row(line: str) -> bool:
    cells: Sequence[str] = line.split(",")
    return len(cells) == 65 and all(cell.strip().isdigit() for cell in cells)


def _written(folder: Path, split: SplitName) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if split == "test":
        return read_optdigits(folder / "optdigits" / "optdigits.tes")
    images, labels = read_optdigits(folder / "optdigits" / "optdigits.tra")
    # Rows stand in the order of writers, so a contiguous tail keeps most writers on one side.
    border = round(len(labels) * (1.0 - _VALIDATION_SHARE))
    side = slice(None, border) if split == "train" else slice(border, None)
    return images[side], labels[side]


def _fold(recipe: DataRecipe) -> int:
    if recipe.fold not in range(len(TEST_SPEAKERS)):
        raise UsageError(f"fold is {recipe.fold}; allowed: 0, 1, 2")
    return recipe.fold
