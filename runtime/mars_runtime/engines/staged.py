"""The engine for .pte artifacts: runs only the encoders of new samples and only the experts the router chose.

Axes: 1 batch, C, H, W or D of a feature; N experts; K experts that run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.gates import top_k_gates
from mars_edge.manifest import Manifest
from mars_runtime.engines.guards import check_finite, check_request
from mars_runtime.engines.protocol import Inference, MethodRunner

Float32 = NDArray[np.float32]


class StagedEngine:
    """encode -> route -> chosen experts -> head, one method call each."""

    def __init__(self, manifest: Manifest, runner: MethodRunner) -> None:
        """Takes over `runner`: closing the engine closes it."""
        self.manifest = manifest
        self.name = runner.name
        self.runner = runner
        self._absent = {name: np.zeros((1, *shape), np.float32) for name, shape in manifest.feature_shapes.items()}

    @property
    def threads(self) -> int:
        """See `Engine.threads`."""
        return self.runner.threads

    def infer(self, samples: Mapping[str, Float32], features: Mapping[str, Float32]) -> Inference:
        """See `Engine.infer`."""
        check_request(self.manifest, samples, features)
        latency_ms: dict[str, float] = {}
        present = self._present_features(samples, features, latency_ms)
        fusion = [present.get(name, self._absent[name]) for name in self.manifest.names]

        z, router_logits = self._timed("fuse", "route", fusion, latency_ms)
        check_finite("router logits", router_logits)
        indices, gates = top_k_gates(router_logits, self.manifest.active_experts)
        experts = tuple((int(i), float(w)) for i, w in zip(indices[0], gates[0], strict=True))

        start = time.perf_counter()
        combined = self._combine(z, experts)
        latency_ms["experts"] = (time.perf_counter() - start) * 1e3
        (logits,) = self._timed("head", "head", [combined], latency_ms)
        check_finite("logits", logits)
        return Inference(logits=logits[0], experts=experts, features=present, latency_ms=latency_ms)

    def close(self) -> None:
        """See `Engine.close`."""
        self.runner.close()

    def _present_features(
        self, samples: Mapping[str, Float32], features: Mapping[str, Float32], latency_ms: dict[str, float]
    ) -> dict[str, Float32]:
        present: dict[str, Float32] = {}
        for name in self.manifest.names:
            if name in samples:
                batch = samples[name][np.newaxis]
                (present[name],) = self._timed(f"encode.{name}", f"encode_{name}", [batch], latency_ms)
            elif name in features:
                present[name] = features[name]
        return present

    def _combine(self, z: Float32, experts: tuple[tuple[int, float], ...]) -> Float32:
        total = self.runner.execute("expert_shared", [z])[0] if self.manifest.shared_expert else None
        for index, gate in experts:
            weighted = np.float32(gate) * self.runner.execute(f"expert_{index}", [z])[0]
            total = weighted if total is None else total + weighted
        assert total is not None
        return total

    def _timed(self, stage: str, method: str, inputs: list[Float32], latency_ms: dict[str, float]) -> list[Any]:
        start = time.perf_counter()
        outputs = self.runner.execute(method, inputs)
        latency_ms[stage] = (time.perf_counter() - start) * 1e3
        return outputs
