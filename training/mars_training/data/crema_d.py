"""CREMA-D: actors saying twelve sentences in six emotions, heard and seen.

Layout: `train.csv` and `test.csv` with rows `clip,EMOTION` and no header, `AudioWAV/CLIP.wav` (16 kHz mono), and
the middle frame of `Image-01-FPS/CLIP/*.jpg` or, where a clip has no such folder, of `VideoFlash/CLIP.flv`.
The published split has every actor on both sides; `protocol = "speaker_disjoint"` pools both lists and splits by
actor. Source: Cao et al., "CREMA-D: Crowd-Sourced Emotional Multimodal Actors Dataset", 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.columns import RawFiles, columns
from mars_training.data.files import in_number_order, need_files, read_colour, read_csv, read_middle_frame, read_wav
from mars_training.data.listing import Entry, Listing
from mars_training.data.picks import balanced_head, held_out
from mars_training.data.split import Source, Split
from mars_training.recipe import DataRecipe, SplitName

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
LABELS = ("neutral", "happy", "sad", "fear", "disgust", "anger")
SIZE = 224
FOLDS = 5
_VALIDATION_SHARE = 0.1
_RATE_HZ = 16000
AUDIO = Modality(name="audio", kind="audio", rate_hz=_RATE_HZ, window_s=3.0, mel_bands=64, frame_s=0.025)
"""Clips last 1.3 to 5 s, most under 3 s; of a longer one the end is kept."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One row of a list: a clip's name, such as 1001_DFA_ANG_XX, and its class."""

    name: str
    label: int

    @property
    def actor(self) -> str:
        """The first part of the name."""
        return self.name.split("_")[0]


def describe(recipe: DataRecipe) -> Source:
    """Sound and one frame, six emotions; says whether speakers are shared."""
    size = recipe.size or SIZE
    visual = Modality(name="visual", kind="image", channels=3, size=(size, size), dtype="uint8", range=(0.0, 255.0))
    official = "CREMA-D, published split: every speaker is in training and in test"
    disjoint = f"CREMA-D, no speaker is in two splits (fold {_fold(recipe)})"
    return Source(
        modalities=(AUDIO, visual),
        labels=LABELS,
        positive_label=None,
        note=official if recipe.protocol == "official" else disjoint,
    )


def read(recipe: DataRecipe, split: SplitName, folder: Path) -> Split:
    """The clips of one split; groups are actors.

    Raises:
        UsageError: a list is not there or broken, or a listed clip has no sound or no picture.
    """
    every = find_clips(recipe, split, folder)
    clips = [every[i] for i in balanced_head(np.array([c.label for c in every], dtype=np.int64), recipe.limit)]
    sounds = [folder / "AudioWAV" / f"{clip.name}.wav" for clip in clips]
    need_files(sounds, _listed(recipe, split, folder))
    raw = {
        "audio": RawFiles(sounds, _hear),
        "visual": RawFiles([find_picture(folder, clip.name) for clip in clips], _see),
    }
    actors = sorted({clip.actor for clip in clips})
    return Split(
        inputs=columns(describe(recipe).modalities, raw),
        labels=torch.tensor([clip.label for clip in clips]),
        groups=torch.tensor([actors.index(clip.actor) for clip in clips]),
        group_names=tuple(actors),
        raw=raw,
    )


def listing(recipe: DataRecipe, split: SplitName, folder: Path) -> Listing:
    """The clips of one split, all of them; groups are actors.

    Raises:
        UsageError: a list is not there or broken.
    """
    clips = find_clips(recipe, split, folder)
    sounds = [folder / "AudioWAV" / f"{clip.name}.wav" for clip in clips]
    pictures = [_picture_or_folder(folder, clip.name) for clip in clips]
    entries = [
        Entry(id=clip.name, label=LABELS[clip.label], group=clip.actor, files={"audio": sound, "visual": picture})
        for clip, sound, picture in zip(clips, sounds, pictures, strict=True)
    ]
    return Listing(entries=entries, raw={"audio": RawFiles(sounds, _hear), "visual": RawFiles(pictures, _see)})


