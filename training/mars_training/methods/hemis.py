"""HeMIS: the mean and the variance over whichever modalities are there.

Axes: B batch, M modalities, C channels, H height, W width.
Source: arXiv 1607.05194, section 2 (abstraction layer). Ours: the two moments go through the same fusion block,
stage and head as in the other methods; masks are drawn as for all methods, not by the paper's curriculum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_training.data.split import Batch, Task
from mars_training.methods.peer import Peer, channels_of, mars_parameters, matched_width, projections, stacked
from mars_training.methods.step import Step, own_partial, two_pass_terms, weighted
from mars_training.model.build import build_encoders, build_full_expert, build_head, channels_last, parameter_count
from mars_training.model.fusion import fusion_of
from mars_training.model.rows import on_rows
from mars_training.recipe import LossRecipe, ModelRecipe


def moments(features: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance (B, C, H, W) over the modalities that are there; the variance of one is zero."""
    x = torch.stack(list(features), dim=1)
    there = present.view(*present.shape, 1, 1, 1)
    count = there.sum(dim=1).to(x.dtype)
    mean = torch.where(there, x, 0.0).sum(dim=1) / count.clamp_min(1)
    deviation = torch.where(there, x - mean[:, None], 0.0).square().sum(dim=1)
    return mean, deviation / (count - 1).clamp_min(1)


class MomentFusion(nn.Module):
    """Logits from the moments of the projected features that are there."""

    def __init__(self, *, project: nn.ModuleList, fusion: nn.Module, stage: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.project = project
        self.fusion = fusion
        self.stage = stage
        self.head = head

    def forward(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        return self.decide([module(f) for module, f in zip(self.project, features, strict=True)], present)

    def decide(self, projected: Sequence[Tensor], present: Tensor) -> Tensor:
        """Logits from features that are projected."""
        logits: Tensor = self.head(self.stage(self.fusion(moments(projected, present))))
        return logits


def build_hemis(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> Peer:
    """The untrained model, as many parameters as the deployed MARS model."""
    encoders = build_encoders(recipe, modalities)
    project = projections(channels_of(recipe, encoders), recipe.width)
    fusion = fusion_of(2 * recipe.width, recipe)

    def ends(width: int) -> tuple[nn.Module, nn.Module]:
        stage = build_full_expert(recipe, channels=(*recipe.expert_channels[:-1], width))
        return stage, build_head(recipe, width, classes, task)

    fixed = sum(map(parameter_count, [*encoders.values(), project, fusion]))
    stage, head = ends(matched_width(mars_parameters(recipe, modalities, classes, task) - fixed, ends))
    core = MomentFusion(project=project, fusion=fusion, stage=stage, head=head)
    return channels_last(Peer(encoders=encoders, core=core))


def step(model: nn.Module, batch: Batch, partial: Tensor, loss: LossRecipe, epoch: int) -> Step:
    """Two passes, cross-entropy only."""
    assert isinstance(model, Peer) and isinstance(model.core, MomentFusion)
    features = model.encode_rows(batch.inputs, batch.present)
    twice, masks = stacked(features, batch.present, own_partial(partial, batch.present))
    projected = on_rows(model.core.project, twice, batch.present.repeat(2, 1), copies=2)
    full, incomplete = model.core.decide(projected, masks).float().chunk(2)
    return Step(terms=weighted(two_pass_terms(full, incomplete, batch.labels, loss), loss))
