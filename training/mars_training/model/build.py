"""From a recipe to an untrained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.split import Task
from mars_training.model.backbones import encoder, feature_channels, feature_stride
from mars_training.model.deployable import Deployable
from mars_training.model.experts import expert
from mars_training.model.fusion import Fusion, fusion_of
from mars_training.model.heads import Head, SegmentationHead
from mars_training.model.mars import DeployedMars, RouteStage, TrainingMars
from mars_training.model.routers import CombinationBias, FeatureRouter, ResidualRouter
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
    return {m.name: encoder(m, recipe.encoders.get(m.name, EncoderRecipe())) for m in modalities}


def build_fusion(recipe: ModelRecipe, names: Sequence[str]) -> Fusion:
    """The untrained fusion of the features of `names`."""
    widths = [feature_channels(recipe.encoders.get(name, EncoderRecipe())) for name in names]
    return fusion_of(sum(widths), recipe, widths)


def expert_width(recipe: ModelRecipe) -> int:
    """Channels of an expert's map: what a head reads."""
    return recipe.expert_channels[-1]


def build_expert(recipe: ModelRecipe, *, channels: Sequence[int] | None = None) -> nn.Module:
    """One routed expert, `channels` in place of the recipe's `expert_channels`: z (B, d, H, W) to a map."""
    return expert(recipe.expert_kind, recipe, recipe.expert_channels if channels is None else channels)


def build_full_expert(recipe: ModelRecipe, *, channels: Sequence[int] | None = None) -> nn.Module:
    """An expert that needs no other beside it: the shared one, or the one wide stage of a model without experts.

    It has the form of a routed one, but for low-rank experts, which correct a "conv" one.
    """
    kind = "conv" if recipe.expert_kind == "low_rank" else recipe.expert_kind
    return expert(kind, recipe, recipe.expert_channels if channels is None else channels)


def build_head(recipe: ModelRecipe, width: int, classes: int, task: Task = "classification") -> nn.Module:
    """The head that reads maps of `width` channels: logits (B, classes), or (B, classes, H, W) at the input's size."""
    if task == "classification":
        return Head(width, classes)
    # Encoders whose maps differ in size are refused by the fusion, so one speaks for all.
    stride = max(map(feature_stride, recipe.encoders.values()), default=feature_stride(EncoderRecipe()))
    kept = 1 if recipe.expert_kind == "mlp" else recipe.expert_stride
    return SegmentationHead(width, classes, stride * recipe.fusion_stride * kept)


def build_deployed(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> DeployedMars:
    """The untrained model that a device will run, in channels-last memory format."""
    encoders = build_encoders(recipe, modalities)
    router = FeatureRouter(recipe.width, recipe.experts)
    combination = CombinationBias(len(encoders), recipe.experts) if recipe.combination_router else None
    model = DeployedMars(
        encoders=encoders,
        route_stage=RouteStage(build_fusion(recipe, list(encoders)), router, combination=combination),
        experts=[build_expert(recipe) for _ in range(recipe.experts)],
        head=build_head(recipe, expert_width(recipe), classes, task),
        active_experts=recipe.active_experts,
        expert_shared=build_full_expert(recipe) if recipe.shared_expert else None,
        dispatch=recipe.dispatch,
    )
    return channels_last(model)


def build_training_mars(
    recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task = "classification"
) -> TrainingMars:
    """The deployed model beside its privileged residual router."""
    return wrap_for_training(build_deployed(recipe, modalities, classes, task), recipe)


def wrap_for_training(deployed: DeployedMars, recipe: ModelRecipe) -> TrainingMars:
    """`deployed`, any of its pieces replaced or not, beside a fresh residual router, where the recipe has one."""
    router = ResidualRouter(recipe.width, recipe.experts, recipe.active_experts, noisy=recipe.router_noise)
    return TrainingMars(
        deployed,
        router if recipe.residual_routing else None,
        detach_residual=recipe.detach_residual,
        residual_scope=recipe.residual_scope,
        student_rate=recipe.student_rate,
        expert_dropout=recipe.expert_dropout,
        router_warmup=recipe.router_warmup,
    )


def channels_last(model: Model) -> Model:
    """`model` with its weights in channels-last memory format."""
    # nn.Module.to accepts memory_format, but its type stubs tie it to no device argument.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
