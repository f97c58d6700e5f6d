"""Own data as a table: `dataset.toml` says what the data is, `samples.csv` beside it has one row per sample.

    # dataset.toml                          # samples.csv
    name = "my_sensors"                     id,split,label,group,depth,voice
    task = "classification"                 r1,train,fall,anna,depth/r1.npy,voice/r1.wav
    labels = ["walk", "fall"]               r2,train,walk,anna,depth/r2.npy,
    [modality.depth]                        r3,validation,walk,bo,,voice/r3.wav
    kind = "image"
    size = [64, 64]
    range = [0, 4500]

Columns: id, split (train, validation, test), label, optionally group, and one per modality. A cell is a path inside the
folder, or for text the text itself; an empty cell says that this row lacks the modality, in training too. `task =
"segmentation"` makes the label a path to a .png of class numbers (255: no class). `positive_label` makes the metric
ACER; group is then the attack species. Image files without a declared dtype hold uint8 where the range fits 0 to 255,
uint16 up to 65535, else float32 (also for a range that ends at 1 or starts below 0).

Axes: n rows, B batch, H height, W width.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mars_edge.errors import UsageError
from mars_edge.modality import Modality, SampleType
from mars_training.data.cells import SUFFIXES, Field, read_cell
from mars_training.data.columns import columns, label_maps
from mars_training.data.files import read_codes
from mars_training.data.listing import Cell, Entry, Listing, absent_files
from mars_training.data.picks import balanced_head
from mars_training.data.split import IGNORED, Column, Source, Split, Task
from mars_training.recipe import DataRecipe, SplitName, read_toml, strict_dataclass

_SPLITS: tuple[SplitName, ...] = get_args(SplitName)
_FIXED = ("id", "split", "label")
_TOML, _CSV = "dataset.toml", "samples.csv"
_HOW_TO_SPLIT = {
    "train": "training needs some",
    "validation": "the epoch is selected on them: mark some rows, whole groups, with split = validation",
    "test": "mark some rows, whole groups, with split = test",
}


@dataclass(frozen=True, kw_only=True)
class _Toml:
    """The keys of dataset.toml."""

    name: str
    labels: tuple[str, ...]
    modality: dict[str, dict[str, Any]]
    task: Task = "classification"
    positive_label: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What dataset.toml declares.

    Attributes:
        fields: by modality, in fusion order (the order of the file).
        map_size: segmentation only: height and width of the label maps, those of the images.
    """

    source: Source
    fields: Mapping[str, Field]
    map_size: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The rows of a table.

    Attributes:
        rows: by split; a row with a problem is not among them.
        problems: what is wrong with the others, a line each, in the order of the file.
    """

    declaration: Declaration
    rows: Mapping[SplitName, Sequence[Entry]]
    problems: Sequence[str]


def describe(recipe: DataRecipe, folder: Path) -> Source:
    """What FOLDER/dataset.toml declares; reads no sample.

    Raises:
        UsageError: no such file, or a declaration that is unknown, missing or contradicts itself.
    """
    return declare(folder).source


def read(recipe: DataRecipe, split: SplitName, folder: Path) -> Split:
    """The rows of one split in the order of the file; what a row lacks is zeros.

    Files must all be there; they are decoded now where the column fits into memory, else batch by batch.

    Raises:
        UsageError: anything wrong in either file of the table, a split without rows, or a file that is absent or
            contradicts its modality.
    """
    found = scan(folder)
    if found.problems:
        raise UsageError(_first_of(found.problems, folder))
    rows = _limited(found.rows[split], recipe.limit, found.declaration.source.labels)
    if not rows:
        raise UsageError(f"{folder / _CSV} has no {split} rows; {_HOW_TO_SPLIT[split]}")
    absent = absent_files(rows)
    if absent:
        raise UsageError(_first_of(absent, folder))
    return _split(found, rows)


def listing(recipe: DataRecipe, split: SplitName, folder: Path) -> Listing:
    """The sound rows of one split, and the problems of all rows that are not; decodes nothing.

    Raises:
        UsageError: the declaration or the header is wrong, so that no row can be read.
    """
    found = scan(folder)
    declaration = found.declaration
    rows = found.rows[split]
    if declaration.source.positive_label is not None:
        # There the group is an attack species, which splits may well share.
        rows = [dataclasses.replace(row, group=None) for row in rows]
    return Listing(
        entries=rows,
        raw={name: RawCells(field, rows) for name, field in declaration.fields.items()},
        maps=None if declaration.map_size is None else RawLabelMaps(rows, None, len(declaration.source.labels)),
        problems=found.problems,
    )


def _first_of(problems: Sequence[str], folder: Path) -> str:
    more = f" (and {len(problems) - 1} more: `mars-edge data check {folder}` lists all)" if len(problems) > 1 else ""
    return problems[0] + more


def declare(folder: Path) -> Declaration:
    """The declaration in FOLDER/dataset.toml.

    Raises:
        UsageError: no such file, or a declaration that is unknown, missing or contradicts itself.
    """
    path = folder / _TOML
    table = strict_dataclass(_Toml, read_toml(path, "table declaration"), str(path))
    assert isinstance(table, _Toml)
    _check_labels(table, path)
    fields = {name: _field(name, given, path) for name, given in table.modality.items()}
    if not fields:
        raise UsageError(f"{path} declares no modality; give one [modality.NAME] table each")
    source = Source(
        modalities=tuple(f.modality for f in fields.values()),
        labels=table.labels,
        positive_label=table.positive_label or None,
        note=table.note or f"own data: {table.name}",
        task=table.task,
    )
    return Declaration(source=source, fields=fields, map_size=_map_size(source, path))


def _check_labels(table: _Toml, path: Path) -> None:
    labels, positive = table.labels, table.positive_label
    if len(labels) < 2 or len(set(labels)) < len(labels) or "" in labels:
        raise UsageError(f"{path}: labels is {list(labels)}; it must be two or more different names")
    if table.task == "segmentation" and (positive or len(labels) > IGNORED):
        raise UsageError(f"{path}: segmentation takes no positive_label and at most {IGNORED} labels")
    if positive and (positive not in labels or len(labels) != 2):
        raise UsageError(f"{path}: positive_label is {positive!r}; it needs two labels and must be one: {list(labels)}")


def _map_size(source: Source, path: Path) -> tuple[int, int] | None:
    if source.task == "classification":
        return None
    sizes = {m.size for m in source.modalities if m.kind == "image"}
    if len(sizes) != 1:
        found = ", ".join(f"{m.name} {m.size}" for m in source.modalities if m.kind == "image") or "no image"
        raise UsageError(f"{path}: segmentation needs image modalities of one size; there is: {found}")
    return sizes.pop()


def _field(name: str, given: Mapping[str, Any], path: Path) -> Field:
    where = f"{path}: [modality.{name}]"
    if name in (*_FIXED, "group"):
        raise UsageError(f"{where}: the name is taken by a column of {_CSV}; choose another")
    if "name" in given:
        raise UsageError(f"{where}: has a key name; the table's own name is the modality's")
    table = dict(given)
    channels_first = table.pop("channels_first", False)
    if not isinstance(channels_first, bool) or (channels_first and table.get("kind") != "image"):
        raise UsageError(f"{where}: channels_first is {channels_first!r}; allowed: true or false, for kind image")
    if table.get("kind") == "audio" and "rate_hz" not in table:
        raise UsageError(f"{where}: lacks rate_hz, the sampling rate of the .wav files, e.g. 16000")
    try:
        modality = Modality.from_dict({"name": name, **_sample_type(table)})
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return Field(modality=modality, channels_first=channels_first, clips="range" in table)


def _sample_type(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the dtype its range implies, and the range its dtype implies, where one is not given."""
    filled = dict(table)
    limits: dict[Any, tuple[float, float]] = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
    if filled.get("kind") == "image" and "dtype" not in filled:
        filled["dtype"] = _implied_type(filled["range"]) if "range" in filled else "uint8"
    kind, dtype = filled.get("kind"), filled.get("dtype")
    if kind in ("image", "sequence", "vector") and "range" not in filled and dtype in ("uint8", "uint16"):
        filled["range"] = limits[dtype]
    return filled


