"""What a model costs: parameters and multiply-accumulates of its pieces, memory of a training step.

Axes: B batch, M modalities.
Design decision: nothing is computed. Tensors on torch's meta device have a shape and no values, so a network of any
size is measured in the time it takes to walk through it. A multiply-accumulate (MAC) is half of torch's two floating
point operations; convolutions, linear layers and recurrent layers count, batch norms, activations and poolings do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.split import Task
from mars_training.model.build import parameter_count
from mars_training.model.deployable import Deployable
from mars_training.model.mars import DeployedMars
from mars_training.recipe import ScheduleRecipe

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One piece: its trainable parameters, and MACs for one sample."""

    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """A deployed model, piece by piece.

    Attributes:
        pieces: by method name: encode_<modality>, route, expert_<i>, expert_shared, head; a model without experts
            has one piece "classify" for all that follows its encoders.
        active_experts: how many experts a decision needs; 0 where there are none.
    """

    pieces: Mapping[str, Cost]
    active_experts: int

    @property
    def parameters(self) -> int:
        """Trainable parameters of all pieces."""
        return sum(cost.parameters for cost in self.pieces.values())

    @property
    def experts(self) -> tuple[Cost, ...]:
        """The routed experts."""
        return tuple(cost for name, cost in self.pieces.items() if _is_expert(name))

    def macs(self, subset: Iterable[str], *, sparse: bool = True) -> int:
        """MACs of one decision with only `subset` present: an absent modality's encoder does not run.

        `sparse` runs the active experts alone, as a device does; else all of them run.
        """
        present = {f"encode_{name}" for name in subset}
        fixed = sum(
            cost.macs
            for name, cost in self.pieces.items()
            if not _is_expert(name) and (name in present or not name.startswith("encode_"))
        )
        each = max((cost.macs for cost in self.experts), default=0)
        return fixed + each * (self.active_experts if sparse else len(self.experts))


def _is_expert(name: str) -> bool:
    return name.startswith("expert_") and name != "expert_shared"


def costs(deployed: Deployable, modalities: Sequence[Modality], task: Task = "classification") -> Costs:
    """The costs of `deployed` for inputs of the modalities' shapes; the model is unchanged and may be on any device.

    Raises:
        UsageError: the encoders' maps do not fit together, or a segmentation's logits not the input's size.
    """
    with _evaluating(_module(deployed)):
        return (
            _of_mars(deployed, modalities, task)
            if isinstance(deployed, DeployedMars)
            else _of_other(deployed, modalities, task)
        )


def _of_mars(deployed: DeployedMars, modalities: Sequence[Modality], task: Task) -> Costs:
    pieces, features = _encoders(deployed, modalities)
    pieces["route"], (z, _) = _measure(deployed.route_stage, *features)
    # All experts have one form: one is measured for all.
    expert, combined = _measure(deployed.experts[0], z)
    pieces |= {f"expert_{i}": expert for i in range(len(deployed.experts))}
    if deployed.expert_shared is not None:
        pieces["expert_shared"], combined = _measure(deployed.expert_shared, z)
    pieces["head"], logits = _measure(deployed.head, combined)
    _check_size(logits, modalities, task)
    return Costs(pieces=pieces, active_experts=deployed.active_experts)


def _of_other(deployed: Deployable, modalities: Sequence[Modality], task: Task) -> Costs:
    pieces, features = _encoders(deployed, modalities)
    present = torch.ones(1, len(features), dtype=torch.bool, device="meta")
    whole, logits = _measure(_Classify(deployed), features, present)
    encoded = sum(cost.parameters for cost in pieces.values())
    pieces["classify"] = Cost(parameters=whole.parameters - encoded, macs=whole.macs)
    _check_size(logits, modalities, task)
    return Costs(pieces=pieces, active_experts=0)


def _encoders(deployed: Deployable, modalities: Sequence[Modality]) -> tuple[dict[str, Cost], list[Tensor]]:
    pieces, features = {}, []
    for modality in modalities:
        x = torch.empty(1, *modality.shape, device="meta")
        pieces[f"encode_{modality.name}"], feature = _measure(deployed.encoders[modality.name], x)
        features.append(feature)
    return pieces, features


