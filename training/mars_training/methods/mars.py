"""MARS: two passes, four losses.

Axes: B batch, M modalities, N experts, K active experts.
Source: arXiv 2606.30355.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mars_training import losses
from mars_training.data.split import Batch
from mars_training.losses import task_loss
from mars_training.methods.step import Step, Terms, own_partial
from mars_training.model.mars import Passes, TrainingMars
from mars_training.recipe import LossRecipe


def step(model: nn.Module, batch: Batch, partial: Tensor, loss: LossRecipe, epoch: int) -> Step:
    """The losses of one batch; `partial` (B, M) is the drawn incomplete mask.

    A row that lacks a modality has no residual: it learns the task with what it has, routed by the feature
    router, and takes no part in the three routing losses.
    """
    assert isinstance(model, TrainingMars)
    complete = batch.present.all(dim=1)
    passes = model(batch.inputs, own_partial(partial, batch.present), batch.present)
    k = model.deployed.active_experts
    terms = mars_losses(passes, batch.labels, loss, k, epoch=epoch, complete=complete)
    with torch.no_grad():
        agreement = losses.router_agreement(passes.residual.clean, passes.student, k)
    return Step(terms=terms, agreement=torch.where(complete, agreement, torch.nan))


def mars_losses(
    passes: Passes, labels: Tensor, recipe: LossRecipe, k: int, *, epoch: int, complete: Tensor | None = None
) -> Terms:
    """The four losses of MARS and their weighted sum "loss"; rows outside `complete` (B,) have no residual."""
    task = task_loss(passes.full, labels, recipe)
    rows = torch.ones(len(labels), dtype=torch.bool, device=labels.device) if complete is None else complete
    zero = task.detach() * 0.0
    balance = imitate = noise = zero
    if bool(rows.any()):
        routing, student = passes.residual.of(rows), passes.student[rows]
        task = task + task_loss(passes.partial[rows], labels[rows], recipe)
        balance = losses.balance_loss(routing, k)
        imitate = losses.imitation_loss(routing.clean, student, temperature=recipe.imitate_temperature)
        noise = losses.noise_order_loss(routing.clean, student, routing.scale, k)
    imitate_weight = recipe.imitate if epoch >= recipe.imitate_start else 0.0
    total = recipe.task * task + recipe.balance * balance + imitate_weight * imitate + recipe.noise * noise
    return {"loss": total, "task": task, "balance": balance, "imitate": imitate, "noise": noise}
