"""MARS: two passes, four losses; without its residual router, a plain mixture of experts.

Axes: B batch, M modalities, N experts, K active experts.
Source: arXiv 2606.30355.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_training import losses
from mars_training.data.split import Batch, Task
from mars_training.distributed import anywhere
from mars_training.methods.step import Step, Terms, own_partial, per_mask, two_pass_terms, weighted
from mars_training.model.build import build_training_mars
from mars_training.model.mars import Passes, TrainingMars
from mars_training.model.routers import clean_routing
from mars_training.recipe import LossRecipe, ModelRecipe


def build_moe(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> TrainingMars:
    """The plain mixture of experts: MARS's deployed model, and no residual anywhere."""
    return build_training_mars(dataclasses.replace(recipe, residual_routing=False), modalities, classes, task)


def step(model: nn.Module, batch: Batch, partial: Tensor, loss: LossRecipe, epoch: int) -> Step:
    """The losses of one batch; `partial` (P B, M) are the drawn incomplete masks, P of a row together.

    A row that lacks a modality has no residual: it learns the task with what it has, routed by the feature
    router, and takes no part in the three routing losses. A plain mixture uses both passes of every row.
    """
    assert isinstance(model, TrainingMars)
    complete = per_mask(batch.present.all(dim=1), partial)
    by_features = model.routes_by_features(epoch)
    passes = model(batch.inputs, own_partial(partial, batch.present), batch.present, by_features=by_features)
    k = model.deployed.active_experts
    if model.residual_router is None:
        return Step(terms=mixture_losses(passes, batch.labels, loss, k))
    if by_features:
        terms = warmup_losses(passes, batch.labels, loss, k, complete=complete)
    else:
        terms = mars_losses(passes, batch.labels, loss, k, epoch=epoch, complete=complete)
    with torch.no_grad():
        agreement = losses.router_agreement(passes.residual.clean, passes.student, k)
    return Step(terms=terms, agreement=torch.where(complete, agreement, torch.nan))


def mars_losses(
    passes: Passes, labels: Tensor, recipe: LossRecipe, k: int, *, epoch: int, complete: Tensor | None = None
) -> Terms:
    """The four losses of MARS and their weighted sum "loss"; rows outside `complete` (P B,) have no residual."""
    rows = torch.ones(len(passes.partial), dtype=torch.bool, device=labels.device) if complete is None else complete
    terms = two_pass_terms(passes.full, passes.partial, labels, recipe, rows)
    zero = terms["task"].detach() * 0.0
    terms |= {"balance": zero, "imitate": zero, "noise": zero}
    if anywhere(rows.any()):
        routing, student = passes.residual.of(rows), passes.student[rows]
        terms["balance"] = losses.balance_loss(routing, k)
        terms["imitate"] = losses.imitation_loss(routing.clean, student, temperature=recipe.imitate_temperature)
        if routing.drawn:
            terms["noise"] = losses.noise_order_loss(routing.clean, student, routing.scale, k)
    return weighted(terms, recipe, imitate=recipe.imitate if epoch >= recipe.imitate_start else 0.0)


def mixture_losses(passes: Passes, labels: Tensor, recipe: LossRecipe, k: int) -> Terms:
    """A plain mixture's losses: the task on both passes, and the balance of the feature router's gates on both."""
    terms = two_pass_terms(passes.full, passes.partial, labels, recipe)
    terms["balance"] = losses.balance_loss(clean_routing(torch.cat([passes.feature, passes.student]), k), k)
    return weighted(terms, recipe)


def warmup_losses(passes: Passes, labels: Tensor, recipe: LossRecipe, k: int, *, complete: Tensor) -> Terms:
    """A plain mixture's losses while the residual router learns from the feature router, so that it can take over.

    The imitation runs the other way than after the warm-up, and stops at the feature router.
    """
    terms = mixture_losses(passes, labels, recipe, k)
    del terms["loss"]
    terms["imitate"] = terms["task"].detach() * 0.0
    if anywhere(complete.any()):
        routing, feature = passes.residual.of(complete), passes.student[complete]
        terms["imitate"] = losses.imitation_loss(feature, routing.clean, temperature=recipe.imitate_temperature)
    return weighted(terms, recipe)