def _implied_type(limits: object) -> SampleType:
    if not isinstance(limits, list) or not all(isinstance(v, int | float) for v in limits) or len(limits) != 2:
        return "float32"  # Modality names what is wrong with it
    low, high = limits
    if low < 0 or high <= 1 or high > 65535:
        return "float32"
    return "uint8" if high <= 255 else "uint16"


def scan(folder: Path) -> Scan:
    """Every row of FOLDER/samples.csv, sound or with its problem; opens no other file of the folder.

    Raises:
        UsageError: the declaration or the header is wrong, so that no row can be read.
    """
    declaration = declare(folder)
    lines = _lines(folder / _CSV)
    header = next(lines, (0, []))[1]
    _check_header(header, declaration, folder / _CSV)
    found: dict[SplitName, list[Entry]] = {split: [] for split in _SPLITS}
    problems: list[str] = []
    first_line: dict[str, int] = {}
    for line, cells in lines:
        try:
            named = _named(header, cells)
            _need_new_id(named["id"], first_line, line)
            split, row = _row(named, declaration, folder)
        except UsageError as error:
            problems.append(f"{folder / _CSV} line {line}: {error}")
        else:
            found[split].append(row)
    return Scan(declaration=declaration, rows=found, problems=problems)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, each with its number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            yield from ((reader.line_num, cells) for cells in reader if cells)
    except FileNotFoundError:
        raise UsageError(f"no {_CSV} in {path.parent}; it needs one row per sample") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a readable .csv file in UTF-8 ({error})") from None


