"""How benchmarks/agreement.py counts, and that the forms benchmarks/saturation.py compares mean the same."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_export.onnx_precision import set_weights
from tests.helpers.plain_pieces import piece
from tests.helpers.tiny_artifact import CHANNELS, TinyModel


@pytest.fixture(scope="module")
def agreement(repository: Path) -> Iterator[ModuleType]:
    sys.path.insert(0, str(repository / "benchmarks"))
    yield importlib.import_module("agreement")
    sys.path.remove(str(repository / "benchmarks"))


@pytest.fixture(scope="module")
def saturation(agreement: ModuleType) -> ModuleType:
    return importlib.import_module("saturation")


def answers(agreement: ModuleType, logits: list[list[float]], experts: list[list[int]]) -> Any:
    return agreement.Answers(logits=np.array(logits, np.float32), experts=np.array(experts, np.int64))


def test_steps_are_counted_where_the_same_experts_ran_and_the_others_apart(agreement: ModuleType) -> None:
    reference = answers(agreement, [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], [[0, 1]] * 4)
    given = answers(agreement, [[0.0, 1.0], [0.0, 1.5], [9.0, 1.0], [0.0, 1.0]], [[0, 1], [0, 1], [0, 2], [0, 1]])
    found = agreement.compare(given, reference, step=0.25)
    assert found == agreement.Difference(
        samples=4, identical=0.5, largest_steps=2.0, other_experts=0.25, same_label=0.75
    )


def test_a_label_map_has_the_same_label_only_where_every_pixel_has(agreement: ModuleType) -> None:
    whole = np.zeros((2, 3, 4, 4), np.float32)
    moved = whole.copy()
    moved[1, 2, 0, 0] = 1.0
    experts = np.zeros((2, 1), np.int64)
    pair = [agreement.Answers(logits=x, experts=experts) for x in (moved, whole)]
    found = agreement.compare(*pair, step=0.5)
    assert (found.identical, found.largest_steps, found.same_label) == (0.5, 2.0, 0.5)


def test_samples_are_read_from_the_file_that_an_earlier_call_kept(agreement: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "kept.npz"
    made = {name: np.random.default_rng(0).random((3, c, 2, 2), dtype=np.float32) for name, c in CHANNELS.items()}
    np.savez(file, **made)  # type: ignore[arg-type]
    manifest: Manifest = TinyModel.create().manifest()
    kept = agreement.load_samples(manifest, 2, file)
    assert all(np.array_equal(kept[name], made[name][:2]) for name in CHANNELS)
    with pytest.raises(UsageError) as caught:
        agreement.load_samples(manifest, 4, file)
    assert str(caught.value) == f"{file} holds 3 samples, 4 are asked for"


def quantized() -> ModelProto:
    """Bytes times bytes, uint8 on both sides as an artifact has them."""
    weights = np.random.default_rng(0).integers(-127, 128, (8, 5)).astype(np.int8)
    constants: Any = {"s": np.float32(0.05), "z": np.int8(-7), "ws": np.float32(0.02), "wz": np.int8(0), "w": weights}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["y"]),
    ]
    model = piece(nodes, {"x": (1, 8)}, {"y": (1, 5)}, {name: np.asarray(value) for name, value in constants.items()})
    set_weights(model, "uint8")
    return model


@pytest.mark.parametrize("name", ["u8 x u8", "u8 x s8", "s8 x s8"])
def test_every_form_of_8_bits_has_the_same_real_values(saturation: ModuleType, name: str) -> None:
    model = quantized()
    form = saturation.in_form(model, saturation.FORMS[name])
    stored = {"u8": TensorProto.UINT8, "s8": TensorProto.INT8}
    types = {t.data_type for t in form.graph.initializer} - {TensorProto.FLOAT}
    assert types == {stored[kind] for kind in name.split(" x ")}
    x = np.random.default_rng(1).normal(size=(1, 8), scale=4.0).astype(np.float32)
    given, expected = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (form, model))
    np.testing.assert_array_equal(given, expected)


def test_a_graph_without_uint8_is_refused(saturation: ModuleType) -> None:
    model = piece([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 2)}, {"y": (1, 2)}, {})
    with pytest.raises(UsageError, match=r"^the \.onnx has no uint8 quantizers: export it for int8"):
        saturation.in_form(model, saturation.FORMS["u8 x s8"])