def _measure(module: nn.Module, *inputs: Any) -> tuple[Cost, Any]:
    """Its cost for one sample, and its outputs, on the meta device."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        outputs = functional_call(module, _without_memory(module), inputs)
    return Cost(parameters=parameter_count(module), macs=counter.get_total_flops() // 2), outputs


def _without_memory(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters and buffers as tensors of the same shapes on the meta device."""
    tensors: dict[str, Tensor] = dict(module.named_buffers())
    tensors |= dict(module.named_parameters())
    return {name: torch.empty_like(t, device="meta").requires_grad_(t.requires_grad) for name, t in tensors.items()}


def _check_size(logits: Tensor, modalities: Sequence[Modality], task: Task) -> None:
    if task == "classification":
        return
    size = next(m.shape[1:] for m in modalities if m.kind == "image")
    found = tuple(logits.shape[2:])
    if found != size:
        raise UsageError(
            f"the logits are {found[0]} x {found[1]} and the images {size[0]} x {size[1]} pixels; "
            "segmentation needs images whose sides the total stride divides"
        )


class _Classify(nn.Module):
    """`classify` as a module's forward."""

    def __init__(self, deployed: Deployable) -> None:
        super().__init__()
        self.deployed = _module(deployed)

    def forward(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        return cast(Deployable, self.deployed).classify(features, present)


def _module(deployed: Deployable) -> nn.Module:
    assert isinstance(deployed, nn.Module)
    return deployed


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a training step needs at least, in float32.

    Attributes:
        weights: parameters and buffers.
        gradients: one number per trainable parameter.
        optimiser: AdamW's two averages per parameter, or the momentum.
        activations: what the backward pass of one step needs of its forward pass.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all four."""
        return self.weights + self.gradients + self.optimiser + self.activations


def training_memory(
    model: nn.Module, modalities: Sequence[Modality], schedule: ScheduleRecipe, *, crop_px: int = 0
) -> Memory:
    """The memory of one step of the recipe's batch size: every encoder once, all that follows twice, on 2 B rows.

    Activations are the tensors that autograd keeps in such a step, each storage counted once, every expert computed,
    plus the log-probabilities; their sizes are exact for MARS and modality dropout in float32 and close for the other
    peers. Allocator, workspaces, data and what only the losses keep are not in it; bfloat16 needs less.
    """
    trainable = parameter_count(model) * _FLOAT_BYTES
    states = 2 if schedule.optimiser == "adamw" else int(schedule.momentum > 0)
    tensors = [*model.parameters(), *model.buffers()]
    return Memory(
        weights=sum(t.numel() * t.element_size() for t in tensors),
        gradients=trainable,
        optimiser=states * trainable,
        activations=_activations(cast(Deployable, model.deployed), modalities, schedule.batch_size, crop_px),
    )


def _activations(deployed: Deployable, modalities: Sequence[Modality], batch: int, crop_px: int) -> int:
    inputs = {m.name: torch.empty(batch, *_cropped(m, crop_px), device="meta") for m in modalities}
    step = _TwoPasses(deployed)
    tensors = _without_memory(step)
    # Kept alive until the end: a storage that is freed may lend its address to the next one.
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {t.untyped_storage()._cdata for t in tensors.values()}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return t

    with _training(step), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits: Tensor = functional_call(step, tensors, (inputs,))
    return sum(int(storage.nbytes()) for storage in kept.values()) + logits.numel() * _FLOAT_BYTES


def _cropped(modality: Modality, crop_px: int) -> tuple[int, ...]:
    return (modality.channels, crop_px, crop_px) if crop_px and modality.kind == "image" else modality.shape


class _TwoPasses(nn.Module):
    """Every encoder once, then the complete and an incomplete pass as one batch: logits (2 B, ...)."""

    def __init__(self, deployed: Deployable) -> None:
        super().__init__()
        self.deployed = _module(deployed)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        deployed = cast(Deployable, self.deployed)
        features = [torch.cat([f, f]) for f in deployed.encode_all(inputs)]
        present = torch.ones(len(features[0]), len(features), dtype=torch.bool, device="meta")
        return deployed.classify(features, present)


@contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    with _evaluating(module):
        module.train()
        yield