def _check_header(header: Sequence[str], declaration: Declaration, path: Path) -> None:
    known = [*_FIXED, "group", *declaration.fields]
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise UsageError(f"{path}: the header is one cell, {header[0][:60]!r}; columns are separated by commas")
    missing = [name for name in known if name != "group" and name not in header]
    if missing:
        of = f" of {_TOML}'s [modality.{missing[0]}]" if missing[0] in declaration.fields else ""
        raise UsageError(f"{path}: lacks the column {missing[0]!r}{of}; the header is {','.join(header)[:80]!r}")
    unknown = [name for name in header if name not in known]
    if unknown:
        raise UsageError(
            f"{path}: unknown column {unknown[0]!r}; known: {', '.join(known)} (a modality needs its table in {_TOML})"
        )
    twice = [name for name in header if list(header).count(name) > 1]
    if twice:
        raise UsageError(f"{path}: has the column {twice[0]!r} twice")


def _named(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise UsageError(
            f"has {len(cells)} cells, the header has {len(header)}; a cell with a comma needs quotes: "
            f"{','.join(cells)[:60]!r}"
        )
    return dict(zip(header, cells, strict=True))


def _need_new_id(name: str, first_line: dict[str, int], line: int) -> None:
    if not name:
        raise UsageError("id is empty; every row needs its own")
    if name in first_line:
        raise UsageError(f"id {name!r} is that of line {first_line[name]} too; every row needs its own")
    first_line[name] = line


def _row(named: Mapping[str, str], declaration: Declaration, folder: Path) -> tuple[SplitName, Entry]:
    where = f"row {named['id']!r}: "
    split = next((s for s in _SPLITS if s == named["split"]), None)
    if split is None:
        raise UsageError(f"{where}split is {named['split']!r}; allowed: {', '.join(_SPLITS)}")
    try:
        files = {name: _cell(named[name], f, folder) for name, f in declaration.fields.items()}
        if not any(files.values()):
            raise UsageError(f"all modalities are empty; a row needs one of {', '.join(files)}")
        segments = declaration.map_size is not None
        row = Entry(
            id=named["id"],
            label=None if segments else _label(named["label"], declaration.source),
            group=_group(named),
            files=files,
            label_files=(_inside(named["label"], (".png",), "label", folder),) if segments else (),
        )
    except UsageError as error:
        raise UsageError(f"{where}{error}") from None
    return split, row


def _cell(text: str, field: Field, folder: Path) -> Cell:
    kind, name = field.modality.kind, field.modality.name
    if not text or (kind == "text" and not text.lower().endswith(SUFFIXES["text"])):
        return text or None
    return _inside(text, SUFFIXES[kind], name, folder)


def _inside(text: str, suffixes: Sequence[str], column_name: str, folder: Path) -> Path:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{column_name} is {text!r}; it must be a path inside the folder, without '..'")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{column_name} is {text!r}; allowed are files named {', '.join(suffixes)}")
    return folder / path


