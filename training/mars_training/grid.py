"""A grid: rows (methods, or one method under changed keys) times seeds times folds, from one TOML file.

Strict as a recipe is: an unknown key is an error that lists the known ones, and names its row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mars_edge.errors import UsageError
from mars_training.recipe import Recipe, SplitName, read_toml, recipe_from_dict, strict_dataclass

_FOLDED = ("digits", "crema_d")
_SAME_SAMPLES = ("reader", "validation", "test", "seed", "fold", "pairings", "protocol", "limit", "always_present")
"""Keys of `data` that decide what is tested; the pairs of a paired test must share them."""


@dataclass(frozen=True, kw_only=True)
class RowTable:
    """One `[[row]]` as written."""

    name: str
    method: str = ""
    """The recipe's when empty."""
    recipe: str = ""
    """Another base recipe, relative to the grid file; the grid's when empty."""
    oracle_of: str = ""
    """The row whose runs are evaluated through the residual router; nothing is trained."""
    also_with: str = ""
    """One more row to pair this one with, such as the step before it in an ablation."""
    set: dict[str, Any] = field(default_factory=dict)
    """Tables merged key by key into the base recipe's."""


@dataclass(frozen=True, kw_only=True)
class GridTable:
    """A grid file as written."""

    name: str
    recipe: str
    """Relative to the grid file."""
    row: tuple[RowTable, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: tuple[int, ...] = ()
    compare_with: str = ""
    """Every other row is paired with this one; the first row that trains when empty."""
    split: Literal["validation", "test"] = "test"
    """What the table shows; epochs are always selected on validation."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table to come.

    Attributes:
        slug: the row's folder name.
        recipe: complete but for the fold.
        oracle_of: slug of the row whose runs are evaluated with privilege; empty for a row that trains.
        also_with: name of a row to pair this one with, beside the grid's `compare_with`.
    """

    name: str
    slug: str
    recipe: Recipe
    oracle_of: str = ""
    also_with: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a row, a seed and a fold."""

    row: Row
    recipe: Recipe
    seed: int
    folder: Path
    """Of the run, relative to the output folder."""
    source: Path
    """Folder of the run whose weights are evaluated; `folder` itself but for an oracle."""

    @property
    def key(self) -> tuple[int, int]:
        """(seed, fold): cells of two rows with the same key are a pair."""
        return self.seed, self.recipe.data.fold

    @property
    def label(self) -> str:
        """For people: the row and the folder's name."""
        fold = f", fold {self.recipe.data.fold}" if "fold" in self.folder.name else ""
        return f"{self.row.name}, seed {self.seed}{fold}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What `mars-edge compare` runs."""

    name: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    compare_with: str
    split: SplitName

    def cells(self, seeds: Sequence[int] | None = None) -> list[Cell]:
        """Every run, those on the same data one after the other, an oracle after the run it reads."""
        folds: Sequence[int | None] = self.folds or (None,)
        rows = sorted(self.rows, key=lambda row: bool(row.oracle_of))
        return [_cell(row, s, f) for f in folds for s in (self.seeds if seeds is None else seeds) for row in rows]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The (row, row) names that the table compares: each with `compare_with`, then each with its own.

        An oracle is compared with the row it is the oracle of: with the others it does not compete.
        """
        names = {row.slug: row.name for row in self.rows}
        rivals = [row for row in self.rows if not row.oracle_of and row.name != self.compare_with]
        common = [(row.name, self.compare_with) for row in rivals]
        own = [(row.name, row.also_with) for row in self.rows if row.also_with]
        oracles = [(row.name, names[row.oracle_of]) for row in self.rows if row.oracle_of]
        return list(dict.fromkeys([*common, *own, *oracles]))

    @property
    def digest(self) -> str:
        """12 hex digits of everything the grid resolves to, whatever files it was written in."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _cell(row: Row, seed: int, fold: int | None) -> Cell:
    name = f"seed{seed}" if fold is None else f"seed{seed}-fold{fold}"
    data = row.recipe.data if fold is None else dataclasses.replace(row.recipe.data, fold=fold)
    return Cell(
        row=row,
        recipe=dataclasses.replace(row.recipe, data=data),
        seed=seed,
        folder=Path(row.slug) / name,
        source=Path(row.oracle_of or row.slug) / name,
    )


def load_grid(path: Path) -> Grid:
    """The grid in a TOML file, every recipe in it resolved.

    Raises:
        UsageError: no such file, not TOML, an unknown key, a row that is not valid, or rows tested on other samples.
    """
    table = read_grid(read_toml(path, "grid"))
    _check_head(table)
    bases = {name: read_toml(path.parent / name, "recipe") for name in _recipe_names(table)}
    recipes = {row.name: _resolve(row, bases[row.recipe or table.recipe]) for row in table.row if not row.oracle_of}
    rows = tuple(_row(row, recipes) for row in table.row)
    _check_samples(rows, table.folds)
    return Grid(
        name=table.name,
        rows=rows,
        seeds=table.seeds,
        folds=table.folds,
        compare_with=table.compare_with or next(iter(recipes)),
        split=table.split,
    )


def read_grid(table: Mapping[str, Any]) -> GridTable:
    """A grid file's table, read strictly.

    Raises:
        UsageError: an unknown or missing key, or a value of the wrong type; a row is named.
    """
    written = table.get("row", [])
    if not isinstance(written, list) or not written:
        raise UsageError("grid has no rows; give at least one [[row]]")
    grid: GridTable = strict_dataclass(GridTable, {k: v for k, v in table.items() if k != "row"}, "grid")
    rows = [strict_dataclass(RowTable, row, _row_place(row, i)) for i, row in enumerate(written)]
    return dataclasses.replace(grid, row=tuple(rows))


def _row_place(row: object, index: int) -> str:
    named = isinstance(row, Mapping) and isinstance(row.get("name"), str)
    return f"row {row['name']!r}" if named and isinstance(row, Mapping) else f"row {index + 1}"


def _recipe_names(table: GridTable) -> set[str]:
    return {row.recipe or table.recipe for row in table.row if not row.oracle_of}


def _check_head(table: GridTable) -> None:
    names = [row.name for row in table.row]
    for i, row in enumerate(table.row):
        twin = next((other for other in names[:i] if slug(other) == slug(row.name)), None)
        if twin is not None:
            raise UsageError(f"rows {twin!r} and {row.name!r} would share the folder {slug(twin)!r}; rename one")
        _check_row(row, table)
    trained = [row.name for row in table.row if not row.oracle_of]
    for key, name in (("compare_with", table.compare_with), *(("also_with", row.also_with) for row in table.row)):
        if name and name not in trained:
            raise UsageError(f"{key} is {name!r}; rows that train: {', '.join(map(repr, trained))}")
    for key, values in (("seeds", table.seeds), ("folds", table.folds)):
        if len(set(values)) != len(values) or any(v < 0 for v in values):
            raise UsageError(f"{key} is {list(values)}; each must be there once and at least 0")
    if not table.seeds:
        raise UsageError("seeds is []; give at least one")


def _check_row(row: RowTable, table: GridTable) -> None:
    if not slug(row.name):
        raise UsageError(f"row {row.name!r} has no letter or digit to name its folder by")
    if row.oracle_of:
        trained = [other.name for other in table.row if not other.oracle_of]
        if row.oracle_of not in trained:
            raise UsageError(
                f"row {row.name!r} is the oracle of {row.oracle_of!r}; rows that train: {', '.join(map(repr, trained))}"
            )
        if row.method or row.recipe or row.set or row.also_with:
            raise UsageError(f"row {row.name!r} is an oracle and trains nothing; it takes a name and oracle_of only")
    if row.also_with == row.name:
        raise UsageError(f"row {row.name!r} is to be paired with itself; also_with names another row")
    if "method" in row.set:
        raise UsageError(f"row {row.name!r} sets the method in its recipe; write method = ... in the row")
    if table.folds and "fold" in row.set.get("data", {}):
        raise UsageError(f"row {row.name!r} sets data.fold; the grid's folds are {list(table.folds)}")


def _resolve(row: RowTable, base: Mapping[str, Any]) -> Recipe:
    table = merge(base, row.set)
    try:
        return recipe_from_dict(table | {"method": row.method} if row.method else table)
    except UsageError as error:
        raise UsageError(f"row {row.name!r}: {error}") from None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `changes`; where both hold a table, merged in turn."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _row(row: RowTable, recipes: Mapping[str, Recipe]) -> Row:
    recipe = recipes[row.oracle_of or row.name]
    if row.oracle_of and recipe.method != "mars":
        raise UsageError(
            f"row {row.name!r} is the oracle of {row.oracle_of!r}, a {recipe.method} row; only mars has a "
            "residual router"
        )
    return Row(
        name=row.name, slug=slug(row.name), recipe=recipe, oracle_of=slug(row.oracle_of), also_with=row.also_with
    )


def _check_samples(rows: Sequence[Row], folds: Sequence[int]) -> None:
    first = rows[0].recipe.data
    for row in rows:
        data = row.recipe.data
        if folds and data.reader not in _FOLDED:
            raise UsageError(f"folds is {list(folds)}, but row {row.name!r} reads {data.reader!r}, which has no folds")
        for key in _SAME_SAMPLES:
            if getattr(data, key) != getattr(first, key):
                raise UsageError(
                    f"data.{key} is {getattr(data, key)!r} in row {row.name!r} and {getattr(first, key)!r} in row "
                    f"{rows[0].name!r}; rows must be tested on the same samples"
                )


def slug(name: str) -> str:
    """A folder name: letters and digits in lower case, everything between them one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
