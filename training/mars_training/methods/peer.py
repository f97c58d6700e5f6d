"""What the peers of MARS have in common: encoders, then one core that classifies under a mask.

Axes: B batch, M modalities, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.split import Task
from mars_training.model.backbones import feature_channels
from mars_training.model.blocks import conv_bn_relu
from mars_training.model.build import build_deployed, parameter_count
from mars_training.model.rows import encode_rows
from mars_training.recipe import EncoderRecipe, ModelRecipe


class Peer(nn.Module):
    """A peer as a device would run it: `core(features, present)` is its logits; nothing of training is in it."""

    def __init__(self, *, encoders: Mapping[str, nn.Module], core: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.core = core

    @property
    def deployed(self) -> Peer:
        """What a device would run: all of it."""
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in fusion order."""
        return tuple(self.encoders.keys())

    def encode_all(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Every modality's feature, in fusion order."""
        return [module(inputs[name]) for name, module in self.encoders.items()]

    def encode_rows(self, inputs: Mapping[str, Tensor], present: Tensor) -> list[Tensor]:
        """Every modality's feature of the rows that have it by `present` (B, M), for a training step."""
        return encode_rows(self.encoders, inputs, present)

    def classify(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """Class logits, float32, from features already encoded, under the mask `present` (B, M)."""
        logits: Tensor = self.core(features, present)
        return logits.float()

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Class logits for any mask."""
        return self.classify(self.encode_all(inputs), present)


def stacked(features: Iterable[Tensor], present: Tensor, partial: Tensor) -> tuple[list[Tensor], Tensor]:
    """The two passes of a step as one batch of 2 B: every feature twice, under `present` and under `partial`."""
    return [torch.cat([f, f]) for f in features], torch.cat([present, partial])


def keep(features: Sequence[Tensor], present: Tensor) -> list[Tensor]:
    """Each feature (B, C, H, W) where `present` (B, M) is true, zeros elsewhere, whatever was there."""
    columns = present.unbind(dim=1)
    return [torch.where(p.view(-1, 1, 1, 1), f, 0.0) for f, p in zip(features, columns, strict=True)]


def channels_of(recipe: ModelRecipe, names: Iterable[str]) -> list[int]:
    """The channels of every modality's feature."""
    return [feature_channels(recipe.encoders.get(name, EncoderRecipe())) for name in names]


def projections(channels: Sequence[int], width: int) -> nn.ModuleList:
    """Per modality, a 1x1 block from its feature to `width` channels, so that features can be compared."""
    return nn.ModuleList(conv_bn_relu(c, width, kernel=1) for c in channels)


def matched_width(target: int, parts: Callable[[int], Iterable[nn.Module]]) -> int:
    """The channels at which the modules `parts(channels)` together come closest to `target` parameters.

    Modules are made without memory for their weights: only their sizes are asked for.
    """

    def size(width: int) -> int:
        with torch.device("meta"):
            return sum(map(parameter_count, parts(width)))

    low, high = 1, 2
    while size(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < target else (low, middle)
    return min((low, high), key=lambda width: abs(size(width) - target))


def mars_parameters(recipe: ModelRecipe, modalities: Sequence[Modality], classes: int, task: Task) -> int:
    """The parameters of the deployed MARS model of the same recipe, which a peer's are matched to."""
    return parameter_count(build_deployed(recipe, modalities, classes, task))


def require_classification(method: str, task: Task) -> None:
    """Refuse a task that the method's paper does not treat.

    Raises:
        UsageError: the task is segmentation.
    """
    if task != "classification":
        raise UsageError(
            f"method is {method!r} and the task {task}; allowed for it: classification, which is all its paper treats"
        )
