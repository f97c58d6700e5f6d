"""Numbers change their form and keep their meaning, or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mars_edge.errors import ParityError, UsageError
from mars_export.onnx_precision import LARGEST_HALF, largest_value, require_half_range, set_weights, to_half
from tests.helpers.plain_pieces import piece


def quantized(weights: NDArray[np.int8], *, zero_point: bool = True) -> ModelProto:
    """Quantize the input, multiply by dequantized weights, quantize and dequantize the product."""
    scalar = {"s": np.float32(0.05), "z": np.int8(-7), "ws": np.float32(0.02), "wz": np.int8(0), "w": weights}
    constants = {name: np.asarray(value) for name, value in scalar.items()}
    pair = ["s", "z"] if zero_point else ["s"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *pair], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *pair], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", *pair], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", *pair], ["y"]),
    ]
    return piece(nodes, {"x": (1, 8)}, {"y": (1, 5)}, constants)


def test_unsigned_quantizers_keep_every_real_value() -> None:
    generator = np.random.default_rng(0)
    signed = quantized(generator.integers(-127, 128, (8, 5)).astype(np.int8))
    unsigned = ModelProto()
    unsigned.CopyFrom(signed)
    set_weights(unsigned, "uint8")
    assert not any(t.data_type == TensorProto.INT8 for t in unsigned.graph.initializer)
    onnx.checker.check_model(unsigned, full_check=True)
    for _ in range(50):
        x = generator.normal(size=(1, 8), scale=5.0).astype(np.float32)
        before, after = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (signed, unsigned))
        np.testing.assert_array_equal(after, before)


def test_a_quantizer_without_zero_point_is_refused() -> None:
    model = quantized(np.ones((8, 5), np.int8), zero_point=False)
    model.graph.node[0].name = "entry"
    with pytest.raises(UsageError) as caught:
        set_weights(model, "uint8")
    assert str(caught.value) == "quantizer 'entry' has no zero point: it cannot be made unsigned"


def random_weights(seed: int) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-127, 128, (8, 5)).astype(np.int8)


def copy_of(model: ModelProto) -> ModelProto:
    same = ModelProto()
    same.CopyFrom(model)
    return same


def constant(model: ModelProto, node: str, place: int) -> NDArray[Any]:
    (found,) = [n for n in model.graph.node if n.output[0] == node]
    (tensor,) = [t for t in model.graph.initializer if t.name == found.input[place]]
    return numpy_helper.to_array(tensor)


def test_weights_as_trained_are_left_alone() -> None:
    model = quantized(random_weights(0))
    before = model.SerializeToString(deterministic=True)
    set_weights(model, "int8")
    assert model.SerializeToString(deterministic=True) == before


def test_seven_bit_weights_are_at_most_one_trained_step_away_and_activations_stay() -> None:
    weights = random_weights(1)
    weights[0, :2] = 127, -127
    model = quantized(weights)
    set_weights(model, "int8-7bit")
    stored, scale = constant(model, "dw", 0), constant(model, "dw", 1)
    assert stored.dtype == np.int8 and stored.min() >= -64 and stored.max() <= 63
    trained = weights * np.float32(0.02)
    assert np.abs(stored * scale - trained).max() <= 0.02 + 1e-6
    assert constant(model, "q", 2) == -7
    # No pair of products of such weights with bytes leaves 16 bits.
    assert 2 * 255 * int(np.abs(stored.astype(int)).max()) <= 32767


def test_a_zero_point_that_weights_and_activations_share_is_changed_for_each_apart() -> None:
    model = quantized(random_weights(2))
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.input[2] = "wz"
    set_weights(model, "uint8")
    assert constant(model, "q", 2) == 128 and constant(model, "dw", 2) == 128
    assert {t.data_type for t in model.graph.initializer} == {TensorProto.FLOAT, TensorProto.UINT8}
    assert not {"w", "wz"} & {t.name for t in model.graph.initializer}


def test_constant_nodes_are_rewritten_as_initializers_are() -> None:
    weights = random_weights(3)
    plain, nodes = quantized(weights), quantized(weights)
    moved = [helper.make_node("Constant", [], [t.name], value=t) for t in nodes.graph.initializer]
    rest = list(nodes.graph.node)
    del nodes.graph.initializer[:]
    del nodes.graph.node[:]
    nodes.graph.node.extend([*moved, *rest])
    for model in (plain, nodes):
        set_weights(model, "uint8")
    x = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    given, expected = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (nodes, plain))
    np.testing.assert_array_equal(given, expected)


def test_an_unknown_form_of_weights_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        set_weights(quantized(random_weights(0)), "int4")  # type: ignore[arg-type]
    assert str(caught.value) == "weights 'int4' are unknown; allowed: uint8, int8, int8-7bit"


def matrix(values: NDArray[np.float32]) -> ModelProto:
    """x (1, rows) times a matrix, then an activation."""
    rows, columns = values.shape
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="times"), helper.make_node("Relu", ["m"], ["y"])]
    return piece(nodes, {"x": (1, rows)}, {"y": (1, columns)}, {"w": values})


def run(model: ModelProto, *inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    outputs: list[NDArray[np.float32]] = session.run(None, dict(zip(names, inputs, strict=True)))
    return outputs


def test_half_stores_float16_and_speaks_float32() -> None:
    random = np.random.default_rng(0)
    whole = matrix(random.normal(size=(8, 5)).astype(np.float32))
    half = copy_of(whole)
    to_half(half)
    onnx.checker.check_model(half, full_check=True)
    assert {t.data_type for t in half.graph.initializer} == {TensorProto.FLOAT16}
    types = {v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)}
    assert types == {TensorProto.FLOAT}
    x = random.normal(size=(1, 8)).astype(np.float32)
    np.testing.assert_allclose(run(half, x)[0], run(whole, x)[0], rtol=5e-3, atol=5e-3)
    assert not np.array_equal(run(half, x)[0], run(whole, x)[0])


def words(table: NDArray[np.float32]) -> ModelProto:
    """The rows of a table that the whole numbers in x (1, 4) name, where they are not 0."""
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
        helper.make_node("Gather", ["x", "first"], ["picked"], axis=1),
        helper.make_node("Greater", ["picked", "nothing"], ["there"]),
        helper.make_node("Cast", ["there"], ["counted"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rows", "counted"], ["y"]),
    ]
    constants: dict[str, Any] = {"table": table, "first": np.array([0]), "nothing": np.float32(0)}
    return piece(nodes, {"x": (1, 4)}, {"y": (1, 4, 1)}, constants)


def test_words_stay_exact_in_half() -> None:
    # The value of a row is exact in float16, its number is not.
    rows = 70_000
    half = words((np.arange(rows) % 2).astype(np.float32)[:, None])
    to_half(half)
    for ids in ([2049, 2050, 2051, 4097], [65535, 65505, 69999, 69998]):
        (given,) = run(half, np.array([ids], np.float32))
        np.testing.assert_array_equal(given.ravel(), np.array(ids) % 2)


def test_a_weight_beyond_half_is_refused_not_clipped() -> None:
    model = matrix(np.array([[1.0, -70000.0]], np.float32))
    with pytest.raises(UsageError) as caught:
        to_half(model)
    assert str(caught.value) == ("weight 'w' reaches 70000, float16 ends at 65504; export fp32 or int8 instead")


def test_a_value_inside_beyond_half_is_found_although_the_output_is_small() -> None:
    nodes = [helper.make_node("Mul", ["x", "up"], ["m"]), helper.make_node("Mul", ["m", "down"], ["y"])]
    constants = {"up": np.array([3e4], np.float32), "down": np.array([1e-4], np.float32)}
    model = piece(nodes, {"x": (1, 1)}, {"y": (1, 1)}, constants)
    calls = [[np.array([[x]], np.float32)] for x in (1.0, 3.0)]
    assert largest_value(model, calls) == pytest.approx([3e4, 9e4])
    require_half_range({"expert_0": model}, {"expert_0": calls[:1]})
    with pytest.raises(ParityError) as caught:
        require_half_range({"expert_0": model}, {"expert_0": calls})
    assert str(caught.value) == (
        "expert_0: a value inside reaches 90000, float16 ends at 65504; export fp32 or int8 instead"
    )


def test_a_value_that_is_not_a_number_is_beyond_half() -> None:
    model = matrix(np.array([[1.0, np.nan]], np.float32))
    with pytest.raises(ParityError, match=r"^head: a value inside reaches inf, "):
        require_half_range({"head": model}, {"head": [[np.ones((1, 1), np.float32)]]})


def test_numbers_of_words_do_not_count_as_values() -> None:
    model = words(np.ones((70_000, 1), np.float32))
    assert largest_value(model, [[np.full((1, 4), 69_999, np.float32)]]) == [1.0]


def test_a_piece_that_met_no_sample_is_not_said_to_fit() -> None:
    with pytest.raises(ParityError) as caught:
        require_half_range({"head": matrix(np.ones((1, 1), np.float32))}, {"head": []})
    assert str(caught.value) == "head met no sample: its range in float16 is unknown"
    assert LARGEST_HALF == 65504.0
