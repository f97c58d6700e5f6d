"""An engine whose pieces are torch modules: what a faithful, or a sabotaged, artifact would answer.

Axes: 1 batch, N experts, K experts that run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge.errors import EngineError
from mars_edge.gates import top_k_gates
from mars_edge.manifest import Manifest
from mars_export.pieces import example_inputs, pieces_of
from mars_runtime.engines import Inference
from mars_training.data.split import Source
from mars_training.model.mars import DeployedMars
from mars_training.recipe import Recipe

Arrays = Mapping[str, NDArray[np.float32]]


def manifest_of(deployed: DeployedMars, source: Source, recipe: Recipe, precision: str = "fp32") -> Manifest:
    """The manifest that an artifact of the model would hold, without anything measured."""
    shapes = {m.name: m.shape for m in source.modalities}
    examples = example_inputs(deployed, shapes, batch=1)
    return Manifest(
        name=recipe.name,
        task=source.task,
        labels=source.labels,
        positive_label=source.positive_label,
        modalities=source.modalities,
        experts=len(deployed.experts),
        active_experts=deployed.active_experts,
        shared_expert=deployed.expert_shared is not None,
        feature_shapes={n: tuple(f.shape[1:]) for n, f in zip(source.names, examples["route"], strict=True)},
        z_shape=tuple(examples["expert_0"][0].shape[1:]),
        precision=precision,  # type: ignore[arg-type]
        methods=tuple(pieces_of(deployed)),
        operating_points={},
        provenance={"recipe": json.loads(json.dumps(recipe.to_dict()))},
    )


class TorchEngine:
    """Runs the pieces of `deployed` as the staged engine runs methods; it is its own method runner."""

    name = "torch"

    def __init__(self, deployed: DeployedMars, manifest: Manifest) -> None:
        self.deployed = deployed
        self.manifest = manifest
        self.runner = self

    @torch.no_grad()
    def execute(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """See `MethodRunner.execute`."""
        outputs = pieces_of(self.deployed)[method](*(torch.from_numpy(x) for x in inputs))
        return [o.numpy() for o in (outputs if isinstance(outputs, tuple | list) else (outputs,))]

    def infer(self, samples: Arrays, features: Arrays) -> Inference:
        """See `Engine.infer`."""
        used = dict(features) | {n: self.execute(f"encode_{n}", [x[None]])[0] for n, x in samples.items()}
        zeros = {n: np.zeros((1, *shape), np.float32) for n, shape in self.manifest.feature_shapes.items()}
        z, router_logits = self.execute("route", [used.get(n, zeros[n]) for n in self.manifest.names])
        ids, weights = self.gates(router_logits)
        combined = sum(w * self.execute(f"expert_{i}", [z])[0] for i, w in zip(ids, weights, strict=True))
        (logits,) = self.execute("head", [np.asarray(combined)])
        if np.isnan(logits).any():
            raise EngineError("logits holds NaN; every value must be finite")
        chosen = tuple((int(i), float(w)) for i, w in zip(ids, weights, strict=True))
        return Inference(logits=logits[0], experts=chosen, features=used, latency_ms={})

    def gates(self, router_logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The experts that run (K,) and their gates (K,)."""
        (ids,), (weights,) = top_k_gates(router_logits, self.manifest.active_experts)
        return ids, weights

    def close(self) -> None:
        """Nothing to free."""
