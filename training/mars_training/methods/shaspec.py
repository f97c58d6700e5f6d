"""ShaSpec: what modalities share stands in for the one that is missing; what is specific to each is kept beside it.

Axes: B batch, M modalities, C channels, H height, W width.
Source: arXiv 2307.14126, section 3; alignment by L1 distance and the weights alpha, beta as released. Ours: the shared
encoder is one block over the projected features of the modalities' own encoders, since raw inputs differ in shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_edge.modality import Modality
from mars_training.data.split import Batch, Task
from mars_training.distributed import mean_over
from mars_training.methods.hemis import moments
from mars_training.methods.peer import Peer, channels_of, mars_parameters, matched_width, projections
from mars_training.methods.step import Step, own_partial, two_pass_terms, weighted
from mars_training.model.blocks import conv_bn_relu
from mars_training.model.build import build_encoders, build_full_expert, build_head, channels_last, parameter_count
from mars_training.model.fusion import fusion_of
from mars_training.model.rows import on_rows
from mars_training.recipe import LossRecipe, ModelRecipe


class SharedSpecific(nn.Module):
    """Logits from a shared and a specific feature per modality, fused with a residual connection."""

    def __init__(
        self, channels: Sequence[int], width: int, *, fusion: nn.Module, stage: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.project = projections(channels, width)
        self.shared = conv_bn_relu(width, width, kernel=1)
        self.specific = projections(channels, width)
        self.mix = nn.Conv2d(2 * width, width, 1)
        self.fusion = fusion
        self.stage = stage
        self.head = head

    def split(self, features: Sequence[Tensor], there: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Every modality's shared and specific feature, all (B, width, H, W).

        In a training step from the rows that have the modality by `there` (B, M), zeros for the others.
        """
        if there is None:
            shared = [self.shared(project(f)) for project, f in zip(self.project, features, strict=True)]
            return shared, [specific(f) for specific, f in zip(self.specific, features, strict=True)]
        in_common = [nn.Sequential(project, self.shared) for project in self.project]
        return on_rows(in_common, features, there), on_rows(self.specific, features, there)

    def fuse(self, shared: Sequence[Tensor], specific: Sequence[Tensor], present: Tensor) -> Tensor:
        """Logits; a missing modality is the mean of the shared features of those that are there."""
        stand_in, _ = moments(shared, present)
        fused = [
            torch.where(there.view(-1, 1, 1, 1), self.mix(torch.cat([r, s], dim=1)) + r, stand_in)
            for r, s, there in zip(shared, specific, present.unbind(dim=1), strict=True)
        ]
        logits: Tensor = self.head(self.stage(self.fusion(fused)))
        return logits

    def forward(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        return self.fuse(*self.split(features), present)


class TrainingShaSpec(nn.Module):
    """The deployed model and the classifier that tells modalities apart, which exists in training only."""

    def __init__(self, deployed: Peer, core: SharedSpecific, width: int) -> None:
        super().__init__()
        self.deployed = deployed
        self.domain = nn.Linear(width, len(core.project))


def build_shaspec(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> TrainingShaSpec:
    """The untrained model, its deployed part with as many parameters as the deployed MARS model."""
    encoders = build_encoders(recipe, modalities)
    channels = channels_of(recipe, encoders)

    def core(width: int) -> SharedSpecific:
        stage = build_full_expert(recipe, channels=(*recipe.expert_channels[:-1], width))
        fusion = fusion_of(len(channels) * recipe.width, recipe)
        return SharedSpecific(
            channels, recipe.width, fusion=fusion, stage=stage, head=build_head(recipe, width, classes, task)
        )

    fixed = sum(map(parameter_count, encoders.values()))
    target = mars_parameters(recipe, modalities, classes, task) - fixed
    chosen = core(matched_width(target, lambda width: [core(width)]))
    return channels_last(TrainingShaSpec(Peer(encoders=encoders, core=chosen), chosen, recipe.width))


def step(model: nn.Module, batch: Batch, partial: Tensor, loss: LossRecipe, epoch: int) -> Step:
    """Two passes over the same shared and specific features, and the two auxiliary losses over what rows have."""
    assert isinstance(model, TrainingShaSpec)
    core = model.deployed.core
    assert isinstance(core, SharedSpecific)
    shared, specific = core.split(model.deployed.encode_rows(batch.inputs, batch.present), batch.present)
    twice = [[torch.cat([f, f]) for f in features] for features in (shared, specific)]
    masks = torch.cat([batch.present, own_partial(partial, batch.present)])
    full, incomplete = core.fuse(twice[0], twice[1], masks).float().chunk(2)
    terms = two_pass_terms(full, incomplete, batch.labels, loss)
    terms["align"] = alignment_loss(shared, batch.present)
    told = torch.stack([model.domain(s.mean((2, 3))) for s in specific], dim=1).float()
    terms["domain"] = domain_loss(told, batch.present)
    return Step(terms=weighted(terms, loss))


def alignment_loss(shared: Sequence[Tensor], present: Tensor) -> Tensor:
    """Mean |r_i - r_j| of features (B, C, H, W) over the rows that have both modalities, summed over pairs."""
    total = shared[0].new_zeros(())
    for i, j in itertools.combinations(range(len(shared)), 2):
        both = (present[:, i] & present[:, j]).to(shared[i].dtype)
        distance = (shared[i] - shared[j]).abs().flatten(1).mean(dim=1)
        total = total + mean_over((distance * both).sum(), both.sum())
    return total


def domain_loss(told: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy of logits (B, M modalities, M) against the modality, mean over what is there."""
    rows, modality = present.nonzero(as_tuple=True)
    total = functional.cross_entropy(told[rows, modality], modality, reduction="sum")
    return mean_over(total, present.sum())
