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


def _pairs(listings: Listings) -> Iterator[tuple[SplitName, SplitName]]:
    yield from combinations([split for split, found in listings.items() if found.entries], 2)


def group_leaks(reader: Reader, listings: Listings, source: Source) -> Iterator[Finding]:
    """Groups on two sides of the split, and how many rows are of none."""
    groups = {split: {entry.group for entry in found.entries if entry.group} for split, found in listings.items()}
    for one, two in _pairs(listings):
        both = sorted(groups[one] & groups[two])
        if both:
            shared = f"{len(both)} of {len(groups[two])} {_GROUPS.get(reader, 'groups')} in {two} are in {one} too"
            hinted = reader == "crema_d" and (one, two) == ("train", "test")
            hint = ' (protocol = "speaker_disjoint" shares none)' if hinted else ""
            yield warning(f"leak: {shared}{hint}", both)
    unknown = sum(entry.group is None for found in listings.values() for entry in found.entries)
    if unknown:
        rows = sum(len(found.entries) for found in listings.values())
        yield warning(
            f"{_unnamed(reader, source)} whose {unknown:,} of {rows:,} rows are: a person may be on two sides"
        )


def _unnamed(reader: Reader, source: Source) -> str:
    if reader != "table":
        return "nothing says"
    return "no column group says" if source.positive_label is None else "group names attack species, so nothing says"


def file_leaks(listings: Listings, contents: Contents) -> Iterator[Finding]:
    """Equal files or texts on two sides, then within one, and how many files were not compared."""
    for one, two in _pairs(listings):
        shared = {name: _shared(one, two, listings, name, contents) for name in listings[one].entries[0].files}
        counts = ", ".join(f"{name} {len(lines):,} of {total:,}" for name, (lines, total) in shared.items() if lines)
        if counts:
            yield warning(
                f"leak: {two} holds what {one} holds: {counts}", [e for lines, _ in shared.values() for e in lines]
            )
    for split, found in listings.items():
        yield from _copies(split, found.entries, contents)
    if contents.unread:
        yield warning(f"{contents.unread:,} files of equal sizes were not compared; at most {MOST_COMPARED:,} are")


def _shared(one: SplitName, two: SplitName, listings: Listings, name: str, contents: Contents) -> tuple[list[str], int]:
    """A line for each row of `two` whose `name` a row of `one` has too, and how many rows of `two` have any."""
    first, second = ([e for e in listings[side].entries if e.files[name]] for side in (one, two))
    known = {contents.of(entry, name): entry for entry in reversed(first)}
    pairs = [(entry, known.get(contents.of(entry, name))) for entry in second]
    return [f"row {b.id!r} has the {name} of row {a.id!r}" for b, a in pairs if a], len(second)


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
    counts = [_repeated(entries, name, contents, len(alike) + len(against)) for name in _names(entries)]
    if any(counts):
        yield warning(f"{split}: files that equal another row's: {', '.join(filter(None, counts))}")


def _names(entries: Sequence[Entry]) -> list[str]:
    return list(entries[0].files) if entries else []


def _repeated(entries: Sequence[Entry], name: str, contents: Contents, copies: int) -> str:
    """How many files equal another one's, where that is more than whole rows do; else nothing."""
    files = [entry for entry in entries if isinstance(entry.files[name], Path)]
    repeated = len(files) - len({contents.of(entry, name) for entry in files})
    return f"{name} {repeated:,} of {len(files):,}" if repeated > copies else ""
