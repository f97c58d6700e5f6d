"""A tiny three-modality MARS model, as torch modules, as a .pte and as an .onnx, for tests of the engines.

Axes: 1 batch, C channels, H and W pixels, N = 4 experts, K = 2 of them run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mars_edge.artifact import write_sealed
from mars_edge.manifest import Golden, Manifest, Tensor
from mars_edge.modality import Modality
from mars_edge.subsets import all_subsets, label

SIZE, WIDTH, EXPERTS, ACTIVE = 16, 4, 4, 2
CHANNELS = {"rgb": 3, "depth": 1, "ir": 1}
NAMES = tuple(CHANNELS)
LABELS = ("attack", "bona_fide", "unclear")

Arrays = dict[str, NDArray[np.float32]]


class Route(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(WIDTH * len(NAMES), 2 * WIDTH, 1)
        self.router = nn.Linear(2 * WIDTH, EXPERTS)

    def forward(self, *features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.relu(self.mix(torch.cat(features, dim=1)))
        return z, self.router(z.mean(dim=(2, 3)))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(2 * WIDTH, len(LABELS))

    def forward(self, combined: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classify(combined.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    pieces: dict[str, nn.Module]

    @classmethod
    def create(cls, seed: int = 7) -> TinyModel:
        generator_state = torch.get_rng_state()
        torch.manual_seed(seed)
        pieces: dict[str, nn.Module] = {
            f"encode_{name}": nn.Sequential(nn.Conv2d(channels, WIDTH, 3, stride=2, padding=1), nn.ReLU())
            for name, channels in CHANNELS.items()
        }
        pieces["route"] = Route()
        for index in range(EXPERTS):
            pieces[f"expert_{index}"] = nn.Sequential(nn.Conv2d(2 * WIDTH, 2 * WIDTH, 1), nn.ReLU())
        pieces["head"] = Head()
        torch.set_rng_state(generator_state)
        return cls(pieces={name: piece.eval() for name, piece in pieces.items()})

    @torch.no_grad()
    def answer(self, samples: Arrays, features: Arrays) -> tuple[NDArray[np.float32], dict[int, float], Arrays]:
        """Logits, gates by expert, features: the plain dense computation, every expert run, gates by a loop."""
        used = {name: self.pieces[f"encode_{name}"](torch.tensor(x)[None]) for name, x in samples.items()}
        used |= {name: torch.tensor(feature) for name, feature in features.items()}
        zero = torch.zeros(1, WIDTH, SIZE // 2, SIZE // 2)
        z, router = self.pieces["route"](*(used.get(name, zero) for name in NAMES))
        kept = sorted(range(EXPERTS), key=lambda i: -float(router[0, i]))[:ACTIVE]
        gates = torch.softmax(router[0, kept], dim=0)
        combined = sum(g * self.pieces[f"expert_{i}"](z) for g, i in zip(gates, kept, strict=True))
        logits = self.pieces["head"](combined)[0].numpy()
        return logits, dict(zip(kept, gates.tolist(), strict=True)), {n: f.numpy() for n, f in used.items()}

    def manifest(self) -> Manifest:
        return Manifest(
            name="tiny",
            task="classification",
            labels=LABELS,
            positive_label="bona_fide",
            modalities=tuple(
                Modality(name=n, kind="image", channels=c, size=(SIZE, SIZE)) for n, c in CHANNELS.items()
            ),
            experts=EXPERTS,
            active_experts=ACTIVE,
            feature_shapes=dict.fromkeys(NAMES, (WIDTH, SIZE // 2, SIZE // 2)),
            z_shape=(2 * WIDTH, SIZE // 2, SIZE // 2),
            precision="fp32",
            methods=tuple(self.pieces),
            operating_points={},
            provenance={"recipe": "tests"},
            golden=self.golden(),
        )

    def golden(self) -> Golden:
        inputs = sample(99)
        answers = {
            label(subset, NAMES): self.answer({n: inputs[n] for n in subset}, {})[0] for subset in all_subsets(NAMES)
        }
        return Golden(
            inputs={name: Tensor.of(array) for name, array in inputs.items()},
            logits={name: tuple(float(v) for v in logits) for name, logits in answers.items()},
            tolerance=1e-4,
        )


def sample(seed: int) -> Arrays:
    """One random preprocessed sample per modality."""
    random = np.random.default_rng(seed)
    return {name: random.random((channels, SIZE, SIZE), dtype=np.float32) for name, channels in CHANNELS.items()}


def write_pte(model: TinyModel, in_place: Path, planned: Path, *, manifest: Manifest | None = None) -> None:
    """Lowers every piece with XNNPACK and writes two programs that differ in who owns inputs and outputs.

    Args:
        in_place: the runtime works in the caller's arrays.
        planned: the runtime copies them to and from its own arena, ExecuTorch's default.
    """
    edge = lower(model.pieces, manifest or model.manifest())
    write_sealed(in_place, serialise(edge, planned_io=False))
    write_sealed(planned, serialise(edge, planned_io=True))


def lower(pieces: dict[str, nn.Module], manifest: Manifest | None) -> Any:
    """The pieces as edge programs, and the manifest as a constant method where there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        programs = {name: torch.export.export(piece, _example(name)) for name, piece in pieces.items()}
        constants = {}
        if manifest is not None:
            constants["manifest"] = torch.frombuffer(bytearray(manifest.to_json().encode()), dtype=torch.uint8)
        return to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()], constant_methods=constants)


