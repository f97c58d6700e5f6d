"""DMRNet: each combination's embedding is a Gaussian; the loss sees samples of it, inference its mean.

Axes: B batch, M modalities, C channels, H height, W width.
Source: arXiv 2407.04458, sections 3.2 (decoupled representation) and 3.3 (hard combination regularizer); mean and
variance as 1x1 blocks after the last stage, sampled per pixel and pooled by the head, and the weights, as released.
Ours: which combinations are hard is decided in every batch, by the predicted variance; the released settings name
them by hand for each data set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_training import draws
from mars_training.data.split import Batch, Task
from mars_training.distributed import all_rows, all_sum
from mars_training.losses import row_losses, standard_normal_divergence
from mars_training.methods.peer import Peer, keep, mars_parameters, matched_width, stacked
from mars_training.methods.step import Step, own_partial, two_pass_terms, weighted
from mars_training.model.build import (
    build_encoders,
    build_full_expert,
    build_fusion,
    build_head,
    channels_last,
    parameter_count,
)
from mars_training.model.mars import mean_by_combination
from mars_training.recipe import LossRecipe, ModelRecipe


def _moment(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))


class MeanEmbedding(nn.Module):
    """Logits from the mean of the embedding's distribution."""

    def __init__(self, width: int, *, fusion: nn.Module, stage: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion
        self.stage = stage
        self.mean = _moment(width)
        self.head = head

    def embed(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """The map that mean and variance are read from."""
        e: Tensor = self.stage(self.fusion(keep(features, present)))
        return e

    def forward(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mean(self.embed(features, present)))
        return logits


class TrainingDmrnet(nn.Module):
    """The deployed model and the variance of its embedding, which exists in training only."""

    def __init__(self, deployed: Peer, width: int) -> None:
        super().__init__()
        self.deployed = deployed
        self.log_variance = _moment(width)


def build_dmrnet(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> TrainingDmrnet:
    """The untrained model, its deployed part with as many parameters as the deployed MARS model."""
    encoders = build_encoders(recipe, modalities)

    def core(width: int) -> MeanEmbedding:
        return MeanEmbedding(
            width,
            fusion=build_fusion(recipe, list(encoders)),
            stage=build_full_expert(recipe, channels=(*recipe.expert_channels[:-1], width)),
            head=build_head(recipe, width, classes, task),
        )

    fixed = sum(map(parameter_count, encoders.values()))
    width = matched_width(mars_parameters(recipe, modalities, classes, task) - fixed, lambda w: [core(w)])
    return channels_last(TrainingDmrnet(Peer(encoders=encoders, core=core(width)), width))


def step(model: nn.Module, batch: Batch, partial: Tensor, loss: LossRecipe, epoch: int) -> Step:
    """Two passes over sampled embeddings, their divergence from the standard normal, and hard combinations again."""
    assert isinstance(model, TrainingDmrnet)
    core = model.deployed.core
    assert isinstance(core, MeanEmbedding)
    partial = own_partial(partial, batch.present)
    e = core.embed(*stacked(model.deployed.encode_rows(batch.inputs, batch.present), batch.present, partial))
    mean, log_variance = core.mean(e).float(), model.log_variance(e).float()
    # Per row, for both of its passes: they are stacked in each process, not over all of them.
    drawn = draws.normal(len(batch), 2, *mean.shape[1:], device=mean.device)
    sampled = mean + torch.cat(drawn.unbind(dim=1)) * (0.5 * log_variance).exp()
    full, incomplete = core.head(sampled).float().chunk(2)
    terms = two_pass_terms(full, incomplete, batch.labels, loss)
    terms["kl"] = standard_normal_divergence(mean, log_variance)
    rows = hard_rows(log_variance.chunk(2)[1], partial)
    terms["hard"] = (row_losses(incomplete, batch.labels, loss) * rows).mean()
    return Step(terms=weighted(terms, loss, hard=loss.hard if epoch >= loss.first_stage else 0.0))


def hard_rows(log_variance: Tensor, partial: Tensor) -> Tensor:
    """Boolean (B,): rows of the combinations whose mean variance is above that of the batch's mean combination."""
    variance = log_variance.detach().exp().flatten(1).mean(dim=1, keepdim=True)
    of_row = mean_by_combination(variance, partial).squeeze(1)
    everyone = all_rows(partial.to(variance.dtype)).bool()
    same = (partial[:, None, :] == everyone[None, :, :]).all(dim=2).sum(dim=1)
    # Every combination counts once, however often it was drawn.
    average = all_sum((of_row / same).sum()) / all_sum((1.0 / same).sum())
    return of_row > average
