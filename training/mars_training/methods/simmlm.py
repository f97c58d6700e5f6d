"""SimMLM: one expert per modality, mixed by a gating network, and more modalities must not do worse than fewer.

Axes: B batch, M modalities.
Source: arXiv 2507.19264, sections 3.1 (dynamic mixture of modality experts) and 3.2 (More vs. Fewer loss). Ours: the
gating network reads the encoders' features, not raw inputs, which differ in shape; the experts' own stage is the
first `loss.first_stage` epochs of the same run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_training.data.split import Batch, Task
from mars_training.distributed import mean_over
from mars_training.losses import ranking_loss, row_losses
from mars_training.methods.peer import (
    Peer,
    channels_of,
    keep,
    mars_parameters,
    matched_width,
    stacked,
)
from mars_training.methods.step import Step, Terms, own_partial, two_pass_terms, weighted
from mars_training.model.build import build_encoders, build_full_expert, build_head, channels_last, parameter_count
from mars_training.model.fusion import Fusion, fusion_of
from mars_training.model.rows import on_rows
from mars_training.recipe import LossRecipe, ModelRecipe


class ModalityExpert(nn.Module):
    """One modality's logits from its feature alone."""

    def __init__(self, *, fusion: Fusion, stage: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion
        self.stage = stage
        self.head = head

    def forward(self, feature: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stage(self.fusion([feature])))
        return logits


class ModalityGates(nn.Module):
    """Weights (B, M) of the modalities that are there, from the pooled features; zero for the others."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(sum(channels), width)
        self.out = nn.Linear(width, len(channels))

    def forward(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        pooled = torch.cat([f.mean((2, 3)) for f in keep(features, present)], dim=1)
        logits = self.out(self.hidden(pooled).relu()).float()
        weights: Tensor = logits.masked_fill(~present, -torch.inf).softmax(dim=1)
        return weights


class ModalityMixture(nn.Module):
    """The weighted sum of the modality experts' logits."""

    def __init__(self, *, experts: Sequence[ModalityExpert], gates: ModalityGates) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gates = gates

    def alone(self, features: Sequence[Tensor], there: Tensor | None = None) -> list[Tensor]:
        """Every expert's own logits; in a training step from the rows that have its modality by `there` (B, M)."""
        if there is None:
            return [expert(f).float() for expert, f in zip(self.experts, features, strict=True)]
        return [answer.float() for answer in on_rows(self.experts, features, there)]

    def mix(self, answers: Sequence[Tensor], features: Sequence[Tensor], present: Tensor) -> Tensor:
        """sum_m w_m o_m over the modalities that are there."""
        weights = self.gates(features, present).unbind(dim=1)
        shape = (-1, *[1] * (answers[0].dim() - 1))
        parts = [w.view(shape) * o for w, o in zip(weights, _where(answers, present), strict=True)]
        return torch.stack(parts).sum(dim=0)

    def forward(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        return self.mix(self.alone(features), features, present)


def _where(answers: Sequence[Tensor], present: Tensor) -> list[Tensor]:
    # An infinite logit of an absent modality times a weight of zero would be NaN.
    shape = (-1, *[1] * (answers[0].dim() - 1))
    return [torch.where(p.view(shape), o, 0.0) for o, p in zip(answers, present.unbind(dim=1), strict=True)]


def build_simmlm(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> Peer:
    """The untrained model, as many parameters as the deployed MARS model."""
    encoders = build_encoders(recipe, modalities)
    sizes = channels_of(recipe, encoders)
    gates = ModalityGates(sizes, recipe.width)

    def experts(width: int) -> list[ModalityExpert]:
        channels = (*recipe.expert_channels[:-1], width)
        return [
            ModalityExpert(
                fusion=fusion_of(size, recipe),
                stage=build_full_expert(recipe, channels=channels),
                head=build_head(recipe, width, classes, task),
            )
            for size in sizes
        ]

    fixed = sum(map(parameter_count, [*encoders.values(), gates]))
    width = matched_width(mars_parameters(recipe, modalities, classes, task) - fixed, experts)
    return channels_last(Peer(encoders=encoders, core=ModalityMixture(experts=experts(width), gates=gates)))


def step(model: nn.Module, batch: Batch, partial: Tensor, loss: LossRecipe, epoch: int) -> Step:
    """Two passes over the same expert logits, and the ranking loss between them; before that, each expert alone."""
    assert isinstance(model, Peer) and isinstance(model.core, ModalityMixture)
    features = model.encode_rows(batch.inputs, batch.present)
    answers = model.core.alone(features, batch.present)
    if epoch < loss.first_stage:
        return Step(terms=alone_terms(answers, batch, loss))
    twice, masks = stacked(features, batch.present, own_partial(partial, batch.present))
    full, incomplete = model.core.mix([torch.cat([o, o]) for o in answers], twice, masks).chunk(2)
    terms = two_pass_terms(full, incomplete, batch.labels, loss)
    more, fewer = (row_losses(logits, batch.labels, loss) for logits in (full, incomplete))
    return Step(terms=weighted(terms | {"rank": ranking_loss(more, fewer)}, loss))


def alone_terms(answers: Sequence[Tensor], batch: Batch, loss: LossRecipe) -> Terms:
    """Every expert's own task loss, over the rows that have its modality, summed."""
    each = torch.stack([row_losses(o, batch.labels, loss) for o in answers], dim=1)
    there = batch.present.to(each.dtype)
    task = mean_over(torch.where(batch.present, each, 0.0).sum(dim=0), there.sum(dim=0)).sum()
    return weighted({"task": task}, loss)
