"""From a recipe to an untrained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.split import Task
from mars_training.model.backbones import encoder
from mars_training.model.blocks import conv_stack
from mars_training.model.deployable import Deployable
from mars_training.model.fusion import Fusion
from mars_training.model.heads import Head
from mars_training.model.mars import DeployedMars, RouteStage, TrainingMars
from mars_training.model.routers import FeatureRouter, ResidualRouter
from mars_training.recipe import EncoderRecipe, ModelRecipe

Model = TypeVar("Model", bound=nn.Module)


def parameter_count(module: nn.Module | Deployable) -> int:
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


def build_fusion(recipe: ModelRecipe, names: Sequence[str]) -> Fusion:
    """The untrained fusion of the features of `names`."""
    inputs = sum(recipe.encoders.get(name, EncoderRecipe()).outputs for name in names)
    return Fusion(inputs, recipe.width, kernel=recipe.fusion_kernel, stride=recipe.fusion_stride)


def build_expert(recipe: ModelRecipe, *, channels: Sequence[int] | None = None) -> nn.Module:
    """One expert: z (B, d, H, W) to a map; its first block strides, later ones keep the size."""
    widths = recipe.expert_channels if channels is None else channels
    strides = [recipe.expert_stride, *[1] * (len(widths) - 1)]
    return conv_stack(recipe.width, widths, kernel=recipe.expert_kernel, strides=strides)


def build_deployed(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> DeployedMars:
    """The untrained model that a device will run, in channels-last memory format."""
    encoders = build_encoders(recipe, modalities)
    router = FeatureRouter(recipe.width, recipe.experts)
    model = DeployedMars(
        encoders=encoders,
        route_stage=RouteStage(build_fusion(recipe, list(encoders)), router),
        experts=[build_expert(recipe) for _ in range(recipe.experts)],
        head=Head(recipe.expert_channels[-1], classes),
        active_experts=recipe.active_experts,
        expert_shared=build_expert(recipe) if recipe.shared_expert else None,
    )
    return channels_last(model)


def build_training_mars(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> TrainingMars:
    """The deployed model beside its privileged residual router."""
    return wrap_for_training(build_deployed(recipe, modalities, classes, task), recipe)


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


def channels_last(model: Model) -> Model:
    """`model` with its weights in channels-last memory format."""
    # nn.Module.to accepts memory_format, but its type stubs tie it to no device argument.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
