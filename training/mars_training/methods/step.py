"""What every training method gives the loop: the losses of one step, and how far two routers agreed.

Axes: B batch, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mars_training.losses import distillation_loss, task_loss
from mars_training.recipe import LossRecipe

Terms = dict[str, Tensor]
"""Named scalar losses; "loss" is the one that is minimised."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step's outcome.

    Attributes:
        terms: scalars on the graph; "loss" is minimised, the others are reported.
        agreement: (B,) share of the experts that both routers chose, for the sampler; NaN where a row has no
            residual; None for methods without two routers.
    """

    terms: Terms
    agreement: Tensor | None = None


def own_partial(partial: Tensor, present: Tensor) -> Tensor:
    """`partial` (P B, M) without what a row never had; a mask that would keep nothing keeps all its row has."""
    present = per_mask(present, partial)
    kept = partial & present
    return torch.where(kept.any(dim=1, keepdim=True), kept, present)


def per_mask(rows: Tensor, partial: Tensor) -> Tensor:
    """`rows` (B, ...) once per mask of `partial` (P B, ...), whose row i P + p belongs to row i: (P B, ...).

    The masks of a row stand together, so that processes that share a batch hold whole rows.
    """
    times = len(partial) // len(rows)
    return rows if times == 1 else rows.repeat_interleave(times, dim=0)


def two_pass_terms(
    full: Tensor, partial: Tensor, labels: Tensor, recipe: LossRecipe, rows: Tensor | None = None
) -> Terms:
    """Task loss of the complete pass and of the rows `rows` of the incomplete one(s), and distillation where asked.

    `full` (B, ...), `labels` (B, ...), `partial` (P B, ...) and `rows` (P B,), P incomplete passes per row.

    Every method's two passes end here, so that none has an option that another lacks.
    """
    terms = {"task": task_loss(full, labels, recipe)}
    full, labels = per_mask(full, partial), per_mask(labels, partial)
    if rows is not None:
        full, partial, labels = full[rows], partial[rows], labels[rows]
    terms["task"] = terms["task"] + recipe.incomplete * task_loss(partial, labels, recipe)
    if recipe.distill:
        terms["distill"] = distillation_loss(full, partial, labels, temperature=recipe.distill_temperature)
    return terms


def weighted(terms: Terms, recipe: LossRecipe, **weights: float) -> Terms:
    """`terms` and their sum "loss", each weighted by the recipe's key of its name, or by `weights`."""
    total = sum(weights.get(name, getattr(recipe, name)) * value for name, value in terms.items())
    assert isinstance(total, Tensor)
    return {"loss": total, **terms}
