"""What is in a data set, what is wrong with it, and what its split leaks: every problem, not only the first.

Axes: H height, W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data import casia_surf, crema_d, digits, food101, mcubes, table
from mars_training.data.contents import compare
from mars_training.data.findings import Finding, count, problem, warning
from mars_training.data.leaks import file_leaks, group_leaks
from mars_training.data.listing import Entry, Listing, absent_files
from mars_training.data.load import describe
from mars_training.data.split import IGNORED, Source
from mars_training.recipe import DataRecipe, Reader, SplitName

_SPLITS: tuple[SplitName, ...] = get_args(SplitName)
_FEW_COMPLETE, _MANY_LONG, _MANY_CLIPPED, _NARROW = 0.1, 0.1, 0.05, 0.1
"""Shares: of complete rows, long texts and clipped values that deserve a warning, and of a range that is used."""
DECODED = 2_000
"""Rows per split whose files are decoded, unless another number is asked for."""
LEAST_MAPS = 50
"""Label maps per split whose pixels are counted even where fewer rows are decoded."""

ReadListing = Callable[[DataRecipe, SplitName, Path], Listing]
_LISTINGS: dict[Reader, ReadListing] = {
    "casia_surf": casia_surf.listing,
    "crema_d": crema_d.listing,
    "food101": food101.listing,
    "mcubes": mcubes.listing,
    "digits": digits.listing,
    "table": table.listing,
}
READERS = tuple(_LISTINGS)
_MARKS: dict[Reader, tuple[str, ...]] = {
    "table": ("dataset.toml", "samples.csv"),
    "casia_surf": ("train_list.txt", "val_private_list.txt"),
    "crema_d": ("AudioWAV",),
    "food101": ("texts/train_titles.csv", "texts/test_titles.csv"),
    "mcubes": ("list_folder", "polL_color"),
    "digits": ("free-spoken-digit-dataset",),
}
"""By reader, what lies in the folder of such a data set; one of them is enough."""


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """One split in numbers.

    Attributes:
        classes: by label its rows, or for segmentation its share of the labelled pixels.
        ignored: segmentation only: the share of pixels without a class.
        maps: segmentation only: label maps that were counted.
        groups: different persons, speakers or scenes; 0 where the data names none.
        lacking: by modality, rows without it.
        decoded: rows whose files were decoded.
    """

    rows: int
    classes: Mapping[str, float]
    groups: int
    lacking: Mapping[str, int]
    decoded: int
    ignored: float | None = None
    maps: int = 0


@dataclass(kw_only=True)
class Seen:
    """What the decoded samples of one modality hold.

    Attributes:
        shapes: of the raw arrays.
        low: the smallest value; for audio and text the shortest sample, in seconds and words.
        high: the largest value; for audio and text the longest sample.
        outside: values that the modality's range clips; for audio and text, samples longer than is kept.
        total: values; for audio and text, samples.
    """

    shapes: set[tuple[int, ...]] = field(default_factory=set)
    dtypes: set[str] = field(default_factory=set)
    low: float = np.inf
    high: float = -np.inf
    outside: int = 0
    total: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a check found."""

    folder: Path
    reader: Reader
    source: Source
    splits: Mapping[SplitName, SplitSummary]
    seen: Mapping[str, Seen]
    findings: Sequence[Finding]
    opened: int
    unread: int

    @property
    def usable(self) -> bool:
        """Whether training can start."""
        return not any(f.level == "problem" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "folder": str(self.folder),
            "reader": self.reader,
            "usable": self.usable,
            "source": self.source.to_dict(),
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "decoded": {name: _seen_dict(seen) for name, seen in self.seen.items()},
            "findings": [asdict(finding) for finding in self.findings],
            "files_compared": self.opened,
            "files_not_compared": self.unread,
        }


def _seen_dict(seen: Seen) -> dict[str, Any]:
    values = {"low": seen.low, "high": seen.high} if seen.total else {"low": None, "high": None}
    shapes = sorted(list(shape) for shape in seen.shapes)
    return {"shapes": shapes, "dtypes": sorted(seen.dtypes), **values, "outside": seen.outside, "total": seen.total}


