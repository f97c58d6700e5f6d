"""The training methods: MARS, the baseline and the peers, each one module and one line in `METHODS`.

A method is a pair of functions. `build` makes its untrained model from a recipe; the model's `deployed` is what a
device would run. `step` turns a batch and a drawn incomplete mask into losses. Everything else (data, schedule,
selection, evaluation) is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_training.data.split import Batch, Task
from mars_training.methods import dmrnet, flex_moe, hemis, mars, modality_dropout, shaspec, simmlm
from mars_training.methods.step import Step
from mars_training.model.build import build_training_mars
from mars_training.model.deployable import Deployable
from mars_training.names import check_names
from mars_training.recipe import LossRecipe, ModelRecipe, Recipe

Build = Callable[[ModelRecipe, Sequence[Modality], int, Task], nn.Module]
TakeStep = Callable[[nn.Module, Batch, Tensor, LossRecipe, int], Step]


@dataclass(frozen=True)
class Method:
    """How one method builds its model and takes a step.

    Attributes:
        build: (recipe, modalities, classes, task) to the untrained model, which has an attribute `deployed`.
        step: (model, batch, drawn mask (B, M), loss recipe, epoch from 0) to the losses.
    """

    build: Build
    step: TakeStep


METHODS: dict[str, Method] = {
    "mars": Method(build_training_mars, mars.step),
    "moe": Method(mars.build_moe, mars.step),
    "modality_dropout": Method(modality_dropout.build_dropout_fusion, modality_dropout.step),
    "hemis": Method(hemis.build_hemis, hemis.step),
    "shaspec": Method(shaspec.build_shaspec, shaspec.step),
    "dmrnet": Method(dmrnet.build_dmrnet, dmrnet.step),
    "simmlm": Method(simmlm.build_simmlm, simmlm.step),
    "flex_moe": Method(flex_moe.build_flex_moe, flex_moe.step),
}


def build_model(
    recipe: Recipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> nn.Module:
    """The untrained model that the recipe's method trains; its `deployed` is what a device would run.

    Raises:
        UsageError: the recipe names a modality that is not there, or its sizes do not fit together.
    """
    check_names(recipe, modalities)
    return METHODS[recipe.method].build(recipe.model, modalities, classes, task)


def deployed_of(model: nn.Module) -> Deployable:
    """The part of a training model that a device runs; it reaches nothing privileged."""
    return cast(Deployable, model.deployed)