def _label(text: str, source: Source) -> str:
    if text not in source.labels:
        raise UsageError(f"label is {text!r}; {_TOML} has: {', '.join(source.labels)[:200]}")
    return text


def _group(named: Mapping[str, str]) -> str | None:
    if named.get("group") == "":
        raise UsageError("group is empty; name one, or leave the column out")
    return named.get("group")


@dataclass(frozen=True)
class RawCells:
    """The raw samples of one modality of a table."""

    field: Field
    rows: Sequence[Entry]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Any:
        row = self.rows[index]
        cell = row.files[self.field.modality.name]
        if cell is None:
            raise IndexError(f"row {row.id!r} has no {self.field.modality.name}")
        try:
            return read_cell(self.field, cell)
        except UsageError as error:
            raise UsageError(f"row {row.id!r}: {error}") from None


@dataclass(frozen=True)
class RawLabelMaps:
    """The label maps of a table, of the files' own size or all (H, W): the nearest pixel where a file has another."""

    rows: Sequence[Entry]
    size: tuple[int, int] | None
    classes: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        import cv2

        row = self.rows[index]
        try:
            found = read_label_map(row.label_files[0], self.classes)
        except UsageError as error:
            raise UsageError(f"row {row.id!r}: {error}") from None
        if self.size is None or found.shape == self.size:
            return found
        height, width = self.size
        return cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8)


def read_label_map(path: Path, classes: int) -> NDArray[np.uint8]:
    """The class number of every pixel, (H, W) uint8: below `classes`, or 255 for no class.

    Raises:
        UsageError: not a grey 8-bit picture, or a number of no class.
    """
    found = read_codes(path)
    wrong = found[(found >= classes) & (found != IGNORED)]
    if wrong.size:
        raise UsageError(f"{path}: has the label {wrong[0]}; allowed: 0 to {classes - 1}, and {IGNORED} for no class")
    return found


def _split(found: Scan, rows: Sequence[Entry]) -> Split:
    fields = found.declaration.fields
    present = torch.tensor([[row.files[name] is not None for name in fields] for row in rows])
    missing = None if bool(present.all()) else present
    raw = {name: RawCells(field, rows) for name, field in fields.items()}
    groups, names = _groups(found, rows)
    return Split(
        inputs=columns(found.declaration.source.modalities, raw, missing),
        labels=_labels(found.declaration, rows),
        groups=groups,
        group_names=names,
        present=missing,
        raw=raw,
    )


def _limited(rows: Sequence[Entry], limit: int, labels: Sequence[str]) -> list[Entry]:
    """The rows themselves, or `limit` of them, as evenly over the classes as they allow; maps count as one class."""
    classes = np.array([0 if row.label is None else labels.index(row.label) for row in rows], dtype=np.int64)
    return [rows[at] for at in balanced_head(classes, limit)]


def _labels(declaration: Declaration, rows: Sequence[Entry]) -> Tensor | Column:
    labels = declaration.source.labels
    if declaration.map_size is None:
        return torch.tensor([labels.index(str(row.label)) for row in rows], dtype=torch.int64)
    return label_maps(RawLabelMaps(rows, declaration.map_size, len(labels)), declaration.map_size)


def _groups(found: Scan, rows: Sequence[Entry]) -> tuple[Tensor, tuple[str, ...]]:
    """The group of every row as an index into the names of the whole table's groups."""
    live = found.declaration.source.positive_label is not None
    names = sorted({_group_name(row, live) for split in found.rows.values() for row in split})
    index = {name: at for at, name in enumerate(names)}
    return torch.tensor([index[_group_name(row, live)] for row in rows], dtype=torch.int64), tuple(names)


def _group_name(row: Entry, live: bool) -> str:
    """The row's group; without a group column the label is the attack species, and other data is one group."""
    return row.group or (str(row.label) if live else "all")