def _picture_or_folder(folder: Path, clip: str) -> Path:
    """The clip's picture, or where it should be."""
    try:
        return find_picture(folder, clip)
    except UsageError:
        return folder / "Image-01-FPS" / clip / "*.jpg"


def _listed(recipe: DataRecipe, split: SplitName, folder: Path) -> Path:
    if recipe.protocol == "speaker_disjoint":
        return folder
    return folder / ("test.csv" if split == "test" else "train.csv")


def find_clips(recipe: DataRecipe, split: SplitName, folder: Path) -> list[Clip]:
    """The clips of one split in the order of the lists.

    Raises:
        UsageError: a list is not there or broken, or no clip is left for this split.
    """
    train, test = (read_clips(folder / name) for name in ("train.csv", "test.csv"))
    if recipe.protocol == "official":
        clips = test if split == "test" else _side(train, split, recipe.seed)
    else:
        chosen = split_actors([c.actor for c in train + test], _fold(recipe), split, seed=recipe.seed)
        clips = [clip for clip in train + test if clip.actor in chosen]
    if not clips:
        raise UsageError(f"{folder} has too few clips: none is left for the {split} split")
    return clips


def _side(train: list[Clip], split: SplitName, seed: int) -> list[Clip]:
    validates = held_out(np.array([clip.label for clip in train], dtype=np.int64), _VALIDATION_SHARE, seed=seed)
    return [clip for clip, held in zip(train, validates, strict=True) if held == (split == "validation")]


def split_actors(actors: list[str], fold: int, split: SplitName, *, seed: int) -> set[str]:
    """The actors of one split: a fifth tests, every second of the next fifth validates, the others train.

    Over the five folds every actor tests once.
    """
    order = np.random.default_rng([seed, FOLDS]).permutation(sorted(set(actors)))
    test = {str(name) for name in order[fold::FOLDS]}
    validation = {str(name) for name in order[(fold + 1) % FOLDS :: FOLDS][::2]}
    sides = {"test": test, "validation": validation, "train": set(actors) - test - validation}
    return sides[split]


def read_clips(path: Path) -> list[Clip]:
    """The clips of a list, in its order.

    Raises:
        UsageError: no such list, or a row that is not a clip and one of the six emotions.
    """
    clips = []
    for at, (name, emotion) in read_csv(path, 2):
        if emotion.strip() not in EMOTIONS:
            raise UsageError(f"{path}, line {at}: emotion {emotion!r}; allowed: {', '.join(EMOTIONS)}")
        clips.append(Clip(name=name.strip(), label=EMOTIONS.index(emotion.strip())))
    return clips


def find_picture(folder: Path, clip: str) -> Path:
    """The middle one of the clip's frames, by number (n // 2 of n, from 0), or else its video.

    Raises:
        UsageError: the clip has neither.
    """
    where, video = folder / "Image-01-FPS" / clip, folder / "VideoFlash" / f"{clip}.flv"
    frames = in_number_order(where.glob("*.jpg"))
    if frames:
        return frames[len(frames) // 2]
    if not video.is_file():
        raise UsageError(f"clip {clip} has no picture: neither {where}/*.jpg nor {video} is there")
    return video


def _hear(path: Path) -> NDArray[Any]:
    return read_wav(path, rate_hz=_RATE_HZ)


def _see(path: Path) -> NDArray[Any]:
    return read_middle_frame(path) if path.suffix == ".flv" else read_colour(path)


def _fold(recipe: DataRecipe) -> int:
    if recipe.fold not in range(FOLDS if recipe.protocol == "speaker_disjoint" else 1):
        allowed = f"0 to {FOLDS - 1}" if recipe.protocol == "speaker_disjoint" else "0 with the official protocol"
        raise UsageError(f"fold is {recipe.fold}; allowed: {allowed}")
    return recipe.fold
