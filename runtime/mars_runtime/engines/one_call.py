"""The engine for .pte artifacts over the native library: a whole inference is one call, and the interpreter waits once.

The same bits as `staged.StagedEngine` over the same library, in less time: between two methods there is no Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.manifest import Manifest
from mars_runtime.engines.guards import check_request
from mars_runtime.engines.native import ChosenExpert, CPlan, NativeRunner, described
from mars_runtime.engines.protocol import Inference, TensorSpec

Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Types:
    """The C array types of one inference; making a type costs more than using it."""

    addresses: Any
    chosen: Any
    stage_ms: Any


class OneCallEngine:
    """encode -> route -> chosen experts -> head, in the library."""

    def __init__(self, manifest: Manifest, runner: NativeRunner) -> None:
        """Takes over `runner`, whose methods fit the manifest: closing the engine closes it."""
        self.manifest = manifest
        self.name = runner.name
        self.runner = runner
        self._plan = _plan(manifest, runner)
        self._forms = {name: (1, *shape) for name, shape in manifest.feature_shapes.items()}
        self._absent = {name: np.zeros(form, np.float32) for name, form in self._forms.items()}
        count = len(manifest.modalities)
        self._types = _Types(
            addresses=ctypes.c_void_p * count,
            chosen=ChosenExpert * manifest.active_experts,
            stage_ms=ctypes.c_double * (count + 3),
        )
        self._stages = (*(f"encode.{name}" for name in manifest.names), "fuse", "experts", "head")

    @property
    def threads(self) -> int:
        """See `Engine.threads`."""
        return self.runner.threads

    def infer(self, samples: Mapping[str, Float32], features: Mapping[str, Float32]) -> Inference:
        """See `Engine.infer`."""
        check_request(self.manifest, samples, features)
        # All arrays are held by these until the call has returned: the library knows addresses only.
        given = [_ordered(samples[name]) if name in samples else None for name in self.manifest.names]
        present = self._present(samples, features)
        fusion = [present.get(name, self._absent[name]) for name in self.manifest.names]
        logits = np.empty((1, *self.manifest.logits_shape), np.float32)
        chosen, stage_ms = self._types.chosen(), self._types.stage_ms()
        self.runner.infer(
            self._plan,
            self._types.addresses(*(None if sample is None else _address(sample) for sample in given)),
            self._types.addresses(*map(_address, fusion)),
            _address(logits),
            chosen,
            stage_ms,
        )
        return Inference(
            logits=logits[0],
            experts=tuple((choice.expert, choice.gate) for choice in chosen),
            features=present,
            latency_ms={stage: ms for stage, ms in zip(self._stages, stage_ms, strict=True) if ms >= 0.0},
        )

    def close(self) -> None:
        """See `Engine.close`."""
        self.runner.close()

    def _present(self, samples: Mapping[str, Float32], features: Mapping[str, Float32]) -> dict[str, Float32]:
        """Room for what is encoded now, and the cached ones."""
        present: dict[str, Float32] = {}
        for name in self.manifest.names:
            if name in samples:
                present[name] = np.empty(self._forms[name], np.float32)
            elif name in features:
                present[name] = _ordered(features[name])
        return present


def _ordered(array: Float32) -> Float32:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _address(array: Float32) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _plan(manifest: Manifest, runner: NativeRunner) -> CPlan:
    """What no inference changes; the structure keeps alive what it points to."""
    encoders = [f"encode_{name}" for name in manifest.names]
    experts = [f"expert_{index}" for index in range(manifest.experts)]
    route, head = runner.describe("route"), runner.describe("head")
    samples = [runner.describe(encoder).inputs[0] for encoder in encoders]
    plan = CPlan(
        modalities=len(encoders),
        encoders=_texts(encoders),
        samples=described(samples),
        features=described(route.inputs),
        experts=_texts(experts),
        shared_expert=b"expert_shared" if manifest.shared_expert else None,
        active_experts=manifest.active_experts,
    )
    plan.z, plan.router_logits = (_one(spec) for spec in route.outputs)
    plan.combined, plan.logits = _one(head.inputs[0]), _one(head.outputs[0])
    return plan


def _texts(texts: Sequence[str]) -> Any:
    return (ctypes.c_char_p * len(texts))(*(text.encode("utf-8") for text in texts))


def _one(spec: TensorSpec) -> Any:
    return described([spec])[0]
