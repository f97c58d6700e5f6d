"""The one place that knows which reader a recipe names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import torch

from mars_edge.errors import UsageError
from mars_training.data import rig
from mars_training.data.picks import balanced_head
from mars_training.data.split import Data, Source, Split
from mars_training.recipe import DataRecipe, Reader, Recipe, SplitName

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
_MODULES: dict[Reader, str] = {name: f"mars_training.data.{name}" for name in get_args(Reader)}


def describe(recipe: DataRecipe, folder: Path | None = None) -> Source:
    """Modalities, classes and caveats of the recipe's data set; reads no sample, and a folder only for a table.

    Raises:
        UsageError: the reader needs a folder and has none, or `always_present` names no modality of it.
    """
    module = _module(recipe.reader)
    # A table's modalities stand in its folder; those of the others do not depend on it.
    source: Source = (
        module.describe(recipe, _needed(folder, "reader 'table'"))
        if recipe.reader == "table"
        else module.describe(recipe)
    )
    unknown = [name for name in recipe.always_present if name not in source.names]
    if unknown:
        raise UsageError(f"data.always_present names {unknown[0]!r}; the modalities are: {', '.join(source.names)}")
    return source


def load_split(recipe: Recipe, split: SplitName, *, folder: Path | None = None) -> Split:
    """One split of the recipe's data set, preprocessed; equal for equal recipes.

    Raises:
        UsageError: an unknown split, a reader that needs a folder and has none, or broken files.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    return _limited(_read(recipe, split, folder), recipe.data.limit)


def _read(recipe: Recipe, split: SplitName, folder: Path | None) -> Split:
    if recipe.data.reader == "rig":
        return rig.read(recipe.data, split)
    where = _needed(folder, f"recipe {recipe.name!r}")
    found: Split = _module(recipe.data.reader).read(recipe.data, split, where)
    return found


def _needed(folder: Path | None, who: str) -> Path:
    if folder is None:
        raise UsageError(f"{who} reads files: give their folder with --data DIR")
    if not folder.is_dir():
        raise UsageError(f"--data {folder} is not a folder")
    return folder


def _module(reader: Reader) -> ModuleType:
    return import_module(_MODULES[reader])


def _limited(split: Split, limit: int) -> Split:
    """For readers that do not look at the limit themselves; the others have it by now."""
    if not 0 < limit < len(split):
        return split
    maps = not isinstance(split.labels, torch.Tensor) or split.labels.dim() > 1
    classes = np.zeros(len(split), dtype=np.int64) if maps else split.class_labels.numpy()
    return split.take(torch.from_numpy(balanced_head(classes, limit)))


def load_data(recipe: Recipe, *, folder: Path | None = None) -> Data:
    """What training may see: the train and validation splits.

    Raises:
        UsageError: as for `load_split`, or the recipe mirrors polarisation angles without saying what that negates.
    """
    if recipe.data.reader == "mcubes":
        _module("mcubes").check_mirror(recipe.augment.flip, recipe.augment.flip_negates.get("aolp", ()))
    return Data(
        source=describe(recipe.data, folder),
        train=load_split(recipe, "train", folder=folder),
        validation=load_split(recipe, "validation", folder=folder),
    )
