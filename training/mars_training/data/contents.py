"""Which files of a data set hold the same bytes, found by reading as few of them as that takes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mars_training.data.listing import Entry

MOST_COMPARED = 20_000
"""Files that are opened at most."""
_HEAD_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What tells the contents of files apart.

    Attributes:
        same: by file, a key that is equal for equal contents; a file that is not in it is like no other.
        opened: files that were read.
        unread: files that may have an equal but were not read, because `MOST_COMPARED` were.
    """

    same: dict[Path, Hashable]
    opened: int
    unread: int

    def of(self, entry: Entry, name: str) -> Hashable:
        """What the entry has of this modality: equal for equal contents, None for nothing."""
        cell = entry.files[name]
        return self.same.get(cell, cell) if isinstance(cell, Path) else cell


def compare(entries: Iterable[Entry], *, most: int = MOST_COMPARED) -> Contents:
    """The equal files among all files of the entries; files of different sizes differ, and the others are read.

    Where more than `most` would have to be read, the sizes that fewest files share are compared first.
    """
    paths = {cell for entry in entries for cell in entry.files.values() if isinstance(cell, Path)}
    same: dict[Path, Hashable] = {}
    opened = unread = 0
    for group in sorted(_same_size(paths), key=len):
        taken = group[: max(most - opened, 0)]
        opened, unread = opened + len(taken), unread + len(group) - len(taken)
        for alike in _grouped(taken, _head).values():
            for key, equal in _grouped(alike, _digest).items():
                same.update(dict.fromkeys(equal, key))
    return Contents(same=same, opened=opened, unread=unread)


def _same_size(paths: set[Path]) -> list[list[Path]]:
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(paths):
        if path.is_file():
            sizes[path.stat().st_size].append(path)
    return [group for group in sizes.values() if len(group) > 1]


def _grouped(paths: Sequence[Path], key: Callable[[Path], bytes]) -> dict[bytes, list[Path]]:
    """The paths by their key, without those whose key no other has."""
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return {found: group for found, group in groups.items() if len(group) > 1}


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_HEAD_BYTES)).digest()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
