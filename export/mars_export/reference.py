"""What the model itself answers: the reference of the parity gate, and the size of a step in it.

Axes: B samples, N experts, K experts that run, H height, W width.
Design decision: routed by the gates that every engine uses, so that a tie breaks alike on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mars_edge import subsets
from mars_edge.errors import ParityError
from mars_edge.gates import top_k_gates
from mars_export.pieces import output_steps, pieces_of
from mars_training.data.split import Split
from mars_training.model.mars import DeployedMars

Precision = Literal["int8", "fp16", "fp32"]
# Stand in for a quantization step of a float artifact, as shares of the largest value: two of them are 0.1 %
# and 0.4 % (measured in the methods of the bundled face model: 0.1 % in float16).
FLOAT_STEPS: Mapping[Precision, float] = {"fp32": 5e-4, "fp16": 2e-3, "int8": 5e-4}
# No difference at all is allowed where every value is zero.
_LEAST_STEP = 1e-30


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model's own answers: logits (B, classes) or (B, classes, H, W), router logits (B, N), experts (B, K)."""

    logits: NDArray[np.float32]
    router_logits: NDArray[np.float32]
    experts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of one output step of the head and of the router, in their own units."""

    logit_step: float
    router_step: float


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of one piece: what goes in and what the model makes of it, batch 1."""

    method: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@torch.no_grad()
def answers(model: DeployedMars, split: Split, wanted: Sequence[subsets.Subset]) -> dict[subsets.Subset, Reference]:
    """The model's answers to every row under each subset, whether the row has it or not.

    Raises:
        ParityError: a feature or an answer of the model itself is not finite.
    """
    model.eval()
    features = model.encode_all(split.batch(torch.arange(len(split))))
    for name, feature in zip(model.modalities, features, strict=True):
        _require_finite(feature, f"the feature of {name}")
    return {subset: _answer(model, features, subset) for subset in wanted}


def _answer(model: DeployedMars, features: Sequence[Tensor], subset: subsets.Subset) -> Reference:
    z, router_logits = model.route(features, _present(model, subset, len(features[0])))
    chosen, gates = _gates(router_logits, model.active_experts)
    logits = model.decide(z, gates)
    _require_finite(router_logits, f"the router logits of {'+'.join(subset)}")
    _require_finite(logits, f"the logits of {'+'.join(subset)}")
    return Reference(logits=logits.numpy(), router_logits=router_logits.numpy(), experts=chosen)


def _present(model: DeployedMars, subset: subsets.Subset, rows: int) -> Tensor:
    return torch.from_numpy(subsets.mask(subset, model.modalities)).expand(rows, -1)


def _gates(router_logits: Tensor, k: int) -> tuple[NDArray[np.int64], Tensor]:
    """The chosen experts (B, K) and the gates (B, N)."""
    chosen, weights = top_k_gates(router_logits.numpy(), k)
    return chosen, torch.zeros_like(router_logits).scatter(1, torch.from_numpy(chosen), torch.from_numpy(weights))


def _require_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise ParityError(f"the model itself gives NaN or infinity: {what}")


@torch.no_grad()
def calls(model: DeployedMars, sample: Mapping[str, Tensor], subset: subsets.Subset) -> Iterator[Call]:
    """A call of every piece that one sample (B = 1) meets with `subset` present; of the experts all, chosen or not."""
    pieces = pieces_of(model.eval())
    features = []
    for name in model.modalities:
        feature = pieces[f"encode_{name}"](sample[name])
        features.append(feature if name in subset else torch.zeros_like(feature))
        if name in subset:
            yield Call(method=f"encode_{name}", inputs=(sample[name],), outputs=(feature,))
    z, router_logits = pieces["route"](*features)
    yield Call(method="route", inputs=tuple(features), outputs=(z, router_logits))
    _, gates = _gates(router_logits, model.active_experts)
    combined = torch.zeros(())
    for i in range(len(model.experts)):
        given = pieces[f"expert_{i}"](z)
        yield Call(method=f"expert_{i}", inputs=(z,), outputs=(given,))
        combined = combined + gates[0, i] * given
    if model.expert_shared is not None:
        given = pieces["expert_shared"](z)
        yield Call(method="expert_shared", inputs=(z,), outputs=(given,))
        combined = combined + given
    yield Call(method="head", inputs=(combined,), outputs=(pieces["head"](combined),))


def scale_of(model: DeployedMars, references: Sequence[Reference], precision: Precision) -> Scale:
    """The steps of the answers: one quantizer serves every subset, so the range of a float output is that of all.

    Raises:
        ParityError: the model gives the same logits for everything, so that nothing could be told apart.
    """
    logits = np.concatenate([answer.logits for answer in references])
    if len(logits) > 1 and np.all(logits == logits[:1]):
        raise ParityError("the model itself gives the same logits for every sample and subset: nothing to compare")
    router_logits = np.concatenate([answer.router_logits for answer in references])
    return Scale(
        logit_step=step(model, "head", 0, logits, precision, alone=False),
        router_step=step(model, "route", 1, router_logits, precision, alone=False),
    )


def step(
    model: DeployedMars,
    method: str,
    output: int,
    values: NDArray[np.float32],
    precision: Precision,
    *,
    alone: bool = True,
) -> float:
    """One output step of a piece.

    A quantized output has its own. A float output of a quantized piece, or of any piece of an int8 artifact when it
    is not run alone, counts in steps of the int8 it might have been: 1/255 of the range of `values`. Other float
    outputs count in a small share (`FLOAT_STEPS`) of the largest of `values`.
    """
    steps = output_steps(pieces_of(model)[method])
    own = steps[output] if steps else None
    if own is not None:
        return own
    like_int8 = float(np.ptp(values)) / 255.0 if steps or (precision == "int8" and not alone) else 0.0
    return like_int8 or max(FLOAT_STEPS[precision] * float(np.abs(values).max()), _LEAST_STEP)


def quantizers(piece: nn.Module) -> int:
    """How many activations a piece quantizes; 0 for a float piece."""
    traced = getattr(piece, "traced", None)
    nodes = traced.graph.nodes if isinstance(traced, torch.fx.GraphModule) else ()
    return sum(str(node.target).startswith("quantized_decomposed.quantize_per_tensor") for node in nodes)
