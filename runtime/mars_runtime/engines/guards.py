"""What an engine refuses before anything runs: the runtimes below accept NaN and some wrong shapes silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import EngineError
from mars_edge.manifest import Manifest
from mars_runtime.engines.protocol import MethodSpec

Arrays = Mapping[str, NDArray[np.float32]]


def check_request(manifest: Manifest, samples: Arrays, features: Arrays) -> None:
    """Every array belongs to one modality of the model, has its shape and type, and is finite.

    Raises:
        EngineError: naming the modality, what is expected and what was given.
    """
    order = ", ".join(manifest.names)
    for name in (*samples, *features):
        if name not in manifest.names:
            raise EngineError(f"unknown modality {name!r}; this model has: {order}")
    both = sorted(set(samples) & set(features))
    if both:
        raise EngineError(f"modality {both[0]!r} is given as a new sample and as a cached feature; give one")
    if not samples and not features:
        raise EngineError(f"no modality is present; give at least one of: {order}")
    for name, sample in samples.items():
        _check_array(f"sample of {name!r}", sample, manifest.modality(name).shape)
    for name, feature in features.items():
        _check_array(f"cached feature of {name!r}", feature, (1, *manifest.feature_shapes[name]))


def check_inputs(spec: MethodSpec, inputs: Sequence[NDArray[Any]]) -> None:
    """The inputs are those the method takes.

    Raises:
        EngineError: naming the method, the argument, what is expected and what was given.
    """
    if len(inputs) != len(spec.inputs):
        raise EngineError(f"method {spec.name!r}: expected {len(spec.inputs)} inputs, given {len(inputs)}")
    for index, (array, wanted) in enumerate(zip(inputs, spec.inputs, strict=True)):
        if not isinstance(array, np.ndarray):
            raise EngineError(
                f"method {spec.name!r} input {index}: expected {wanted}, given a {type(array).__name__}, not an array"
            )
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            raise EngineError(
                f"method {spec.name!r} input {index}: expected {wanted}, given {array.dtype} {array.shape}"
            )


def check_finite(what: str, values: NDArray[np.float32]) -> None:
    """No NaN and no infinity.

    Raises:
        EngineError: naming `what`.
    """
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "an infinity"
        raise EngineError(f"{what} holds {kind}; every value must be finite")


def _check_array(what: str, array: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray):
        raise EngineError(f"{what}: expected float32 {shape}, given a {type(array).__name__}, not an array")
    if array.shape != shape or array.dtype != np.float32:
        raise EngineError(f"{what}: expected float32 {shape}, given {array.dtype} {array.shape}")
    check_finite(what, array)