def recognise(folder: Path) -> Reader:
    """The reader whose files lie in the folder.

    Raises:
        UsageError: no folder, no data set that a reader knows, or several.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    found = [reader for reader, marks in _MARKS.items() if any((folder / mark).exists() for mark in marks)]
    if len(found) > 1:
        raise UsageError(f"{folder} looks like {' and '.join(found)}; say which with --reader")
    if not found:
        known = ", ".join(f"{marks[0]} ({reader})" for reader, marks in _MARKS.items())
        raise UsageError(f"{folder} holds no data set of a known layout; looked for: {known}")
    return found[0]


def check(
    folder: Path, reader: Reader, *, decode: int = DECODED, say: Callable[[str], object] = lambda line: None
) -> Report:
    """Everything about the data set in `folder`, nothing changed.

    Args:
        folder: as `--data` takes it.
        reader: whose layout it has.
        decode: rows per split, spread evenly, whose files are decoded.
        say: told what is being done.

    Raises:
        UsageError: a table whose declaration cannot be read: nothing is known then.
    """
    recipe = DataRecipe(reader=reader)
    source = describe(recipe, folder)
    findings: list[Finding] = []
    listings = _listings(recipe, folder, findings)
    say(f"comparing the files of {sum(len(found.entries) for found in listings.values()):,} rows ...")
    contents = compare(entry for found in listings.values() for entry in found.entries)
    say(f"decoding every row of each split, up to {decode:,} ...")
    seen = {m.name: Seen() for m in source.modalities}
    splits: dict[SplitName, SplitSummary] = {}
    for split, found in listings.items():
        decoded = _decode(split, found, source, seen, decode, findings)
        splits[split] = _summary(split, found, source, decoded, max(decode, LEAST_MAPS), findings)
    findings += _gaps(listings, source)
    findings += [found for m in source.modalities if seen[m.name].total for found in _value_warnings(m, seen[m.name])]
    findings += group_leaks(reader, listings, source)
    findings += file_leaks(listings, contents)
    return Report(
        folder=folder, reader=reader, source=source, splits=splits, seen=seen, opened=contents.opened,
        findings=sorted(findings, key=lambda f: f.level), unread=contents.unread,
    )  # fmt: skip


def _listings(recipe: DataRecipe, folder: Path, findings: list[Finding]) -> dict[SplitName, Listing]:
    """The listing of every split that can be read; what is wrong with rows, lists and files is found."""
    read_listing, listings = _LISTINGS[recipe.reader], dict[SplitName, Listing]()
    refused: dict[str, list[str]] = {}
    for split in _SPLITS:
        try:
            listings[split] = read_listing(recipe, split, folder)
        except UsageError as error:
            refused.setdefault(str(error), []).append(split)
    findings += [problem(f"{'+'.join(names)}: {message}") for message, names in refused.items()]
    # A table has one list for all splits, so all tell the same problems.
    wrong = tuple(dict.fromkeys(line for found in listings.values() for line in found.problems))
    if wrong:
        findings.append(problem(f"{count(wrong, 'row')} wrong and not counted above", wrong))
    for split, found in listings.items():
        findings += _absent(split, found)
    return listings


def _absent(split: SplitName, found: Listing) -> Iterator[Finding]:
    if not found.entries:
        missing = warning if split == "test" else problem
        yield missing(f"no {split} rows; mark some, whole groups, with split = {split}")
    absent = absent_files(found.entries)
    if absent:
        yield problem(f"{split}: {count(absent, 'file')} not there", absent)


def _decode(
    split: SplitName, found: Listing, source: Source, seen: Mapping[str, Seen], most: int, findings: list[Finding]
) -> Sequence[int]:
    """Decode `most` whole rows, spread evenly; returns which. Files that fail are found, values are noted in `seen`."""
    rows = _spread(_whole(found), most)
    for modality in source.modalities:
        wrong: list[str] = []
        tried = [at for at in rows if found.entries[at].files[modality.name] is not None]
        for at in tried:
            try:
                raw = found.raw[modality.name][at]
                modality.preprocess(raw)
            except UsageError as error:
                wrong.append(_named(found.entries[at], str(error)))
            else:
                _note(modality, raw, seen[modality.name])
        if wrong:
            text = f"{split}: {modality.name}: {len(wrong)} of {len(tried)} decoded samples cannot be used"
            findings.append(problem(text, wrong))
    return rows


def _whole(found: Listing) -> list[int]:
    """The entries whose files are all there."""
    return [at for at, entry in enumerate(found.entries) if not absent_files([entry])]


def _spread(rows: Sequence[int], most: int) -> list[int]:
    """At most `most` of the rows, evenly."""
    count = min(most, len(rows))
    return [rows[at * len(rows) // count] for at in range(count)]


def _named(entry: Entry, message: str) -> str:
    return message if message.startswith(f"row {entry.id!r}") else f"row {entry.id!r}: {message}"


def _note(modality: Modality, raw: Any, seen: Seen) -> None:
    if modality.kind in ("audio", "text"):
        kept = modality.window_samples / modality.rate_hz if modality.kind == "audio" else modality.length or 0
        size = len(raw) / modality.rate_hz if modality.kind == "audio" else len(str(raw).split())
        values: NDArray[Any] = np.array([size])
        limits = (0.0, kept)
    else:
        values, limits = raw, modality.range
        seen.shapes.add(raw.shape)
        seen.dtypes.add(str(raw.dtype))
    seen.low, seen.high = min(seen.low, float(values.min())), max(seen.high, float(values.max()))
    seen.outside += int(np.count_nonzero((values < limits[0]) | (values > limits[1])))
    seen.total += values.size


def _summary(
    split: SplitName, found: Listing, source: Source, decoded: Sequence[int], maps: int, findings: list[Finding]
) -> SplitSummary:
    pixels = _pixels(split, found, source, maps, findings) if source.task == "segmentation" else None
    rows = Counter(entry.label for entry in found.entries)
    return SplitSummary(
        rows=len(found.entries),
        classes=pixels.shares(source.labels) if pixels else {name: rows[name] for name in source.labels},
        groups=len({entry.group for entry in found.entries} - {None}),
        lacking={name: sum(entry.files[name] is None for entry in found.entries) for name in source.names},
        decoded=len(decoded),
        ignored=pixels.ignored if pixels else None,
        maps=pixels.maps if pixels else 0,
    )


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """How many pixels of `maps` label maps have each number, (256,)."""

    counts: NDArray[np.int64]
    maps: int

    def shares(self, labels: Sequence[str]) -> dict[str, float]:
        """By label its share of the labelled pixels."""
        labelled = max(int(self.counts[: len(labels)].sum()), 1)
        return {name: int(self.counts[at]) / labelled for at, name in enumerate(labels)}

    @property
    def ignored(self) -> float:
        """The share of pixels without a class."""
        return int(self.counts[IGNORED]) / max(int(self.counts.sum()), 1)


def _pixels(split: SplitName, found: Listing, source: Source, most: int, findings: list[Finding]) -> _Pixels:
    """Counted over up to `most` maps, spread evenly; broken maps, and those of another size, are found."""
    assert found.maps is not None
    counts = np.zeros(256, dtype=np.int64)
    wrong, sizes, maps = [], [], 0
    for at in _spread(_whole(found), most):
        try:
            labels = found.maps[at]
            other = _image_sizes(at, found, source) - {labels.shape}
        except UsageError as error:
            wrong.append(_named(found.entries[at], str(error)))
            continue
        counts += np.bincount(labels.reshape(-1), minlength=256)
        maps += 1
        if other:
            sizes.append(f"row {found.entries[at].id!r}: map {labels.shape}, images {sorted(other)}")
    if wrong:
        findings.append(problem(f"{split}: {count(wrong, 'label map')} broken, of {maps + len(wrong)} read", wrong))
    if sizes:
        findings.append(warning(f"{split}: {count(sizes, 'label map')} not of the size of its images", sizes))
    if maps and not counts[:IGNORED].sum():
        findings.append(problem(f"{split}: no pixel of {maps} label maps has a class"))
    return _Pixels(counts=counts, maps=maps)


def _image_sizes(at: int, found: Listing, source: Source) -> set[tuple[int, ...]]:
    """Height and width of the row's images that can be decoded; the others have been found already."""
    sizes = set()
    for m in source.modalities:
        if m.kind == "image" and found.entries[at].files[m.name] is not None:
            with suppress(UsageError):
                sizes.add(found.raw[m.name][at].shape[:2])
    return sizes


