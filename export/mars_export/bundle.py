"""One artifact from one model: lowered, proven in its engine, calibrated, and only then given its name.

    pieces -> payload with a draft manifest -> engine -> parity -> operating points -> golden answers
           -> payload with the whole manifest -> engine, self-test -> renamed to its place

Nothing is left at the destination unless every step has passed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

import mars_edge
from mars_edge import subsets
from mars_edge.artifact import write_sealed
from mars_edge.errors import EngineError, ParityError, UsageError
from mars_edge.manifest import Golden, Manifest, OperatingPoint, Policy, Tensor, required_methods
from mars_export import calibrate, parity, to_executorch, to_onnx
from mars_export.evaluate import Engine, engine_answers, open_artifact
from mars_export.pieces import Examples, example_inputs, output_steps, pieces_of
from mars_training.checkpoint import RunInfo
from mars_training.data.split import Split
from mars_training.model.mars import DeployedMars

Precision = Literal["int8", "fp32"]
Note = Callable[[str], None]
LEAST_COVERAGE = 0.9
_PACKAGES = ("torch", "torchao", "executorch", "onnx", "onnxscript", "onnxruntime", "numpy")
# The golden sample is searched for among this many: one whose routing is far from a tie in every subset.
_GOLDEN_CANDIDATES = 64


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The samples an export needs; `parity` is disjoint from all that training and calibration saw."""

    validation: Split
    test: Split
    parity: Split


@dataclass(frozen=True, kw_only=True)
class Model:
    """A deployed model ready for lowering, and where it came from.

    Attributes:
        deployed: converted (int8) or folded (fp32) pieces.
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


class Payload(Protocol):
    """A lowered model that can be serialised with any manifest."""

    def program(self, manifest: str) -> bytes:
        """The artifact without its seal."""

    def coverage(self) -> Mapping[str, to_executorch.Coverage]:
        """Per method, what the delegate executes; empty where there is no delegate."""


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


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was put where."""

    path: Path
    size_bytes: int
    manifest: Manifest


def lower(model: Model, suffix: str) -> Payload:
    """The model's pieces for the format that `suffix` names, ".pte" or ".onnx".

    Raises:
        UsageError: another suffix.
        ParityError: too few operations of a .pte run on its delegate.
    """
    pieces = pieces_of(model.deployed)
    examples = example_inputs(model.deployed, model.shapes, batch=1)
    if suffix == ".pte":
        lowered = to_executorch.lower(pieces, examples)
        to_executorch.require_coverage(lowered.coverage(), LEAST_COVERAGE)
        return lowered
    if suffix != ".onnx":
        raise UsageError(f"output suffix {suffix!r} is unknown; allowed: .pte, .onnx")
    models = to_onnx.export_pieces(pieces, examples)
    if model.precision == "int8":
        for proto in models.values():
            to_onnx.to_unsigned(proto)
    return OnnxPayload(layout=_layout(model, examples), models=models)


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


def write(
    path: Path, model: Model, splits: Splits, *, payload: Payload | None = None, note: Note = lambda text: None
) -> Written:
    """Puts a proven artifact at `path`; a file that is there stays as it is until then.

    Args:
        payload: lowered from `model` when None.
        note: called with one line per stage.

    Raises:
        ParityError: the artifact does not answer as `model`, or too little of it runs on the delegate.
        UsageError: another suffix than .pte and .onnx, or a split lacks a class.
    """
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} into")
    note(f"{path.name}: lowering {model.precision}")
    payload = payload or lower(model, path.suffix)
    draft = _draft(model)
    with tempfile.TemporaryDirectory(prefix="mars-edge-") as folder:
        proven = _prove(Path(folder) / f"draft{path.suffix}", payload, draft, model, splits, note)
        final = payload.program(proven.to_json())
        _self_test(Path(folder) / f"final{path.suffix}", final)
    sealed = write_sealed(path, final)
    note(f"{path.name}: {len(sealed.data):,} bytes")
    return Written(path=path, size_bytes=len(sealed.data), manifest=proven)


def _prove(path: Path, payload: Payload, draft: Manifest, model: Model, splits: Splits, note: Note) -> Manifest:
    """`draft` with parity, operating points and golden answers, all measured in the target engine."""
    write_sealed(path, payload.program(draft.to_json()))
    engine = open_artifact(path, self_test=False)
    try:
        note(f"{path.suffix[1:]} in {engine.name}: parity on {len(splits.parity)} samples, every subset")
        report = parity.check(engine, model.deployed, splits.parity)
        note(f"{path.suffix[1:]} in {engine.name}: operating points on {len(splits.test)} test samples")
        points = _operating_points(engine, model, splits)
        golden = _golden(engine, model, splits.validation)
    finally:
        engine.close()
    coverage = {name: {"share": c.share, "left": list(c.left)} for name, c in payload.coverage().items()}
    return replace(draft, parity={**report.to_dict(), "coverage": coverage}, operating_points=points, golden=golden)


def _self_test(path: Path, payload: bytes) -> None:
    write_sealed(path, payload)
    try:
        open_artifact(path, self_test=True).close()
    except EngineError as error:
        raise ParityError(f"the finished file does not answer as its draft did: {error}") from error


