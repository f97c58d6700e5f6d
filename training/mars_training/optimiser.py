"""The optimiser of a recipe: its parameter groups and how its rate moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mars_edge.errors import UsageError
from mars_training.methods import deployed_of
from mars_training.recipe import ScheduleRecipe

# arXiv 1606.00915.
_POLY_POWER = 0.9


def optimiser_groups(
    model: nn.Module, weight_decay: float, encoder_rate: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Every trainable parameter once: matrices and kernels decay, biases and norm scales do not.

    `encoder_rate` is a factor on the rate of an encoder's parameters, by modality; it is a group's "factor".

    Raises:
        UsageError: `encoder_rate` names an encoder that the model does not have.
    """
    own = _encoder_factors(model, encoder_rate or {})
    members: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            group = (own.get(id(parameter), 1.0), parameter.dim() > 1)
            members.setdefault(group, []).append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay if decays else 0.0, "factor": factor}
        for (factor, decays), params in members.items()
    ]


def _encoder_factors(model: nn.Module, encoder_rate: Mapping[str, float]) -> dict[int, float]:
    if not encoder_rate:
        return {}
    encoders = deployed_of(model).encoders
    for name in encoder_rate:
        if name not in encoders:
            raise UsageError(f"schedule.encoder_rate names {name!r}; the encoders are: {', '.join(encoders)}")
    return {id(p): factor for name, factor in encoder_rate.items() for p in encoders[name].parameters()}


def build_optimiser(model: nn.Module, recipe: ScheduleRecipe) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum.

    Raises:
        UsageError: `encoder_rate` names an encoder that the model does not have.
    """
    groups = optimiser_groups(model, recipe.weight_decay, recipe.encoder_rate)
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.rate)
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Every group takes `rate` times its own factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


def rate_factor(recipe: ScheduleRecipe, epoch: float) -> float:
    """The factor on the base rate at `epoch` (real): linear warm-up, then as `recipe.schedule` says.

    "cosine" falls to 0.01, "poly" to 0 as the remaining share to the power 0.9, "step" by 0.1 at each milestone.
    """
    if epoch < recipe.warmup_epochs:
        return max(epoch, 0.1) / recipe.warmup_epochs if recipe.warmup_epochs > 0.1 else 1.0
    if recipe.schedule == "step":
        return float(0.1 ** sum(epoch >= m * recipe.epochs for m in recipe.milestones))
    progress = min((epoch - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1e-9), 1.0)
    if recipe.schedule == "poly":
        return float((1.0 - progress) ** _POLY_POWER)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))
