"""The one place that knows which reader a recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from mars_edge.errors import UsageError
from mars_training.data import digits, rig
from mars_training.data.split import Data, Source, Split
from mars_training.recipe import DataRecipe, Recipe, SplitName

SPLITS: tuple[SplitName, ...] = get_args(SplitName)


def describe(recipe: DataRecipe) -> Source:
    """Modalities, classes and caveats of the recipe's data set; reads no sample."""
    return rig.describe() if recipe.reader == "rig" else digits.describe(recipe)


def load_split(recipe: Recipe, split: SplitName, *, folder: Path | None = None) -> Split:
    """One split of the recipe's data set, preprocessed, in memory; equal for equal recipes.

    Raises:
        UsageError: an unknown split, a reader that needs a folder and has none, or broken files.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    if recipe.data.reader == "rig":
        return rig.read(recipe.data, split)
    if folder is None:
        raise UsageError(f"recipe {recipe.name!r} reads files: give their folder with --data DIR")
    return digits.read(recipe.data, split, folder)


def load_data(recipe: Recipe, *, folder: Path | None = None) -> Data:
    """What training may see: the train and validation splits."""
    return Data(
        source=describe(recipe.data),
        train=load_split(recipe, "train", folder=folder),
        validation=load_split(recipe, "validation", folder=folder),
    )
