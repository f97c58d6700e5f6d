"""Pieces of a two-modality model as plain ONNX graphs, and the same model in NumPy.

Axes: 1 batch, N = 4 experts, K = 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mars_edge.gates import top_k_gates
from mars_export import to_onnx

NAMES = ("a", "b")
WIDTH, EXPERTS, ACTIVE, CLASSES = 3, 4, 2, 2
INPUT = {"a": (1, 3), "b": (1, 3)}
Values = dict[str, NDArray[np.float32]]


def piece(
    nodes: list[Any], inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]], constants: Values
) -> ModelProto:
    def value(name: str, shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "piece",
        [value(*item) for item in inputs.items()],
        [value(*item) for item in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", to_onnx.OPSET)], ir_version=9)


class Plain:
    """The same pieces in NumPy: encoders scale, the router and head are matrices, expert i multiplies by i + 1."""

    def __init__(self, *, broken_expert: int | None = None) -> None:
        generator = np.random.default_rng(1)
        self.scale = {name: generator.normal(size=(1, WIDTH)).astype(np.float32) for name in NAMES}
        self.router = generator.normal(size=(WIDTH, EXPERTS)).astype(np.float32)
        self.head = generator.normal(size=(WIDTH, CLASSES)).astype(np.float32)
        self.factors = np.arange(1, EXPERTS + 1, dtype=np.float32)
        if broken_expert is not None:
            self.factors[broken_expert] = np.nan

    def models(self) -> dict[str, ModelProto]:
        row = {"x": (1, WIDTH)}
        table = {
            f"encode_{name}": piece(
                [helper.make_node("Mul", ["x", "w"], ["y"])], row, {"y": (1, WIDTH)}, {"w": self.scale[name]}
            )
            for name in NAMES
        }
        table["route"] = piece(
            [helper.make_node("Add", ["x", "y"], ["z"]), helper.make_node("MatMul", ["z", "w"], ["logits"])],
            {"x": (1, WIDTH), "y": (1, WIDTH)},
            {"z": (1, WIDTH), "logits": (1, EXPERTS)},
            {"w": self.router},
        )
        for i, factor in enumerate(self.factors):
            table[f"expert_{i}"] = piece(
                [helper.make_node("Mul", ["x", "w"], ["y"], name="times")], row, {"y": (1, WIDTH)}, {"w": factor[None]}
            )
        table["head"] = piece(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], row, {"y": (1, CLASSES)}, {"w": self.head}
        )
        return table

    def answer(self, samples: Values, features: Values) -> tuple[NDArray[np.float32], Values]:
        used = {name: samples[name] * self.scale[name] for name in samples} | features
        z = sum(used.get(name, np.zeros((1, WIDTH), np.float32)) for name in NAMES)
        chosen, weights = top_k_gates(z @ self.router, ACTIVE)
        combined = sum(w * self.factors[i] * z for i, w in zip(chosen[0], weights[0], strict=True))
        return combined @ self.head, used

    def assemble(self, manifest: str = "{}") -> ModelProto:
        layout = to_onnx.Layout(
            modalities=NAMES,
            experts=EXPERTS,
            active_experts=ACTIVE,
            shared_expert=False,
            inputs=INPUT,
            features=INPUT,
            expert_output=(1, WIDTH),
            classes=CLASSES,
        )
        return to_onnx.assemble(layout, self.models(), manifest)
