"""CASIA-SURF: live faces and printed masks before a colour, a depth and an infrared camera.

Layout: `train_list.txt`, `val_private_list.txt` and `test_private_list.txt` with lines `color depth ir label`,
paths relative to the root, label 1 live and 0 spoof. The published lists are the three splits. Every file is an
8-bit JPEG; depth and infrared are grey, in some copies stored as three equal channels.
Source: Zhang et al., "A Dataset and Benchmark for Large-scale Multi-modal Face Anti-spoofing" (arXiv 1812.00408).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.columns import RawFiles, columns
from mars_training.data.files import need_files, read_colour, read_grey, read_list
from mars_training.data.listing import Entry, Listing
from mars_training.data.picks import balanced_head
from mars_training.data.split import Source, Split
from mars_training.recipe import DataRecipe, SplitName

LABELS = ("spoof", "live")
LISTS: dict[SplitName, str] = {
    "train": "train_list.txt",
    "validation": "val_private_list.txt",
    "test": "test_private_list.txt",
}
SIZE = 112
_CHANNELS = {"rgb": 3, "depth": 1, "ir": 1}
# A recording's folder, such as 04_en_b.rssdk: attack 4, eyes and nose cut out, bent.
_RECORDING = re.compile(r"([^/]+)\.rssdk/")

_SUBJECT = re.compile(r"(?:^|/)(CLKJ_[A-Z]+\d+)/")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a list: the files of rgb, depth and ir relative to the root, and whether the face is live."""

    files: tuple[str, str, str]
    live: bool

    @property
    def species(self) -> str:
        """ "live", or the attack type: the recording's folder where the path has one, else "spoof"."""
        recording = _RECORDING.search(self.files[0])
        if self.live:
            return "live"
        return recording[1] if recording else "spoof"

    @property
    def subject(self) -> str | None:
        """Whose folder the files are in, such as CLKJ_CS0110; None where the path names nobody."""
        found = _SUBJECT.search(self.files[0])
        return found[1] if found else None


def describe(recipe: DataRecipe) -> Source:
    """Three cameras of one size, live or spoof."""
    size = recipe.size or SIZE
    return Source(
        modalities=tuple(
            Modality(name=name, kind="image", channels=count, size=(size, size), dtype="uint8", range=(0.0, 255.0))
            for name, count in _CHANNELS.items()
        ),
        labels=LABELS,
        positive_label="live",
        note="CASIA-SURF, published lists",
    )


def read(recipe: DataRecipe, split: SplitName, folder: Path) -> Split:
    """The rows of the split's list; groups are attack types.

    Raises:
        UsageError: no list, a line that is not three paths and a label, or a listed image that is not there.
    """
    listed = folder / LISTS[split]
    every = read_rows(listed)
    rows = [every[i] for i in balanced_head(np.array([row.live for row in every], dtype=np.int64), recipe.limit)]
    need_files([folder / file for row in rows for file in row.files], listed)
    raw = _raw(rows, folder)
    species = sorted({row.species for row in rows})
    return Split(
        inputs=columns(describe(recipe).modalities, raw),
        labels=torch.tensor([int(row.live) for row in rows]),
        groups=torch.tensor([species.index(row.species) for row in rows]),
        group_names=tuple(species),
        raw=raw,
    )


def _raw(rows: list[Row], folder: Path) -> dict[str, RawFiles]:
    return {
        name: RawFiles([folder / row.files[at] for row in rows], read_colour if count == 3 else read_grey)
        for at, (name, count) in enumerate(_CHANNELS.items())
    }


def listing(recipe: DataRecipe, split: SplitName, folder: Path) -> Listing:
    """The split's list, all of it; groups are subjects, where the paths name them.

    Raises:
        UsageError: no list, or a line that is not three paths and a label.
    """
    rows = read_rows(folder / LISTS[split])
    entries = [
        Entry(
            id=row.files[0],
            label=LABELS[int(row.live)],
            group=row.subject,
            files={name: folder / file for name, file in zip(_CHANNELS, row.files, strict=True)},
        )
        for row in rows
    ]
    return Listing(entries=entries, raw=_raw(rows, folder))


def read_rows(path: Path) -> list[Row]:
    """The rows of a list, in its order.

    Raises:
        UsageError: no such list, or a line that is not three paths and a label 0 or 1.
    """
    rows = []
    for at, (color, depth, ir, label) in read_list(path, 4):
        if label not in ("0", "1"):
            raise UsageError(f"{path}, line {at}: label {label!r}; allowed: 1 (live) and 0 (spoof)")
        rows.append(Row(files=(color, depth, ir), live=label == "1"))
    return rows
