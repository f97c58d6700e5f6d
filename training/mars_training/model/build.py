"""From a recipe to an untrained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.baselines import DropoutFusion
from mars_training.model.backbones import encoder
from mars_training.model.blocks import conv_stack
from mars_training.model.fusion import Fusion
from mars_training.model.mars import DeployedMars, Head, RouteStage, TrainingMars
from mars_training.model.routers import FeatureRouter, ResidualRouter
from mars_training.recipe import EncoderRecipe, ModelRecipe, Recipe

Model = TypeVar("Model", bound=nn.Module)


def parameter_count(module: nn.Module) -> int:
    """Trainable scalars in `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def build_encoders(recipe: ModelRecipe, modalities: Sequence[Modality]) -> dict[str, nn.Module]:
    """One encoder per modality, in fusion order.

    Raises:
        UsageError: the recipe has an encoder table for a modality the data lacks.
    """
    names = [m.name for m in modalities]
    unknown = sorted(set(recipe.encoders) - set(names))
    if unknown:
        raise UsageError(f"recipe has an encoder for {unknown[0]!r}; the data has: {', '.join(names)}")
    return {m.name: encoder(m.shape, recipe.encoders.get(m.name, EncoderRecipe())) for m in modalities}


def _fusion(recipe: ModelRecipe, names: Sequence[str]) -> Fusion:
    inputs = sum(recipe.encoders.get(name, EncoderRecipe()).outputs for name in names)
    return Fusion(inputs, recipe.width, kernel=recipe.fusion_kernel, stride=recipe.fusion_stride)


def build_expert(recipe: ModelRecipe, *, channels: Sequence[int] | None = None) -> nn.Module:
    """One expert: z (B, d, H, W) to a map; its first block strides, later ones keep the size."""
    widths = recipe.expert_channels if channels is None else channels
    strides = [recipe.expert_stride, *[1] * (len(widths) - 1)]
    return conv_stack(recipe.width, widths, kernel=recipe.expert_kernel, strides=strides)


def build_deployed(recipe: ModelRecipe, modalities: Sequence[Modality], classes: int) -> DeployedMars:
    """The untrained model that a device will run, in channels-last memory format."""
    encoders = build_encoders(recipe, modalities)
    router = FeatureRouter(recipe.width, recipe.experts)
    model = DeployedMars(
        encoders=encoders,
        route_stage=RouteStage(_fusion(recipe, list(encoders)), router),
        experts=[build_expert(recipe) for _ in range(recipe.experts)],
        head=Head(recipe.expert_channels[-1], classes),
        active_experts=recipe.active_experts,
        expert_shared=build_expert(recipe) if recipe.shared_expert else None,
    )
    return _channels_last(model)


def build_training_mars(recipe: ModelRecipe, modalities: Sequence[Modality], classes: int) -> TrainingMars:
    """The deployed model beside its privileged residual router."""
    return wrap_for_training(build_deployed(recipe, modalities, classes), recipe)


def wrap_for_training(deployed: DeployedMars, recipe: ModelRecipe) -> TrainingMars:
    """`deployed`, any of its pieces replaced or not, beside a fresh residual router."""
    return TrainingMars(
        deployed,
        ResidualRouter(recipe.width, recipe.experts, recipe.active_experts),
        detach_residual=recipe.detach_residual,
        residual_scope=recipe.residual_scope,
        student_rate=recipe.student_rate,
        expert_dropout=recipe.expert_dropout,
    )


def build_dropout_fusion(recipe: ModelRecipe, modalities: Sequence[Modality], classes: int) -> DropoutFusion:
    """The baseline: the same encoders and fusion, then one stage as wide as parameters allow.

    Its width is the one whose parameter count comes closest to the deployed MARS model's.
    """
    target = parameter_count(build_deployed(recipe, modalities, classes))
    encoders = build_encoders(recipe, modalities)
    fusion = _fusion(recipe, list(encoders))
    fixed = sum(map(parameter_count, [*encoders.values(), fusion]))

    def stage(width: int) -> tuple[nn.Module, nn.Module]:
        return build_expert(recipe, channels=(*recipe.expert_channels[:-1], width)), Head(width, classes)

    one, two = (sum(map(parameter_count, stage(width))) for width in (1, 2))
    width = max(1, round((target - fixed - (2 * one - two)) / (two - one)))
    expert, head = stage(width)
    return _channels_last(DropoutFusion(encoders=encoders, fusion=fusion, expert=expert, head=head))


def build_model(recipe: Recipe, modalities: Sequence[Modality], classes: int) -> TrainingMars | DropoutFusion:
    """What the recipe's method trains."""
    if recipe.method == "mars":
        return build_training_mars(recipe.model, modalities, classes)
    return build_dropout_fusion(recipe.model, modalities, classes)


def _channels_last(model: Model) -> Model:
    # nn.Module.to accepts memory_format, but its type stubs tie it to no device argument.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
