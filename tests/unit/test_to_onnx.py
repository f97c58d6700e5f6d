"""The assembled graph computes what a plain loop over the pieces computes, and runs only what it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mars_edge.errors import UsageError
from mars_edge.gates import top_k_gates
from mars_edge.subsets import all_subsets
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


def session(model: ModelProto, **options: Any) -> onnxruntime.InferenceSession:
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    for key, value in options.items():
        setattr(chosen, key, value)
    return onnxruntime.InferenceSession(to_onnx.serialize(model), chosen, providers=["CPUExecutionProvider"])


def feed(samples: Values, features: Values) -> dict[str, NDArray[Any]]:
    zeros = np.zeros((1, WIDTH), np.float32)
    given: dict[str, NDArray[Any]] = {}
    for name in NAMES:
        given[f"x_{name}"] = samples.get(name, zeros)
        given[f"fresh_{name}"] = np.array(name in samples)
        given[f"feature_{name}"] = features.get(name, zeros)
    return given


def rows(seed: int) -> Values:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=(1, WIDTH)).astype(np.float32) for name in NAMES}


def test_the_graph_answers_as_a_loop_over_the_pieces_for_every_subset() -> None:
    plain = Plain()
    running = session(plain.assemble())
    for subset in all_subsets(NAMES):
        for seed in range(20):
            samples = {name: x for name, x in rows(seed).items() if name in subset}
            expected, features = plain.answer(samples, {})
            given = running.run(["logits", *(f"f_{name}" for name in NAMES)], feed(samples, {}))
            np.testing.assert_allclose(given[0], expected, rtol=1e-5, atol=1e-6)
            for name, feature in zip(NAMES, given[1:], strict=True):
                np.testing.assert_array_equal(feature, features.get(name, np.zeros((1, WIDTH), np.float32)))


def test_a_cached_feature_gives_the_answer_its_sample_gave() -> None:
    running = session(Plain().assemble())
    samples = rows(3)
    logits, feature = running.run(["logits", "f_b"], feed(samples, {}))
    (again,) = running.run(["logits"], feed({"a": samples["a"]}, {"b": feature}))
    np.testing.assert_array_equal(again, logits)


def test_an_expert_that_is_not_chosen_cannot_touch_the_answer() -> None:
    for broken in range(EXPERTS):
        plain = Plain(broken_expert=broken)
        running = session(plain.assemble())
        for seed in range(10):
            expected, _ = plain.answer(rows(seed), {})
            (given,) = running.run(["logits"], feed(rows(seed), {}))
            assert np.isnan(given).any() == np.isnan(expected).any()


def test_only_fresh_encoders_and_chosen_experts_are_executed(tmp_path: Path) -> None:
    model = Plain().assemble()
    running = session(model, enable_profiling=True, profile_file_prefix=str(tmp_path / "trace"))
    (router_logits,) = running.run(["router_logits"], feed({"a": rows(5)["a"]}, {}))
    chosen, _ = top_k_gates(router_logits, ACTIVE)
    events = json.loads(Path(running.end_profiling()).read_text(encoding="utf-8"))
    ran = {event["name"] for event in events if event.get("cat") == "Node" and "kernel_time" in event["name"]}
    experts = {i for i in range(EXPERTS) if any(name.startswith(f"expert_{i}/times") for name in ran)}
    assert experts == set(chosen[0].tolist())


def test_equal_router_logits_are_settled_as_every_engine_settles_them() -> None:
    plain = Plain()
    plain.router[:] = 0.0
    expected, _ = plain.answer(rows(0), {})
    (given,) = session(plain.assemble()).run(["logits"], feed(rows(0), {}))
    np.testing.assert_allclose(given, expected, rtol=1e-5)


def test_the_manifest_is_a_property_and_equal_models_have_equal_bytes() -> None:
    first, second = Plain().assemble('{"a":1}'), Plain().assemble('{"a":1}')
    assert {p.key: p.value for p in first.metadata_props} == {"manifest": '{"a":1}'}
    assert to_onnx.serialize(first) == to_onnx.serialize(second)


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
    to_onnx.to_unsigned(unsigned)
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
        to_onnx.to_unsigned(model)
    assert str(caught.value) == "quantizer 'entry' has no zero point: it cannot be made unsigned"


def test_cutting_a_piece_that_reads_another_ones_input_is_refused() -> None:
    whole = piece(
        [helper.make_node("Add", ["p.in0", "q.in0"], ["p.out0"], doc_string="/somewhere/model.py:3")],
        {"p.in0": (1, 2), "q.in0": (1, 2)},
        {"p.out0": (1, 2)},
        {},
    )
    with pytest.raises(UsageError) as caught:
        to_onnx.cut(whole, ["p.in0"], ["p.out0"])
    assert str(caught.value) == "p.out0 reads q.in0: the pieces are not independent"
    kept = to_onnx.cut(whole, ["p.in0", "q.in0"], ["p.out0"])
    assert kept.graph.node[0].doc_string == ""