def _gaps(listings: Mapping[SplitName, Listing], source: Source) -> Iterator[Finding]:
    """Classes and modalities that a split has none of."""
    for split, found in listings.items():
        if found.entries and source.task == "classification":
            yield from _class_gaps(split, found.entries, source)
        for name in source.names:
            if found.entries and not any(entry.files[name] for entry in found.entries):
                yield (problem if split == "train" else warning)(f"{split}: no row has {name}")
    train = listings["train"].entries if "train" in listings else ()
    complete = sum(None not in entry.files.values() for entry in train)
    if train and complete < _FEW_COMPLETE * len(train):
        yield warning(f"train: {complete:,} of {len(train):,} rows are complete; MARS learns its routing from these")


def _class_gaps(split: SplitName, entries: Sequence[Entry], source: Source) -> Iterator[Finding]:
    there = {entry.label for entry in entries}
    none = [name for name in source.labels if name not in there]
    if none and source.positive_label is not None:
        yield problem(f"{split}: no row is {none[0]!r}; error rates need both classes")
    elif none:
        yield warning(f"{split}: {len(none)} of {len(source.labels)} classes have no row", none)


def _value_warnings(m: Modality, seen: Seen) -> Iterator[Finding]:
    """What of the decoded samples of one modality the network will not see."""
    share = seen.outside / seen.total
    if m.kind == "audio":
        if share:
            yield warning(f"{m.name}: {seen.outside} of {seen.total} last longer than window_s: their start is cut off")
    elif m.kind == "text":
        if share >= _MANY_LONG:
            yield warning(f"{m.name}: {seen.outside} of {seen.total} have over {m.length} words: their end is cut off")
    else:
        yield from _range_warnings(m, seen, share)


def _range_warnings(m: Modality, seen: Seen, share: float) -> Iterator[Finding]:
    limits = f"range {m.range[0]:g} to {m.range[1]:g}"
    if share >= _MANY_CLIPPED:
        yield warning(f"{m.name}: {100 * share:.0f} % of the values are outside {limits} and clipped")
    if seen.high == seen.low:
        yield warning(f"{m.name}: every value is {seen.low:g}")
    elif seen.high - seen.low < _NARROW * (m.range[1] - m.range[0]):
        yield warning(f"{m.name}: the values {seen.low:g} to {seen.high:g} fill little of {limits}")
