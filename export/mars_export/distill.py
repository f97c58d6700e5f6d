"""Distillation from the float model: quantization-aware training may move the weights, not what the model says.

Axes: B batch, M modalities, P incomplete passes per row.
Design decision: the teacher is a frozen copy of the whole training model, given the rows, masks and random draws of the
student's own passes. Then both run the same experts but for near ties, and what differs is quantization.
Source: arXiv 1503.02531, section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mars_training.data.split import Batch
from mars_training.losses import distillation_loss
from mars_training.methods.step import Terms, per_mask
from mars_training.model.mars import Passes, TrainingMars
from mars_training.recipe import Recipe
from mars_training.sampling import MaskSampler
from mars_training.train import Update


@dataclass(kw_only=True)
class _Seen:
    """What the student was asked, with which random numbers, and what it said."""

    asked: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    random: Tensor | None = None
    passes: Passes | None = None


def frozen_copy(model: TrainingMars) -> TrainingMars:
    """A copy without gradients; its batch norms must be folded already, for it answers in training mode."""
    teacher = copy.deepcopy(model)
    return teacher.requires_grad_(False).train()


def distilling(update: Update, model: TrainingMars, teacher: TrainingMars, recipe: Recipe) -> Update:
    """`update` of `model` with `export.qat_distill` of its loss replaced by the distance from `teacher`'s answers.

    The distance is that of `distillation_loss`, on the complete and all incomplete passes, weighted as the task is; it
    is reported as the term "float".
    """
    share, temperature = recipe.export.qat_distill, recipe.loss.distill_temperature

    def distilled(batch: Batch, sampler: MaskSampler, epoch: int) -> Terms:
        with _watched(model) as seen:
            terms = update(batch, sampler, epoch)
        given = _answers(teacher, seen)
        assert seen.passes is not None
        labels = per_mask(batch.labels, given.partial)
        distance = distillation_loss(given.full, seen.passes.full, batch.labels, temperature=temperature)
        partial = distillation_loss(given.partial, seen.passes.partial, labels, temperature=temperature)
        distance = distance + recipe.loss.incomplete * partial
        # Without task loss a recipe would leave the teacher nothing either.
        weight = recipe.loss.task or 1.0
        return terms | {"loss": (1.0 - share) * terms["loss"] + share * weight * distance, "float": distance}

    return distilled


@contextmanager
def _watched(model: TrainingMars) -> Generator[_Seen]:
    seen = _Seen()

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.asked, seen.random = (args, kwargs), torch.get_rng_state()

    def after(module: Any, args: tuple[Any, ...], passes: Passes) -> None:
        seen.passes = passes

    hooks = model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _answers(teacher: TrainingMars, seen: _Seen) -> Passes:
    assert seen.asked is not None and seen.random is not None
    args, kwargs = seen.asked
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(seen.random)
        passes: Passes = teacher(*args, **kwargs)
    return passes
