"""What an engine is: one inference over whatever modalities are there, whichever runtime executes it.

Axes: C, H, W of a modality or feature; D features; N experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mars_edge.manifest import Manifest

NATIVE = "executorch-native"
BINDING = "executorch-python"
ONNX = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class Inference:
    """One forward pass.

    Attributes:
        logits: float32 (classes,), or (classes, H, W) for a segmentation.
        experts: the experts that ran, as (index, gate), largest gate first.
        features: float32 (1, C, H, W) or (1, D) per present modality: those encoded now and the cached ones used.
        latency_ms: .pte: "encode.<modality>" for each encoder that ran, "fuse", "experts", "head"; .onnx: "graph".
    """

    logits: NDArray[np.float32]
    experts: tuple[tuple[int, float], ...]
    features: dict[str, NDArray[np.float32]]
    latency_ms: dict[str, float]


class Engine(Protocol):
    """Runs one artifact; may be called from any thread, one call at a time does work."""

    manifest: Manifest
    name: str

    @property
    def threads(self) -> int:
        """How many threads execute a method, the caller's included."""
        ...

    def infer(
        self, samples: Mapping[str, NDArray[np.float32]], features: Mapping[str, NDArray[np.float32]]
    ) -> Inference:
        """Encodes `samples`, reuses `features`, treats every other modality as missing.

        Args:
            samples: preprocessed arrays, without a batch axis, of modalities with a new sample.
            features: what an earlier `Inference.features` held, of present modalities without a new sample.

        Raises:
            EngineError: nothing is present, an array has a wrong shape, type or a NaN, or execution failed.
        """
        ...

    def close(self) -> None:
        """Frees the model; may be repeated. A later `infer` raises EngineError."""
        ...


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and element type a method takes or gives."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """The inputs and outputs of one method."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class MethodRunner(Protocol):
    """Executes the methods of a .pte program; its answers do not alias its memory."""

    name: str

    @property
    def threads(self) -> int:
        """Size of the process's thread pool."""
        ...

    def prefer_threads(self, threads: int) -> None:
        """Gives the process's pool this size, unless another program uses the pool: it then stays as it is.

        Raises:
            EngineError: not 1 to 256, or closed.
        """
        ...

    def methods(self) -> tuple[str, ...]:
        """Every method of the program."""
        ...

    def describe(self, method: str) -> MethodSpec:
        """Inputs and outputs of `method`; EngineError when there is none of that name."""
        ...

    def execute(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of `method`, in fresh arrays.

        Raises:
            EngineError: unknown method, wrong number, shape or type of inputs, execution failed, or closed.
        """
        ...

    def close(self) -> None:
        """Frees the program; may be repeated."""
        ...
