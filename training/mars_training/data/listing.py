"""What the lists of a data set name before any file is decoded: an entry per row, with its files, label and group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mars_training.data.split import RawColumn

Cell = Path | str | None
"""A file, a text, or nothing: the row lacks the modality."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One sample before any file of it is opened.

    Attributes:
        id: names the row in messages.
        label: its class; None where the label is a map.
        group: whose sample it is (a person, a speaker), for data whose splits should not share any; None if unknown.
        files: by modality, in fusion order; a modality of several files has an entry for each.
        label_files: segmentation only: what the label map is made of.
    """

    id: str
    label: str | None
    group: str | None
    files: Mapping[str, Cell]
    label_files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The rows of one split as its lists name them, and how to decode them.

    Attributes:
        entries: n sound ones, in the order of the lists; their files may be absent.
        raw: by modality, n raw samples, decoded when asked for.
        maps: segmentation only: n label maps, decoded when asked for.
        problems: what is wrong with the rows that are left out, a line each.
    """

    entries: Sequence[Entry]
    raw: Mapping[str, RawColumn]
    maps: RawColumn | None = None
    problems: Sequence[str] = ()


def absent_files(entries: Sequence[Entry]) -> list[str]:
    """A line for each file of the entries, label maps too, that is not there."""
    return [
        f"row {entry.id!r}: {name}: no file {path}"
        for entry in entries
        for name, path in (*entry.files.items(), *(("label", path) for path in entry.label_files))
        if isinstance(path, Path) and not path.is_file()
    ]
