"""What two sides of a split share, and what a side holds twice: persons, and files of equal bytes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from mars_training.data.contents import MOST_COMPARED, Contents
from mars_training.data.findings import Finding, count, warning
from mars_training.data.listing import Entry, Listing
from mars_training.data.split import Source
from mars_training.recipe import Reader, SplitName

Listings = Mapping[SplitName, Listing]
_GROUPS: dict[Reader, str] = {
    "casia_surf": "subjects",
    "crema_d": "speakers",
    "mcubes": "recordings",
    "digits": "speakers",
}
"""What a group is; for the other readers just a group."""
_SHOWN = 80


def _pairs(listings: Listings) -> Iterator[tuple[SplitName, SplitName]]:
    yield from combinations([split for split, found in listings.items() if found.entries], 2)


def group_leaks(reader: Reader, listings: Listings, source: Source) -> Iterator[Finding]:
    """Groups on two sides of the split, and how many rows are of none."""
    groups = {split: {entry.group for entry in found.entries if entry.group} for split, found in listings.items()}
    for one, two in _pairs(listings):
        both = sorted(groups[one] & groups[two])
        if both:
            shared = f"{len(both)} of the {len(groups[two])} {_GROUPS.get(reader, 'groups')} in {two} are in {one} too"
            hint = '; data.protocol = "speaker_disjoint" shares none' if reader == "crema_d" else ""
            yield warning(f"leak: {shared}{hint}", both)
    unknown = sum(entry.group is None for found in listings.values() for entry in found.entries)
    if unknown:
        rows = sum(len(found.entries) for found in listings.values())
        yield warning(f"{_whose(reader, source)} of {unknown:,} of {rows:,} rows: one may be on two sides")


def _whose(reader: Reader, source: Source) -> str:
    if reader != "table":
        return "nothing names the person or place"
    if source.positive_label is not None:
        return "group names attack species here, nothing the person"
    return "no column group names the person or place"


def file_leaks(listings: Listings, contents: Contents) -> Iterator[Finding]:
    """Equal files or texts on two sides, then within one, and how many files were not compared."""
    for one, two in _pairs(listings):
        for name in listings[one].entries[0].files:
            yield from _shared(one, two, listings, name, contents)
    for split, found in listings.items():
        yield from _copies(split, found.entries, contents)
    if contents.unread:
        yield warning(f"{contents.unread:,} files of equal sizes were not compared; at most {MOST_COMPARED:,} are")


def _shared(one: SplitName, two: SplitName, listings: Listings, name: str, contents: Contents) -> Iterator[Finding]:
    first, second = ([e for e in listings[side].entries if e.files[name]] for side in (one, two))
    known = {contents.of(entry, name): entry for entry in reversed(first)}
    pairs = [(entry, known.get(contents.of(entry, name))) for entry in second]
    lines = [f"row {b.id!r} has that of row {a.id!r}: {str(b.files[name])[:_SHOWN]}" for b, a in pairs if a]
    if lines:
        yield warning(f"leak: {len(lines):,} of {len(second):,} {name} samples in {two} are in {one} too", lines)


def _copies(split: SplitName, entries: Sequence[Entry], contents: Contents) -> Iterator[Finding]:
    """Rows that hold what an earlier one holds, with its label or against it; and files that several rows hold."""
    first: dict[Hashable, Entry] = {}
    alike: list[str] = []
    against: list[str] = []
    for entry in entries:
        before = first.setdefault(tuple(contents.of(entry, name) for name in entry.files), entry)
        if before is not entry:
            (alike if before.label == entry.label else against).append(f"row {entry.id!r} is row {before.id!r}")
    if alike:
        yield warning(f"{split}: {count(alike, 'row')} a copy of another", alike)
    if against:
        yield warning(f"{split}: {count(against, 'row')} a copy of another, with another label", against)
    for name in entries[0].files if entries else ():
        files = [entry for entry in entries if isinstance(entry.files[name], Path)]
        repeated = len(files) - len({contents.of(entry, name) for entry in files})
        if repeated > len(alike) + len(against):
            yield warning(f"{split}: {repeated:,} of {len(files):,} {name} files equal another row's")
