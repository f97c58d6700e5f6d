"""A graph passes the rules of a runtime, and one that breaks a rule is refused with the node that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mars_edge.errors import UsageError
from mars_export.onnx_structure import RUNTIMES, branches, check_structure, initializers_of, nodes_of
from tests.helpers.plain_pieces import EXPERTS, NAMES, Plain

Breaks = Callable[[ModelProto], None]


def named(graph: GraphProto, name: str) -> NodeProto:
    (node,) = [n for n in graph.node if n.name == name]
    return node


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_assembled_graph_passes_for_every_runtime(runtime: Any) -> None:
    check_structure(Plain().assemble(), runtime)


def test_every_encoder_and_expert_lives_inside_its_own_if_alone() -> None:
    graph = Plain().assemble().graph
    inside = {f"encode_{name}" for name in NAMES} | {f"expert_{i}" for i in range(EXPERTS)}
    for owner in inside:
        taken = branches(named(graph, owner))["then_branch"]
        outputs = {name for node in taken.node for name in node.output if name.startswith(f"{owner}/")}
        everywhere = {name for node in nodes_of(graph) for name in node.output if name.startswith(f"{owner}/")}
        spare = {name for node in branches(named(graph, owner))["else_branch"].node for name in node.output}
        assert outputs and everywhere - spare == outputs
        assert [t.name for t in taken.initializer if t.name.startswith(f"{owner}/")]


def test_nodes_and_initializers_of_branches_are_counted() -> None:
    graph = Plain().assemble().graph
    assert len(list(nodes_of(graph))) > len(graph.node)
    assert len(list(initializers_of(graph))) > len(graph.initializer)


def foreign_domain(model: ModelProto) -> None:
    named(model.graph, "combine").domain = "com.microsoft"


def open_batch(model: ModelProto) -> None:
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    axis.Clear()
    axis.dim_param = "batch"


def unlike_branches(model: ModelProto) -> None:
    output = branches(named(model.graph, "expert_1"))["else_branch"].output[0]
    output.type.tensor_type.shape.dim[1].dim_value = 9


def one_name_twice(model: ModelProto) -> None:
    taken, other = branches(named(model.graph, "encode_a")).values()
    other.output[0].name = taken.output[0].name


def eager_encoder(model: ModelProto) -> None:
    taken = branches(named(model.graph, "encode_a"))["then_branch"]
    model.graph.node.insert(0, taken.node[0])
    del taken.node[:]


def expert_of_another(model: ModelProto) -> None:
    stranger = branches(named(model.graph, "expert_2"))["then_branch"].node[0]
    branches(named(model.graph, "expert_1"))["then_branch"].node.insert(0, stranger)


def eager_when_absent(model: ModelProto) -> None:
    both = branches(named(model.graph, "encode_b"))
    both["else_branch"].node.insert(0, both["then_branch"].node[0])


def loose_weight(model: ModelProto) -> None:
    taken = branches(named(model.graph, "expert_0"))["then_branch"]
    model.graph.initializer.append(taken.initializer[0])


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (foreign_domain, "node combine is of the domain 'com.microsoft'; only ONNX's own runs everywhere"),
        (open_batch, "x_a has no fixed shape; every axis must be a number above 0"),
        (
            unlike_branches,
            "the branches of expert_1 give [(1, (1, 3))] and [(1, (1, 9))]; they must be alike",
        ),
        (one_name_twice, "the branches of encode_a give [(1, (1, 3))] and [(1, (1, 3))]; they must be alike"),
        (eager_encoder, "encode_a/y is computed whether encode_a is wanted or not; put it into its If"),
        (expert_of_another, "expert_2/y is computed whether expert_2 is wanted or not; put it into its If"),
        (eager_when_absent, "encode_b/y is computed whether encode_b is wanted or not; put it into its If"),
        (loose_weight, "the weight expert_0/w lies outside the branch of expert_0"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_broken_rule_is_refused_for_every_runtime(breaks: Breaks, message: str, runtime: Any) -> None:
    model = Plain().assemble()
    breaks(model)
    with pytest.raises(UsageError) as caught:
        check_structure(model, runtime)
    assert str(caught.value) == message


def put_before_logits(model: ModelProto, *nodes: NodeProto, **constants: Any) -> None:
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())


def newer_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 21


def unlisted(model: ModelProto) -> None:
    put_before_logits(model, helper.make_node("NonZero", ["logits"], ["places"], name="odd"))


def affine(model: ModelProto) -> None:
    node = helper.make_node("QuantizeLinear", ["logits", "s", "z"], ["q"], name="head/round")
    put_before_logits(model, node, s=np.float32(0.1), z=np.int8(-3))


def unsigned(model: ModelProto) -> None:
    node = helper.make_node("DequantizeLinear", ["w8", "s", "z"], ["d"], name="head/weight")
    put_before_logits(model, node, w8=np.zeros((2, 2), np.uint8), s=np.float32(0.1), z=np.uint8(0))


def without_zero_point(model: ModelProto) -> None:
    put_before_logits(model, helper.make_node("QuantizeLinear", ["logits", "s"], ["q"]), s=np.float32(0.1))


def computed_k(model: ModelProto) -> None:
    named(model.graph, "gates/top_k").input[1] = "router_logits"


def cubic(model: ModelProto) -> None:
    node = helper.make_node("Resize", ["logits", "", "", "size"], ["larger"], mode="cubic", name="up")
    put_before_logits(model, node, size=np.array([1, 4]))


def whole_numbers_from_an_if(model: ModelProto) -> None:
    for graph in branches(named(model.graph, "encode_a")).values():
        graph.output[0].type.tensor_type.elem_type = TensorProto.INT64


QUANTIZER = "TensorRT takes int8 quantizers whose zero point is 0, {} has another; export fp16 or fp32 for it"


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (newer_opset, "opset is 21; TensorRT 10.0 reads up to 20"),
        (unlisted, "TensorRT does not list the operator NonZero of odd"),
        (affine, QUANTIZER.format("head/round")),
        (unsigned, QUANTIZER.format("head/weight")),
        (without_zero_point, QUANTIZER.format("q")),
        (computed_k, "TensorRT wants K of gates/top_k to be a constant"),
        (cubic, "TensorRT does not list mode 'cubic' of up"),
        (
            whole_numbers_from_an_if,
            "TensorRT gives float, int32 or bool from an If; encode_a gives another type",
        ),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_what_tensorrt_does_not_list_is_refused_for_it_alone(breaks: Breaks, message: str) -> None:
    model = Plain().assemble()
    breaks(model)
    check_structure(model, "onnxruntime")
    check_structure(model, "onnxruntime-web")
    with pytest.raises(UsageError) as caught:
        check_structure(model, "tensorrt")
    assert str(caught.value) == message


def test_symmetric_int8_passes_for_tensorrt() -> None:
    model = Plain().assemble()
    node = helper.make_node("QuantizeLinear", ["logits", "s", "z"], ["q"])
    put_before_logits(model, node, s=np.float32(0.1), z=np.int8(0))
    check_structure(model, "tensorrt")


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        check_structure(Plain().assemble(), "openvino")  # type: ignore[arg-type]
    assert str(caught.value) == "runtime 'openvino' is unknown; allowed: onnxruntime, onnxruntime-web, tensorrt"
