"""From a quantized or folded model to a payload: its pieces in the form of one target, ready for any manifest.

Axes: N experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from onnx import numpy_helper

from mars_edge.manifest import Manifest
from mars_export import to_executorch, to_onnx
from mars_export.onnx_structure import check_structure
from mars_export.pieces import Examples, example_inputs, float_pieces, output_steps, pieces_of
from mars_export.targets import Precision as Precision
from mars_export.targets import Target, default_target
from mars_training.checkpoint import RunInfo
from mars_training.costs import costs
from mars_training.methods import build_model, deployed_of
from mars_training.model.build import parameter_count
from mars_training.model.mars import DeployedMars


@dataclass(frozen=True, kw_only=True)
class Model:
    """A deployed model ready for lowering, and where it came from.

    Attributes:
        deployed: converted (int8) or folded (fp16, fp32) pieces.
        provenance: JSON types; what was done to the run to get here.
    """

    deployed: DeployedMars
    precision: Precision
    info: RunInfo
    provenance: Mapping[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Preprocessed shape per modality."""
        return {m.name: m.shape for m in self.info.source.modalities}

    def examples(self) -> Examples:
        """Inputs of every piece, batch 1."""
        return example_inputs(self.deployed, self.shapes, batch=1)

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of one call of every piece: those of the float pieces of the same recipe."""
        source = self.info.source
        with torch.device("meta"):
            deployed = float_pieces(self._shape())
        return {name: cost.macs for name, cost in costs(deployed, source.modalities, source.task).pieces.items()}

    def parameters(self) -> int:
        """Trained numbers of the deployed path of the recipe, before anything is folded or quantized."""
        return parameter_count(self._shape())

    def _shape(self) -> DeployedMars:
        """The recipe's deployed network on the meta device."""
        source = self.info.source
        with torch.device("meta"):
            deployed = deployed_of(build_model(self.info.recipe, source.modalities, len(source.labels), source.task))
        assert isinstance(deployed, DeployedMars)
        return deployed


def bare_manifest(model: Model, active_experts: int, provenance: Mapping[str, Any]) -> Manifest:
    """What an engine checks a file of `model` against, and nothing that was measured."""
    source, examples, steps = model.info.source, model.examples(), output_steps(model.deployed.head)
    return Manifest(
        name=model.info.recipe.name,
        task=source.task,
        labels=source.labels,
        positive_label=source.positive_label,
        modalities=source.modalities,
        experts=len(model.deployed.experts),
        active_experts=active_experts,
        shared_expert=model.deployed.expert_shared is not None,
        feature_shapes={name: tuple(f.shape[1:]) for name, f in zip(source.names, examples["route"], strict=True)},
        z_shape=tuple(examples["expert_0"][0].shape[1:]),
        precision=model.precision,
        methods=tuple(pieces_of(model.deployed)),
        operating_points={},
        provenance=provenance,
        logit_step=steps[0] if steps else None,
    )


class Payload(Protocol):
    """A lowered model that can be serialised with any manifest."""

    def program(self, manifest: str) -> bytes:
        """The artifact without its seal."""

    def coverage(self) -> Mapping[str, to_executorch.Coverage]:
        """Per method, what the delegate executes; empty where there is no delegate."""

    def weight_bytes(self) -> Mapping[str, int]:
        """Per method, the bytes of its constants as they are stored."""

    def memory(self) -> Mapping[str, int]:
        """Per method, planned bytes of intermediate values; empty where the runtime plans them itself."""


@dataclass(frozen=True, kw_only=True)
class OnnxPayload:
    """The pieces as ONNX models, assembled anew for every manifest."""

    layout: to_onnx.Layout
    models: Mapping[str, Any]

    def program(self, manifest: str) -> bytes:
        """See `Payload.program`."""
        return to_onnx.serialize(to_onnx.assemble(self.layout, self.models, manifest))

    def coverage(self) -> Mapping[str, to_executorch.Coverage]:
        """onnxruntime executes every node itself."""
        return {}

    def weight_bytes(self) -> Mapping[str, int]:
        """See `Payload.weight_bytes`."""
        return {method: _stored_bytes(model) for method, model in self.models.items()}

    def memory(self) -> Mapping[str, int]:
        """onnxruntime plans its memory at run time."""
        return {}


def _stored_bytes(model: Any) -> int:
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


def lower(model: Model, target: Target | str) -> Payload:
    """The model's pieces in the form of `target`, or of the default target of a suffix, ".pte" or ".onnx".

    Raises:
        UsageError: another suffix, a precision that the target cannot hold, or a backend that is not here.
        ParityError: too little work of a .pte is on its delegate, or the target's runtime cannot load the graph.
    """
    target = default_target(target) if isinstance(target, str) else target
    target.require_precision(model.precision)
    pieces, examples = pieces_of(model.deployed), model.examples()
    if target.suffix == ".pte":
        lowered = to_executorch.lower(pieces, examples, target, model.precision)
        to_executorch.require_coverage(lowered.coverage(), target.least_coverage)
        return lowered
    models = to_onnx.lower(pieces, examples, precision=model.precision, weights=target.weights, opset=target.opset)
    payload = OnnxPayload(layout=_layout(model, examples), models=models)
    assert target.runtime != "executorch", "a target of .onnx files has another runtime"
    check_structure(to_onnx.assemble(payload.layout, models, "{}"), target.runtime)
    return payload


def _layout(model: Model, examples: Examples) -> to_onnx.Layout:
    names = model.deployed.modalities
    return to_onnx.Layout(
        modalities=names,
        experts=len(model.deployed.experts),
        active_experts=model.deployed.active_experts,
        shared_expert=model.deployed.expert_shared is not None,
        inputs={name: (1, *model.shapes[name]) for name in names},
        features={name: tuple(f.shape) for name, f in zip(names, examples["route"], strict=True)},
        expert_output=tuple(examples["head"][0].shape),
        classes=len(model.info.source.labels),
    )
