"""Names of modalities in a recipe: whether the data has what they name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.recipe import Recipe


def check_names(recipe: Recipe, modalities: Sequence[Modality]) -> None:
    """Nothing, if every modality that the recipe's data, schedule, augmentation and export name is there.

    Raises:
        UsageError: the recipe names a modality that the data lacks, or to relight or mirror one that is no image.
    """
    every = [m.name for m in modalities]
    images = [m.name for m in modalities if m.kind == "image"]
    required = [name for entry in recipe.export.require for name in entry.split("|")]
    _require("data.always_present", recipe.data.always_present, every, "modalities")
    _require("schedule.encoder_rate", recipe.schedule.encoder_rate, every, "modalities")
    _require("augment.flip_negates", recipe.augment.flip_negates, images, "image modalities")
    _require("augment.photometric", recipe.augment.photometric, images, "image modalities")
    _require("export.require", required, every, "modalities")


def _require(key: str, named: Iterable[str], known: Sequence[str], what: str) -> None:
    for name in named:
        if name not in known:
            raise UsageError(f"{key} names {name!r}; the {what} are: {', '.join(known) or 'none'}")
