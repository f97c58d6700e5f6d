"""The engine for .onnx artifacts: one graph whose If nodes skip absent modalities and unchosen experts."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import EngineError, ModelFileError
from mars_edge.gates import top_k_gates
from mars_edge.manifest import Manifest
from mars_runtime.engines.guards import check_finite, check_request
from mars_runtime.engines.protocol import ONNX, Inference
from mars_runtime.engines.threads import default_threads
from mars_runtime.machine import usable_cores

Float32 = NDArray[np.float32]


def absence() -> str | None:
    """Why onnxruntime cannot be used here, in one line; None when it is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "not installed: onnxruntime (pip install 'mars-edge[onnx]')"
    return None


class OnnxEngine:
    """Runs a verified model in onnxruntime on the CPU; threads take turns."""

    name = ONNX

    def __init__(self, manifest: Manifest, model: bytes, *, threads: int | None = None) -> None:
        """Loads the model and checks that its inputs and outputs are those the manifest implies.

        Args:
            manifest: of the same file.
            model: the serialised model whose digest was checked.
            threads: of this session's pool; None chooses as `default_threads` says.

        Raises:
            ModelFileError: onnxruntime refuses the model, or its inputs and outputs are others.
            EngineError: onnxruntime is not installed.
        """
        missing = absence()
        if missing:
            raise EngineError(missing)
        runtime = importlib.import_module("onnxruntime")
        self.manifest = manifest
        self.threads = default_threads(manifest, usable_cores()) if threads is None else threads
        self._errors = _error_types()
        self._session = self._load(runtime, model)
        self._outputs = ["logits", "router_logits", *(f"f_{name}" for name in manifest.names)]
        _check_signature(self._session, manifest, self._outputs)
        self._lock = threading.Lock()
        self._fresh, self._stale = np.array(True), np.array(False)
        self._no_sample = {m.name: np.zeros((1, *m.shape), np.float32) for m in manifest.modalities}
        self._absent = {name: np.zeros((1, *shape), np.float32) for name, shape in manifest.feature_shapes.items()}

    def infer(self, samples: Mapping[str, Float32], features: Mapping[str, Float32]) -> Inference:
        """See `Engine.infer`."""
        check_request(self.manifest, samples, features)
        feed = self._feed(samples, features)
        start = time.perf_counter()
        logits, router_logits, *used = self._run(feed)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        check_finite("router logits", router_logits)
        check_finite("logits", logits)
        indices, gates = top_k_gates(router_logits, self.manifest.active_experts)
        return Inference(
            logits=logits[0],
            experts=tuple((int(i), float(w)) for i, w in zip(indices[0], gates[0], strict=True)),
            features={
                name: feature
                for name, feature in zip(self.manifest.names, used, strict=True)
                if name in samples or name in features
            },
            latency_ms={"graph": elapsed_ms},
        )

    def close(self) -> None:
        """See `Engine.close`."""
        with self._lock:
            self._session = None

    def _feed(self, samples: Mapping[str, Float32], features: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        feed: dict[str, NDArray[Any]] = {}
        for name in self.manifest.names:
            is_fresh = name in samples
            feed[f"x_{name}"] = samples[name][np.newaxis] if is_fresh else self._no_sample[name]
            feed[f"fresh_{name}"] = self._fresh if is_fresh else self._stale
            feed[f"feature_{name}"] = features.get(name, self._absent[name])
        return feed

    def _run(self, feed: dict[str, NDArray[Any]]) -> list[Float32]:
        with self._lock:
            if self._session is None:
                raise EngineError("the engine is closed")
            try:
                outputs: list[Float32] = self._session.run(self._outputs, feed)
            except self._errors as error:
                raise EngineError(f"onnxruntime failed: {str(error).splitlines()[0]}") from error
            return outputs

    def _load(self, runtime: Any, model: bytes) -> Any:
        if self.threads < 1:
            raise EngineError(f"threads must be 1 or more, not {self.threads}")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.inter_op_num_threads = 1
        # A spinning pool takes the cores from the capture threads between two decisions.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = self.threads
        try:
            return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            raise ModelFileError(f"onnxruntime refuses the model: {str(error).splitlines()[0]}") from error


def _error_types() -> tuple[type[Exception], ...]:
    """onnxruntime's own exceptions, which share no base below Exception, and those its Python layer raises."""
    module = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def _check_signature(session: Any, manifest: Manifest, outputs: list[str]) -> None:
    """The graph takes and gives what the manifest implies, in float32 whatever it computes with inside."""
    features = {name: _float32((1, *shape)) for name, shape in manifest.feature_shapes.items()}
    inputs: dict[str, str] = {}
    for modality in manifest.modalities:
        inputs[f"x_{modality.name}"] = _float32((1, *modality.shape))
        inputs[f"fresh_{modality.name}"] = "bool ()"
        inputs[f"feature_{modality.name}"] = features[modality.name]
    given = _signature(session.get_inputs())
    if given != inputs:
        raise ModelFileError(f"the graph's inputs {given} are not those of its manifest {inputs}")
    found = _signature(session.get_outputs())
    missing = sorted(set(outputs) - set(found))
    if missing:
        raise ModelFileError(f"the graph has no output {missing[0]!r}")
    promised = {"logits": _float32((1, *manifest.logits_shape)), "router_logits": _float32((1, manifest.experts))}
    promised |= {f"f_{name}": feature for name, feature in features.items()}
    for name, wanted in promised.items():
        if found[name] != wanted:
            raise ModelFileError(f"the graph's output {name} is {found[name]}, its manifest promises {wanted}")


def _signature(entries: Any) -> dict[str, str]:
    kinds = {"tensor(float)": "float32", "tensor(float16)": "float16"}
    return {e.name: f"{kinds.get(e.type, e.type[7:-1])} {tuple(e.shape)}" for e in entries}


def _float32(shape: tuple[int, ...]) -> str:
    return f"float32 {shape}"
