"""A small engine for runtime tests: linear, deterministic, and it writes down what it was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.manifest import Manifest, OperatingPoint, Policy, required_methods
from mars_edge.modality import Modality
from mars_runtime.engines import Inference

RIG = (
    Modality(name="rgb", kind="image", channels=3, size=(112, 112), dtype="uint8", range=(0, 255)),
    Modality(name="depth", kind="image", channels=1, size=(112, 112), dtype="uint16", range=(200, 1200)),
    Modality(name="ir", kind="image", channels=1, size=(112, 112), dtype="uint8", range=(0, 255)),
)


def point(**changes: Any) -> OperatingPoint:
    """A certified operating point at threshold 0.5, with `changes`."""
    table: dict[str, Any] = {
        "threshold": 0.5, "metric": "acer", "value": 0.01, "low": 0.0, "high": 0.02, "n": 100, "certified": True,
    }  # fmt: skip
    return OperatingPoint(**{**table, **changes})


def manifest(modalities: tuple[Modality, ...] = RIG, **changes: Any) -> Manifest:
    """A valid manifest in which every subset is certified, with `changes`."""
    names = [m.name for m in modalities]
    table: dict[str, Any] = {
        "name": "fake",
        "task": "classification",
        "labels": ("attack", "bona_fide"),
        "positive_label": "bona_fide",
        "modalities": modalities,
        "experts": 4,
        "active_experts": 2,
        "feature_shapes": dict.fromkeys(names, (2,)),
        "z_shape": (2,),
        "precision": "fp32",
        "methods": (),
        "operating_points": {subsets.label(s, names): point() for s in subsets.all_subsets(names)},
        "provenance": {},
        "policy": Policy(),
        **changes,
    }
    stand_in = type("Shape", (), {"names": names, "experts": table["experts"], "shared_expert": False})
    return Manifest(**{**table, "methods": required_methods(stand_in)})  # type: ignore[arg-type]


class FakeEngine:
    """Features are the mean and deviation of a sample; the experts depend on which modalities are there."""

    name = "fake"
    threads = 1

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.calls: list[tuple[set[str], set[str]]] = []
        self.closed = False
        self.logits: NDArray[np.float32] | None = None

    def infer(
        self, samples: Mapping[str, NDArray[np.float32]], features: Mapping[str, NDArray[np.float32]]
    ) -> Inference:
        """One deterministic answer; asserts the contract on shapes and finiteness."""
        assert samples or features
        assert not set(samples) & set(features)
        for name, sample in samples.items():
            assert sample.dtype == np.float32
            assert sample.shape == self.manifest.modality(name).shape
            assert np.isfinite(sample).all()
        self.calls.append((set(samples), set(features)))
        encoded = {n: np.array([[s.mean(), s.std()]], np.float32) for n, s in samples.items()}
        used = {**encoded, **features}
        first = len(used) - 1
        logits = np.array([0.0, sum(float(f.sum()) for f in used.values())], np.float32)
        return Inference(
            logits=logits if self.logits is None else self.logits,
            experts=((first, 0.75), (3, 0.25)),
            features=used,
            latency_ms={**{f"encode.{n}": 0.1 for n in encoded}, "fuse": 0.1, "experts": 0.1, "head": 0.1},
        )

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True
