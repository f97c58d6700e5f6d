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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import mars_edge
from mars_edge import subsets
from mars_edge.artifact import write_sealed
from mars_edge.errors import EngineError, ParityError, UsageError
from mars_edge.manifest import Manifest, MethodCost, Policy, required_methods, subset_cost
from mars_export import golden, operating, parity, reference, to_onnx
from mars_export.evaluate import open_artifact, wanted_subsets
from mars_export.lowering import Model as Model
from mars_export.lowering import Payload, bare_manifest, lower
from mars_export.onnx_precision import require_half_range
from mars_export.pieces import pieces_of
from mars_export.targets import Target, default_target
from mars_training.data.split import Split

Note = Callable[[str], None]
Explain = Callable[[Payload, parity.Pieces, tuple[str, ...]], None]
_HALF_SAMPLES = 16
_PACKAGES = ("torch", "torchao", "executorch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The samples an export needs.

    Attributes:
        parity: disjoint from all that training and calibration saw.
        parity_rows: of every parity sample, which row of `test` it is; counted from 0 when None.
    """

    validation: Split
    test: Split
    parity: Split
    parity_rows: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was put where."""

    path: Path
    size_bytes: int
    manifest: Manifest


def write(
    path: Path,
    model: Model,
    splits: Splits,
    *,
    target: Target | None = None,
    payload: Payload | None = None,
    explain: Explain | None = None,
    note: Note = lambda text: None,
) -> Written:
    """Puts a proven artifact at `path`; a file that is there stays as it is until then.

    Args:
        target: the default one of the suffix when None.
        payload: lowered from `model` when None.
        explain: is told, once parity is measured, the payload and the methods that fail it (none if it passes).
        note: called with one line per stage.

    Raises:
        ParityError: the artifact does not answer as `model`, or too little of it runs on the delegate.
        UsageError: another suffix than .pte and .onnx, a target that cannot be run here, or no subset can be measured.
    """
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} into")
    target = target or default_target(path.suffix)
    target.require_proof(unverified=False)
    parity.require_finite_weights(model.deployed)
    note(f"{path.name}: lowering {model.precision} for {target.name}")
    payload = payload or lower(model, target)
    _require_half_range(model, splits.validation)
    draft = replace(_draft(model, payload), target=target.name)
    with tempfile.TemporaryDirectory(prefix="mars-edge-") as folder:
        proven = _prove(Path(folder) / f"draft{path.suffix}", payload, draft, model, splits, explain, note)
        final = payload.program(proven.to_json())
        _self_test(Path(folder) / f"final{path.suffix}", final)
    sealed = write_sealed(path, final)
    note(f"{path.name}: {len(sealed.data):,} bytes")
    return Written(path=path, size_bytes=len(sealed.data), manifest=proven)


def write_unverified(path: Path, model: Model, target: Target, *, note: Note = lambda text: None) -> Written:
    """Puts an artifact for a runtime that is not here at `path`, without proof: it has no operating point.

    Its manifest says so, and a runtime abstains on every subset.

    Raises:
        ParityError: too little of it is on the delegate.
        UsageError: the target's backend cannot be lowered here, or can be proven, so it has to be.
    """
    target.require_proof(unverified=True)
    note(f"{path.name}: lowering {model.precision} for {target.name}, unverified")
    payload = lower(model, target)
    said = {"verified": False, "not_run": target.not_run, "coverage": _coverage(payload)}
    manifest = replace(_draft(model, payload), target=target.name, parity=said)
    sealed = write_sealed(path, payload.program(manifest.to_json()))
    return Written(path=path, size_bytes=len(sealed.data), manifest=manifest)


def _require_half_range(model: Model, validation: Split) -> None:
    """Passes unless a value inside an fp16 model leaves float16's range: a CPU computes such graphs in float32."""
    if model.precision != "fp16":
        return
    everything = model.info.source.names
    inputs: dict[str, list[list[NDArray[Any]]]] = {}
    for row in range(min(_HALF_SAMPLES, len(validation))):
        for call in reference.calls(model.deployed, validation.batch(torch.tensor([row])), everything):
            inputs.setdefault(call.method, []).append([x.contiguous().numpy() for x in call.inputs])
    require_half_range(to_onnx.lower(pieces_of(model.deployed), model.examples(), precision="fp32"), inputs)