def serialise(edge: Any, *, planned_io: bool) -> bytes:
    """The program's bytes, unsealed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.exir import ExecutorchBackendConfig
        from executorch.exir.passes import MemoryPlanningPass

        planning = MemoryPlanningPass(alloc_graph_input=planned_io, alloc_graph_output=planned_io)
        return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning)).buffer)


def _example(method: str) -> tuple[torch.Tensor, ...]:
    if method == "route":
        # Three tensors, not one three times: torch.export takes equal objects for one input, silently.
        return tuple(torch.rand(1, WIDTH, SIZE // 2, SIZE // 2) for _ in NAMES)
    if method.startswith("encode_"):
        return (torch.rand(1, CHANNELS[method.removeprefix("encode_")], SIZE, SIZE),)
    return (torch.rand(1, 2 * WIDTH, SIZE // 2, SIZE // 2),)


def write_onnx(model: TinyModel, path: Path, *, manifest: Manifest | None = None) -> None:
    """The same model as one lazy graph."""
    proto = helper.make_model(_graph(model), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(proto, {"manifest": (manifest or model.manifest()).to_json()})
    onnx.checker.check_model(proto)
    write_sealed(path, proto.SerializeToString())


def _graph(model: TinyModel) -> onnx.GraphProto:
    weights = [
        numpy_helper.from_array(value.numpy(), f"{piece}.{name}")
        for piece, module in model.pieces.items()
        for name, value in module.state_dict().items()
    ]
    weights += [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in {"k": [ACTIVE], "hw": [2, 3]}.items()
    ]
    weights += [numpy_helper.from_array(np.array([i], np.int64), f"is_{i}") for i in range(EXPERTS)]
    feature, inputs = (1, WIDTH, SIZE // 2, SIZE // 2), []
    nodes, outputs = [], [_value("logits", (1, len(LABELS))), _value("router_logits", (1, EXPERTS))]
    for name, channels in CHANNELS.items():
        inputs += [_value(f"x_{name}", (1, channels, SIZE, SIZE))]
        inputs += [helper.make_tensor_value_info(f"fresh_{name}", TensorProto.BOOL, [])]
        inputs += [_value(f"feature_{name}", feature)]
        outputs.append(_value(f"f_{name}", feature))
        encode = _conv(f"encode_{name}", f"x_{name}", strides=[2, 2], pads=[1, 1, 1, 1])
        keep = [helper.make_node("Identity", [f"feature_{name}"], [f"kept_{name}"])]
        nodes.append(_if(f"fresh_{name}", encode, f"encode_{name}.y", keep, f"kept_{name}", f"f_{name}", feature))
    nodes += _route() + _experts()
    nodes += [
        helper.make_node("ReduceMean", ["combined", "hw"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", "head.classify.weight", "head.classify.bias"], ["logits"], transB=1),
    ]
    return helper.make_graph(nodes, "tiny", inputs, outputs, weights)


def _route() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Concat", [f"f_{name}" for name in NAMES], ["all"], axis=1),
        helper.make_node("Conv", ["all", "route.mix.weight", "route.mix.bias"], ["mixed"]),
        helper.make_node("Relu", ["mixed"], ["z"]),
        helper.make_node("ReduceMean", ["z", "hw"], ["z_mean"], keepdims=0),
        helper.make_node("Gemm", ["z_mean", "route.router.weight", "route.router.bias"], ["router_logits"], transB=1),
        helper.make_node("TopK", ["router_logits", "k"], ["top", "chosen"], axis=1),
        helper.make_node("Softmax", ["top"], ["gates"], axis=1),
    ]


def _experts() -> list[onnx.NodeProto]:
    nodes = []
    for i in range(EXPERTS):
        run = [*_conv(f"expert_{i}", "z"), helper.make_node("Mul", [f"expert_{i}.y", f"gate_{i}"], [f"weighted_{i}"])]
        skip = [helper.make_node("Sub", ["z", "z"], [f"nothing_{i}"])]
        nodes += [
            helper.make_node("Equal", ["chosen", f"is_{i}"], [f"hit_{i}"]),
            helper.make_node("Cast", [f"hit_{i}"], [f"hit_f_{i}"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"hit_f_{i}", "gates"], [f"masked_{i}"]),
            helper.make_node("ReduceSum", [f"masked_{i}"], [f"gate_{i}"], keepdims=0),
            helper.make_node("ReduceMax", [f"hit_f_{i}"], [f"any_f_{i}"], keepdims=0),
            helper.make_node("Cast", [f"any_f_{i}"], [f"any_{i}"], to=TensorProto.BOOL),
            _if(f"any_{i}", run, f"weighted_{i}", skip, f"nothing_{i}", f"e_{i}", (1, 2 * WIDTH, SIZE // 2, SIZE // 2)),
        ]
    return [*nodes, helper.make_node("Sum", [f"e_{i}" for i in range(EXPERTS)], ["combined"])]


def _conv(piece: str, source: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", [source, f"{piece}.0.weight", f"{piece}.0.bias"], [f"{piece}.c"], **attributes),
        helper.make_node("Relu", [f"{piece}.c"], [f"{piece}.y"]),
    ]


def _if(
    condition: str,
    then: list[onnx.NodeProto],
    then_output: str,
    otherwise: list[onnx.NodeProto],
    otherwise_output: str,
    output: str,
    shape: tuple[int, ...],
) -> onnx.NodeProto:
    return helper.make_node(
        "If",
        [condition],
        [output],
        then_branch=helper.make_graph(then, f"{output}_then", [], [_value(then_output, shape)]),
        else_branch=helper.make_graph(otherwise, f"{output}_else", [], [_value(otherwise_output, shape)]),
    )


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