def _draft(model: Model) -> Manifest:
    """The manifest without what only the engine can tell."""
    recipe, source = model.info.recipe, model.info.source
    examples = example_inputs(model.deployed, model.shapes, batch=1)
    steps = output_steps(model.deployed.head)
    fields: dict[str, Any] = {
        "name": recipe.name,
        "task": "classification",
        "labels": source.labels,
        "positive_label": source.positive_label,
        "modalities": source.modalities,
        "experts": len(model.deployed.experts),
        "active_experts": model.deployed.active_experts,
        "shared_expert": model.deployed.expert_shared is not None,
        "feature_shapes": {name: tuple(f.shape[1:]) for name, f in zip(source.names, examples["route"], strict=True)},
        "z_shape": tuple(examples["expert_0"][0].shape[1:]),
        "precision": model.precision,
        "methods": tuple(pieces_of(model.deployed)),
        "operating_points": {},
        "logit_step": steps[0] if steps else None,
        "policy": Policy(
            require=recipe.export.require,
            on_missing=recipe.export.on_missing,
            masking_faults=recipe.export.masking_faults,
        ),
        "provenance": _provenance(model),
    }
    draft = Manifest(**fields)
    assert set(draft.methods) == set(required_methods(draft))
    return draft


def _provenance(model: Model) -> dict[str, Any]:
    versions = {"mars-edge": mars_edge.__version__} | {name: metadata.version(name) for name in _PACKAGES}
    return {
        "note": model.info.source.note,
        "recipe": _plain(model.info.recipe.to_dict()),
        "seed": model.info.seed,
        "versions": versions,
        **model.provenance,
    }


def _plain(value: Any) -> Any:
    """The same tables with lists for tuples: what JSON gives back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _operating_points(engine: Engine, model: Model, splits: Splits) -> dict[str, OperatingPoint]:
    wanted = subsets.all_subsets(model.info.source.names)
    validation = engine_answers(engine, splits.validation, wanted)
    test = engine_answers(engine, splits.test, wanted)
    return {
        subsets.label(subset, model.info.source.names): calibrate.operating_point(
            (validation[subset].logits, splits.validation),
            (test[subset].logits, splits.test),
            model.info.source,
            model.info.recipe.export,
        )
        for subset in wanted
    }


def _golden(engine: Engine, model: Model, validation: Split) -> Golden:
    """A validation sample in uint8 whose routing no device should tip over, and the engine's answers to it."""
    wanted = subsets.all_subsets(model.info.source.names)
    candidates = _as_bytes(validation.take(torch.arange(min(_GOLDEN_CANDIDATES, len(validation)))))
    reference = parity.reference_answers(model.deployed, candidates, wanted)
    k = model.deployed.active_experts
    margins = np.min([_routing_margin(answer.router_logits, k) for answer in reference.values()], axis=0)
    chosen = candidates.take(torch.tensor([int(margins.argmax())]))
    answers = engine_answers(engine, chosen, wanted)
    largest = max(float(np.abs(a.logits).max()) for a in answers.values())
    steps = output_steps(model.deployed.head)
    step = steps[0] if steps else None
    return Golden(
        inputs={name: Tensor.of(_bytes(x[0])) for name, x in chosen.batch(torch.tensor([0])).items()},
        logits={
            subsets.label(subset, model.info.source.names): tuple(float(v) for v in answer.logits[0])
            for subset, answer in answers.items()
        },
        tolerance=1e-3 * largest if step is None else parity.MOST_STEPS * step * 1.005,
    )


def _routing_margin(router_logits: Any, k: int) -> Any:
    """How far the K-th largest logit is above the next, (B,); infinite when every expert runs."""
    ordered = -np.sort(-router_logits, axis=1)
    return ordered[:, k - 1] - ordered[:, k] if ordered.shape[1] > k else np.full(len(ordered), np.inf)


def _bytes(x: torch.Tensor) -> Any:
    return (x.float() * 255.0).round().clamp(0, 255).to(torch.uint8).numpy()


def _as_bytes(split: Split) -> Split:
    """The split with every input rounded to k / 255, in float32: exactly what the manifest can store."""
    inputs = {
        name: torch.from_numpy(_bytes(x).astype(np.float32) / np.float32(255.0))
        for name, x in split.batch(torch.arange(len(split))).items()
    }
    return replace(split, inputs=inputs)


def held_out(test: Split, count: int, seen: Mapping[str, Split]) -> Split:
    """`count` samples spread evenly over the test split, proven disjoint from the `seen` splits.

    Raises:
        UsageError: count is below 1.
        ParityError: a sample is in a seen split.
    """
    if count < 1:
        raise UsageError(f"--parity-samples is {count}; parity needs at least 1 sample")
    indices = np.unique(np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(np.int64))
    chosen = test.take(torch.from_numpy(indices))
    parity.require_disjoint(chosen, seen)
    return chosen


def expected_files(paths: Sequence[Path]) -> None:
    """Passes when every output is a .pte or .onnx and none is named twice.

    Raises:
        UsageError: names the first that is not.
    """
    for path in paths:
        if path.suffix not in (".pte", ".onnx"):
            raise UsageError(f"output {path} is neither .pte nor .onnx: the suffix decides the format")
    if len(set(paths)) != len(paths):
        raise UsageError(f"an output is named twice: {', '.join(map(str, paths))}")