def _coverage(payload: Payload) -> dict[str, Any]:
    return {name: {"share": c.share, "left": list(c.left)} for name, c in payload.coverage().items()}


def _prove(
    path: Path,
    payload: Payload,
    draft: Manifest,
    model: Model,
    splits: Splits,
    explain: Explain | None,
    note: Note,
) -> Manifest:
    """`draft` with parity, operating points and golden answers, all measured in the target engine."""
    write_sealed(path, payload.program(draft.to_json()))
    engine = open_artifact(path, self_test=False, threads=parity.THREADS)
    try:
        note(f"{path.suffix[1:]} in {engine.name}: parity on {len(splits.parity)} samples, every subset")
        pieces = parity.runner_of(engine, path)
        report = parity.measure(engine, model.deployed, splits.parity, pieces=pieces, rows=splits.parity_rows)
        _require_parity(report, payload, pieces, explain)
        note(f"{path.suffix[1:]} in {engine.name}: operating points on {len(splits.test)} test samples")
        points, calibration = operating.points(engine, splits.validation, splits.test, model.info)
        sample = golden.make(engine, draft, model.deployed, splits.validation, wanted_subsets(draft))
    finally:
        engine.close()
    return replace(
        draft,
        parity={**report.to_dict(), "coverage": _coverage(payload)},
        operating_points=points,
        golden=sample,
        provenance={**draft.provenance, "calibration": calibration},
    )


def _require_parity(report: parity.Parity, payload: Payload, pieces: parity.Pieces, explain: Explain | None) -> None:
    try:
        parity.require_parity(report)
    except ParityError:
        if explain is not None:
            explain(payload, pieces, parity.worst_methods(report))
        raise
    if explain is not None:
        explain(payload, pieces, ())


def _self_test(path: Path, payload: bytes) -> None:
    write_sealed(path, payload)
    try:
        open_artifact(path, self_test=True, threads=parity.THREADS).close()
    except EngineError as error:
        raise ParityError(f"the finished file does not answer as its draft did: {error}") from error


def _draft(model: Model, payload: Payload) -> Manifest:
    """The manifest without what only the engine can tell."""
    export = model.info.recipe.export
    draft = replace(
        bare_manifest(model, model.deployed.active_experts, _provenance(model)),
        policy=Policy(require=export.require, on_missing=export.on_missing, masking_faults=export.masking_faults),
        costs=_costs(model, payload),
        parameters=model.parameters(),
    )
    assert set(draft.methods) == set(required_methods(draft))
    costs = {subsets.label(s, draft.names): subset_cost(draft, s) for s in wanted_subsets(draft)}
    return replace(draft, subset_costs=costs)


def _costs(model: Model, payload: Payload) -> dict[str, MethodCost]:
    macs, weights, memory = model.macs(), payload.weight_bytes(), payload.memory()
    return {
        method: MethodCost(macs=macs[method], weight_bytes=weights[method], activation_bytes=memory.get(method))
        for method in pieces_of(model.deployed)
    }


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


def held_out_rows(test: Split, count: int, seen: Mapping[str, Split]) -> tuple[tuple[int, ...], Split]:
    """Which rows of the test split parity is measured on, and `held_out` itself."""
    if count < 1:
        raise UsageError(f"--parity-samples is {count}; parity needs at least 1 sample")
    indices = np.unique(np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(np.int64))
    chosen = test.take(torch.from_numpy(indices))
    parity.require_disjoint(chosen, seen)
    return tuple(indices.tolist()), chosen


def held_out(test: Split, count: int, seen: Mapping[str, Split]) -> Split:
    """`count` samples spread evenly over the test split, proven disjoint from the `seen` splits.

    Raises:
        UsageError: count is below 1.
        ParityError: a sample is in a seen split.
    """
    return held_out_rows(test, count, seen)[1]


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
