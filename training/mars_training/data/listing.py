"""What the lists of a data set name, before any file is opened: rows, their files, labels and groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Cell = Path | str | None
"""A file, a text, or nothing: the row lacks the modality."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sample before any file of it is opened.

    Attributes:
        id: names the row in messages.
        label: its class; None where the label is a map.
        group: whose sample it is (a person, a speaker), for data whose splits should not share any; None if unknown.
        files: by modality, in fusion order.
        label_map: segmentation only.
    """

    id: str
    label: str | None
    group: str | None
    files: Mapping[str, Cell]
    label_map: Path | None = None
