"""The baseline every claim is measured against: modality-dropout fusion without experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_training.data.split import Batch, Task
from mars_training.methods.peer import mars_parameters, matched_width
from mars_training.methods.step import Step, own_partial, per_mask, two_pass_terms, weighted
from mars_training.model.build import (
    build_encoders,
    build_full_expert,
    build_fusion,
    build_head,
    channels_last,
    parameter_count,
)
from mars_training.model.mars import mask_features
from mars_training.model.rows import encode_rows
from mars_training.recipe import LossRecipe, ModelRecipe


class DropoutFusion(nn.Module):
    """Encoders, fusion and one wide stage, trained with modalities hidden at random.

    Same harness as MARS: a complete and an incomplete pass per step, the mask drawn uniformly.
    """

    def __init__(
        self, *, encoders: Mapping[str, nn.Module], fusion: nn.Module, expert: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion
        self.expert = expert
        self.head = head

    @property
    def deployed(self) -> DropoutFusion:
        """What a device would run: all of it."""
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in fusion order."""
        return tuple(self.encoders.keys())

    def encode_all(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Every modality's feature, in fusion order."""
        return [module(inputs[name]) for name, module in self.encoders.items()]

    def classify(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """Class logits (B, classes) from features already encoded, under the mask `present` (B, M)."""
        logits: Tensor = self.head(self.expert(self.fusion(mask_features(features, present))))
        return logits.float()

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Class logits (B, classes) for any mask."""
        return self.classify(self.encode_all(inputs), present)

    def two_passes(self, inputs: Mapping[str, Tensor], present: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits with all that is `present` (B, M) and under `partial` (P B, M), from one stacked batch."""
        encoded = encode_rows(self.encoders, inputs, present)
        features = [torch.cat([f, per_mask(f, partial)]) for f in encoded]
        logits = self.classify(features, torch.cat([present, partial]))
        return logits[: len(present)], logits[len(present) :]


def build_dropout_fusion(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> DropoutFusion:
    """The baseline: the same encoders and fusion, then one stage, as wide as `baseline_size` says.

    "parameters": the width whose parameter count comes closest to the deployed MARS model's. "expert": the width of
    one expert, which is the paper's own baseline and about what MARS computes per decision.
    """
    target = mars_parameters(recipe, modalities, classes, task)
    encoders = build_encoders(recipe, modalities)
    fusion = build_fusion(recipe, list(encoders))
    fixed = sum(map(parameter_count, [*encoders.values(), fusion]))

    def stage(width: int) -> tuple[nn.Module, nn.Module]:
        expert = build_full_expert(recipe, channels=(*recipe.expert_channels[:-1], width))
        return expert, build_head(recipe, width, classes, task)

    matched = recipe.baseline_size == "parameters"
    width = matched_width(target - fixed, stage) if matched else recipe.expert_channels[-1]
    expert, head = stage(width)
    return channels_last(DropoutFusion(encoders=encoders, fusion=fusion, expert=expert, head=head))


def step(model: nn.Module, batch: Batch, partial: Tensor, loss: LossRecipe, epoch: int) -> Step:
    """The same two passes as MARS takes, cross-entropy only."""
    assert isinstance(model, DropoutFusion)
    full, incomplete = model.two_passes(batch.inputs, batch.present, own_partial(partial, batch.present))
    return Step(terms=weighted(two_pass_terms(full, incomplete, batch.labels, loss), loss))
