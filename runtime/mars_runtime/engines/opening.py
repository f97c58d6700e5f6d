"""From a file to a running engine: verify, read the manifest, choose a runtime, self-test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mars_edge import subsets
from mars_edge.artifact import Sealed, onnx_manifest, verify
from mars_edge.errors import EngineError, MarsEdgeError, ModelFileError, UsageError
from mars_edge.manifest import Manifest, required_methods
from mars_runtime.engines import binding, graph, native
from mars_runtime.engines.binding import PythonRunner
from mars_runtime.engines.graph import OnnxEngine
from mars_runtime.engines.native import NativeRunner
from mars_runtime.engines.one_call import OneCallEngine
from mars_runtime.engines.protocol import BINDING, NATIVE, ONNX, Engine, MethodRunner, MethodSpec, TensorSpec
from mars_runtime.engines.staged import StagedEngine
from mars_runtime.engines.threads import default_threads
from mars_runtime.machine import usable_cores
from mars_runtime.models import find_model

ENGINES = {"pte": (NATIVE, BINDING), "onnx": (ONNX,)}
_ABSENCE = {NATIVE: native.absence, BINDING: binding.absence, ONNX: graph.absence}
_MANIFEST_METHOD = "manifest"


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """Whether one engine can be used here; `detail` is its version, or why not."""

    name: str
    available: bool
    detail: str


def engine_status() -> tuple[EngineStatus, ...]:
    """Every engine there is, in order of preference, without importing torch or onnxruntime."""
    return tuple(_status(name) for names in ENGINES.values() for name in names)


def open_engine(
    path: Path | str, *, threads: int | None = None, engine: str | None = None, self_test: bool = True
) -> Engine:
    """A running engine for the artifact, verified and tested.

    Args:
        path: a .pte or .onnx file, or the name of a bundled model.
        threads: for execution; None chooses by the manifest's costs, see `threads.default_threads`. The pool of
            ExecuTorch belongs to the process: a second .pte runs on the threads of the first, whatever its costs.
        engine: one of `ENGINES`; None takes the first that is there.
        self_test: run the manifest's golden input first.

    Raises:
        UsageError: no such file, or `engine` is unknown, absent or for another format.
        ModelFileError: the file is damaged, not ours, or disagrees with its own manifest.
        EngineError: no engine is there for the format, or the self-test failed.
    """
    sealed = verify(find_model(path))
    chosen = _choose(sealed.format, engine)
    opened = _open_onnx(sealed, threads) if chosen == ONNX else _open_pte(sealed, chosen, threads)
    try:
        if self_test:
            run_self_test(opened)
    except MarsEdgeError:
        opened.close()
        raise
    return opened


def read_manifest(sealed: Sealed) -> Manifest:
    """The manifest of a verified file; a .pte needs one of its engines.

    Raises:
        ModelFileError: there is none, or it is not valid.
        EngineError: no engine for .pte is there.
    """
    if sealed.format == "onnx":
        return Manifest.from_json(onnx_manifest(sealed))
    runner = _runner(_choose(sealed.format, None), sealed, None)
    try:
        return _pte_manifest(runner)
    finally:
        runner.close()


def run_self_test(engine: Engine) -> None:
    """The engine gives the manifest's golden logits on this device, for every subset recorded.

    Raises:
        EngineError: a logit is further off than the recorded tolerance.
    """
    golden = engine.manifest.golden
    if golden is None:
        return
    inputs = {m.name: golden.sample(m) for m in engine.manifest.modalities}
    for label, expected in golden.logits.items():
        present = subsets.parse(label, engine.manifest.names)
        given = golden.compared(engine.infer({name: inputs[name] for name in present}, {}).logits)
        difference = np.abs(given - np.array(expected, np.float32)).max()
        if not difference <= golden.tolerance:
            raise EngineError(
                f"self-test failed in {engine.name}: logits for {label} are off by {difference:.6g}, "
                f"allowed {golden.tolerance:.6g}; this device computes something else than the exporting one"
            )


def _status(name: str) -> EngineStatus:
    absence = _ABSENCE[name]()
    if absence is not None:
        return EngineStatus(name=name, available=False, detail=absence)
    if name == NATIVE:
        return EngineStatus(name=name, available=True, detail=f"ExecuTorch {native.version()}")
    # Imported here: it is slow, and a decision needs no version.
    from importlib import metadata

    package = "executorch" if name == BINDING else "onnxruntime"
    return EngineStatus(name=name, available=True, detail=f"{package} {metadata.version(package)}")


def _choose(file_format: str, wanted: str | None) -> str:
    fitting = ENGINES[file_format]
    if wanted is not None:
        if wanted not in fitting:
            raise UsageError(f"engine {wanted!r} cannot run a .{file_format}; allowed: {', '.join(fitting)}")
        absence = _ABSENCE[wanted]()
        if absence is not None:
            raise UsageError(f"engine {wanted!r} is not here: {absence}")
        return wanted
    reasons = {name: _ABSENCE[name]() for name in fitting}
    for name, reason in reasons.items():
        if reason is None:
            return name
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise EngineError(f"no engine for .{file_format} files is here ({listed})")


def _runner(chosen: str, sealed: Sealed, threads: int | None) -> MethodRunner:
    kind = NativeRunner if chosen == NATIVE else PythonRunner
    runner: MethodRunner = kind(sealed.payload, threads=threads)
    return runner


def _open_onnx(sealed: Sealed, threads: int | None) -> Engine:
    return OnnxEngine(Manifest.from_json(onnx_manifest(sealed)), sealed.data, threads=threads)


def _open_pte(sealed: Sealed, chosen: str, threads: int | None) -> Engine:
    runner = _runner(chosen, sealed, threads)
    try:
        manifest = _pte_manifest(runner)
        _check_methods(runner, manifest)
        if threads is None:
            runner.prefer_threads(default_threads(manifest, usable_cores()))
    except MarsEdgeError:
        runner.close()
        raise
    return OneCallEngine(manifest, runner) if isinstance(runner, NativeRunner) else StagedEngine(manifest, runner)


def _pte_manifest(runner: MethodRunner) -> Manifest:
    if _MANIFEST_METHOD not in runner.methods():
        raise ModelFileError("the .pte program has no manifest method: not exported by mars-edge")
    (document,) = runner.execute(_MANIFEST_METHOD, [])
    return Manifest.from_json(document.tobytes())


def _check_methods(runner: MethodRunner, manifest: Manifest) -> None:
    """Every method is there and takes and gives the shapes the manifest implies."""
    missing = sorted(set(required_methods(manifest)) - set(runner.methods()))
    if missing:
        raise ModelFileError(f"the .pte program lacks the method {missing[0]!r} its manifest promises")
    combined = next(iter(_describe(runner, "head").inputs), None)
    expected = _expected(manifest, combined.shape if combined else ())
    for method, (inputs, outputs) in expected.items():
        spec = _describe(runner, method)
        given = tuple(map(str, (*spec.inputs, "->", *spec.outputs)))
        wanted = tuple(map(str, (*map(_float32, inputs), "->", *map(_float32, outputs))))
        if given != wanted:
            raise ModelFileError(f"method {method!r} is {' '.join(given)}, its manifest promises {' '.join(wanted)}")


def _describe(runner: MethodRunner, method: str) -> MethodSpec:
    try:
        return runner.describe(method)
    except EngineError as error:
        raise ModelFileError(f"the .pte program is not one of mars-edge: {error}") from error


Shapes = list[tuple[int, ...]]


def _expected(manifest: Manifest, combined: tuple[int, ...]) -> dict[str, tuple[Shapes, Shapes]]:
    """Input and output shapes per method; `combined` is the shape of the experts' weighted sum."""
    features = {name: (1, *manifest.feature_shapes[name]) for name in manifest.names}
    z = (1, *manifest.z_shape)
    table: dict[str, tuple[Shapes, Shapes]] = {
        f"encode_{m.name}": ([(1, *m.shape)], [features[m.name]]) for m in manifest.modalities
    }
    table["route"] = (list(features.values()), [z, (1, manifest.experts)])
    experts = [name for name in required_methods(manifest) if name.startswith("expert_")]
    table |= {name: ([z], [combined]) for name in experts}
    table["head"] = ([combined], [(1, *manifest.logits_shape)])
    return table


def _float32(shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(shape=shape, dtype=np.dtype(np.float32))
