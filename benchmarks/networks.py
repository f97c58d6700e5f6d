"""The networks that the suite times, as artifacts of ours and as the one dense graph that a user would export instead.

Axes: B batch, M modalities, N experts, K experts that run.
Time does not depend on what weights say, except that they choose the experts; without a run they are random, with
batch norms that have met rendered samples, so that activations and routing are of ordinary size. All forms of a
network hold the same weights. int8 is post-training quantization with ranges from a few rendered samples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from mars_edge import rig, subsets
from mars_edge.artifact import write_sealed
from mars_edge.errors import UsageError
from mars_edge.manifest import Golden, MethodCost
from mars_edge.modality import Modality
from mars_edge.preprocess import preprocess
from mars_export import quantize
from mars_export.golden import stored
from mars_export.hush import hushed
from mars_export.lowering import Model, Payload, Precision, bare_manifest, lower
from mars_export.pieces import float_pieces
from mars_training.checkpoint import RunInfo, load_model, save_weights, write_json
from mars_training.data.load import describe, load_data
from mars_training.data.split import Source
from mars_training.methods import build_model
from mars_training.model.mars import DeployedMars, TrainingMars
from mars_training.recipe import DataRecipe, Recipe, load_recipe

RECIPES = Path(__file__).parents[1] / "training" / "recipes"
# Enough for ranges; every one of them has to be rendered once.
_RANGES = DataRecipe(reader="rig", train=64, validation=16, test=16)
_SETTLING_ROWS = 32
# No logit is as far off as this.
_ANY = 1e9

Samples = list[dict[str, NDArray[np.float32]]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network ready to be exported.

    Attributes:
        origin: where its weights are from, for a reader of the tables.
    """

    model: TrainingMars
    info: RunInfo
    origin: str

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities in fusion order."""
        return self.info.source.names


def network_of(recipe: str, run: Path | None) -> Network:
    """The network of a committed recipe for the rig, with the weights of `run` or random ones.

    Raises:
        UsageError: `run` is no run, or of another method than MARS.
    """
    if run is None:
        chosen = load_recipe(RECIPES / f"{recipe}.toml")
        chosen = dataclasses.replace(chosen, data=dataclasses.replace(_RANGES, size=chosen.data.size))
        return random_network(chosen, describe(chosen.data))
    model, info = load_model(run)
    if not isinstance(model, TrainingMars):
        raise UsageError(f"{run} is a run of {info.recipe.method!r}; the suite times MARS")
    data = dataclasses.replace(info.recipe.data, train=_RANGES.train, validation=_RANGES.validation, test=_RANGES.test)
    info = RunInfo(recipe=dataclasses.replace(info.recipe, data=data), seed=info.seed, source=info.source)
    return Network(model=model.eval(), info=info, origin=f"trained weights of {run.name}")


def random_network(recipe: Recipe, source: Source, *, seed: int = 0) -> Network:
    """An untrained network whose batch norms know the statistics of samples; equal arguments give equal weights."""
    torch.manual_seed(seed)
    model = build_model(recipe, source.modalities, len(source.labels), source.task)
    assert isinstance(model, TrainingMars)
    _settle(model.deployed, source.modalities)
    info = RunInfo(recipe=recipe, seed=seed, source=source)
    return Network(model=model.eval(), info=info, origin="random weights")


@torch.no_grad()
def _settle(deployed: DeployedMars, modalities: Sequence[Modality]) -> None:
    """Every batch norm takes over the statistics of a few samples; without them a random network dies out."""
    for module in deployed.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    rows = samples_of(modalities, _SETTLING_ROWS)
    inputs = {m.name: torch.from_numpy(np.stack([row[m.name] for row in rows])) for m in modalities}
    deployed.train()
    deployed.always_dense = True
    deployed(inputs, torch.ones(len(rows), len(modalities), dtype=torch.bool))
    deployed.always_dense = False
    deployed.eval()


def samples_of(modalities: Sequence[Modality], count: int) -> Samples:
    """Preprocessed samples: the rig's where it has the modality, else noise; the same ones every time."""
    raw = rig.render_split("test", count, seed=1)
    known = {m.name for m in rig.modalities()}
    noise = np.random.default_rng(0)
    return [
        {
            m.name: preprocess(m, raw[m.name][i]) if m.name in known else noise.random(m.shape, dtype=np.float32)
            for m in modalities
        }
        for i in range(count)
    ]


def write_ours(network: Network, folder: Path, precisions: Sequence[Precision]) -> dict[str, Path]:
    """Our artifacts by "pte fp32", "onnx int8" and so on: not proven, not calibrated, for timing alone.

    They hold a golden sample as any artifact does, because the self-test is part of a start.
    """
    found: dict[str, Path] = {}
    golden = _untested(network)
    for precision in precisions:
        model = _ready(network, precision)
        for suffix in (".pte", ".onnx"):
            path = folder / f"ours-{precision}{suffix}"
            with hushed():
                payload = lower(model, suffix)
                manifest = bare_manifest(model, model.deployed.active_experts, {"note": "for timing alone"})
                # An engine chooses its threads by them.
                manifest = dataclasses.replace(manifest, costs=_costs(model, payload), golden=golden)
                write_sealed(path, payload.program(manifest.to_json()))
            found[f"{suffix[1:]} {precision}"] = path
    return found


def _costs(model: Model, payload: Payload) -> dict[str, MethodCost]:
    macs, weights, memory = model.macs(), payload.weight_bytes(), payload.memory()
    return {
        method: MethodCost(macs=macs[method], weight_bytes=size, activation_bytes=memory.get(method))
        for method, size in weights.items()
    }


def _untested(network: Network) -> Golden:
    """A golden sample that takes as long as a real one and passes any answer: `contestants.judged` compares answers."""
    (row,) = samples_of(network.info.source.modalities, 1)
    return Golden(
        inputs={m.name: stored(m, row[m.name]) for m in network.info.source.modalities},
        logits={
            subsets.label(subset, network.names): (0.0,) * len(network.info.source.labels)
            for subset in subsets.all_subsets(network.names)
        },
        tolerance=_ANY,
    )


def _ready(network: Network, precision: Precision) -> Model:
    deployed = network.model.deployed
    if precision == "fp32":
        return Model(deployed=float_pieces(deployed), precision="fp32", info=network.info, provenance={})
    recipe = network.info.recipe
    # The ranges of a random network are no worse than it is.
    recipe = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, most_lost=1.0))
    twin = build_model(recipe, network.info.source.modalities, len(network.info.source.labels))
    twin.load_state_dict(network.model.state_dict())
    assert isinstance(twin, TrainingMars)
    with hushed():
        converted = quantize.quantize(twin, load_data(recipe), recipe, seed=0, report=lambda epoch: None, ptq=True)
    return Model(deployed=converted, precision="int8", info=network.info, provenance={})


class Dense(nn.Module):
    """The network as one graph: every encoder runs, missing features are masked after it, and every expert runs."""

    def __init__(self, deployed: DeployedMars) -> None:
        super().__init__()
        self.deployed = deployed
        deployed.always_dense = True

    def forward(self, present: Tensor, *inputs: Tensor) -> Tensor:
        return self.deployed(dict(zip(self.deployed.modalities, inputs, strict=True)), present)


class Gathered(nn.Module):
    """As `Dense`, but the weights of the K chosen experts are gathered, and only those experts computed. Batch of 1."""

    def __init__(self, deployed: DeployedMars) -> None:
        super().__init__()
        self.deployed = deployed
        layers = [conv_layers(expert) for expert in deployed.experts]
        self.plan = [(conv.stride, conv.padding, relu) for conv, relu in layers[0]]
        columns = list(zip(*layers, strict=True))
        self.weights = nn.ParameterList([torch.stack([conv.weight for conv, _ in column]) for column in columns])
        self.biases = nn.ParameterList([torch.stack([_bias(conv) for conv, _ in column]) for column in columns])

    def forward(self, present: Tensor, *inputs: Tensor) -> Tensor:
        deployed = self.deployed
        features = deployed.encode_all(dict(zip(deployed.modalities, inputs, strict=True)))
        z, router_logits = deployed.route(features, present)
        kept, chosen = router_logits.topk(deployed.active_experts, dim=-1)
        gates = kept.softmax(dim=-1)[0]
        combined = (gates.view(-1, 1, 1, 1) * self._experts(z, chosen[0])).sum(dim=0, keepdim=True)
        if deployed.expert_shared is not None:
            combined = combined + deployed.expert_shared(z)
        return deployed.head(combined)

    def _experts(self, z: Tensor, chosen: Tensor) -> Tensor:
        """The maps (K, C, H, W) of the experts `chosen` (K,): the first layer side by side, later ones in groups."""
        count, x = self.deployed.active_experts, z
        for at, (stride, padding, relu) in enumerate(self.plan):
            weight, bias = self.weights[at][chosen].flatten(0, 1), self.biases[at][chosen].flatten()
            x = functional.conv2d(x, weight, bias, stride, padding, groups=count if at else 1)
            x = functional.relu(x) if relu else x
        return x.view(count, -1, *x.shape[2:])


def _bias(conv: nn.Conv2d) -> Tensor:
    return torch.zeros(conv.out_channels) if conv.bias is None else conv.bias


def is_plain(expert: nn.Module) -> bool:
    """Whether an expert is convolutions one after another, with batch norm and ReLU, which is what `Gathered` takes."""
    plain = nn.Sequential | nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.Identity
    return all(isinstance(module, plain) for module in expert.modules())


def conv_layers(expert: nn.Module) -> list[tuple[nn.Conv2d, bool]]:
    """The convolutions of a plain, folded expert in their order, each with whether ReLU follows."""
    found: list[tuple[nn.Conv2d, bool]] = []
    for module in expert.modules():
        if isinstance(module, nn.Conv2d):
            found.append((module, False))
        elif isinstance(module, nn.ReLU):
            found[-1] = (found[-1][0], True)
    return found


def dense_torch(network: Network, *, gathered: bool = False) -> nn.Module:
    """`Dense` with the network as it was trained, or `Gathered` with batch norms folded."""
    if gathered:
        return Gathered(float_pieces(network.model.deployed)).eval()
    twin = build_model(network.info.recipe, network.info.source.modalities, len(network.info.source.labels))
    twin.load_state_dict(network.model.state_dict())
    assert isinstance(twin, TrainingMars)
    return Dense(twin.deployed).eval()


def dense_inputs(modalities: Sequence[Modality], *, batch: int = 1) -> tuple[Tensor, ...]:
    """Arguments of a dense graph: who is present (B, M) as bools, then a tensor per modality."""
    present = torch.ones(batch, len(modalities), dtype=torch.bool)
    return (present, *(torch.zeros(batch, *m.shape) for m in modalities))


def write_dense(network: Network, path: Path, *, gathered: bool = False, batch: int = 1) -> Path:
    """The fp32 graph as `torch.onnx.export` writes it: inputs present, x_NAME ..., output logits."""
    module = dense_torch(network, gathered=gathered)
    modalities = network.info.source.modalities
    with hushed(), torch.no_grad():
        exported = torch.onnx.export(
            torch.export.export(module, dense_inputs(modalities, batch=batch)),
            dynamo=True,
            input_names=["present", *(f"x_{m.name}" for m in modalities)],
            output_names=["logits"],
            verbose=False,
        )
    assert exported is not None
    exported.save(str(path))
    return path


def write_plain(network: Network, folder: Path) -> None:
    """What `to_litert.py` builds the same network from: recipe, source and weights."""
    write_json(
        folder / "network.json",
        {"recipe": network.info.recipe.to_dict(), "source": network.info.source.to_dict()},
    )
    save_weights(folder / "network.safetensors", network.model.state_dict(), epoch=0)


def write_static(network: Network, dense: Path, path: Path) -> Path:
    """The fp32 graph `dense` in int8 by onnxruntime's own quantizer: signed weights per channel, QDQ, its min-max.

    Ranges are from as many rendered samples as ours, each with everything and with one modality.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    modalities, names = network.info.source.modalities, network.names
    rows = samples_of(modalities, _RANGES.train)
    alone = [{names[i % len(names)]: row[names[i % len(names)]]} for i, row in enumerate(rows)]
    waiting = [decision_inputs(modalities, given) for given in (*rows, *alone)]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.generic]] | None:
            return waiting.pop() if waiting else None

    prepared = path.with_suffix(".prepared.onnx")
    # It advises against itself on the root logger.
    with hushed():
        quant_pre_process(str(dense), str(prepared))
        quantize_static(
            str(prepared),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    prepared.unlink()
    return path


def write_unrolled(artifact: Path, names: Sequence[str], path: Path) -> Path:
    """Our .onnx `artifact` as one dense graph: what its `If` branches hold runs always, masked by the input `present`.

    The signature is that of `write_dense`. Needs no PyTorch, and an int8 artifact stays int8.

    Raises:
        UsageError: the graph is not of mars-edge.
    """
    given = onnx.load(artifact)
    graph = given.graph
    nodes = [helper.make_node("Cast", ["present"], ["present_float"], to=TensorProto.FLOAT)]
    nodes += [_column(i, name) for i, name in enumerate(names)]
    initializers = list(graph.initializer)
    initializers += [helper.make_tensor(f"present/{i}", TensorProto.INT64, [], [i]) for i in range(len(names))]
    for node in graph.node:
        if node.op_type != "If":
            nodes.append(node)
            continue
        branch = next(a.g for a in node.attribute if a.name == "then_branch")
        initializers += branch.initializer
        nodes += [*branch.node, *_kept(node, branch.output[0].name, names)]
    if not any(node.op_type == "If" for node in graph.node):
        raise UsageError(f"{artifact} has no branches: not a graph of mars-edge")
    inputs = [helper.make_tensor_value_info("present", TensorProto.BOOL, [1, len(names)])]
    inputs += [value for value in graph.input if value.name in {f"x_{name}" for name in names}]
    outputs = [value for value in graph.output if value.name == "logits"]
    read = {name for node in nodes for name in node.input}
    whole = helper.make_graph(nodes, "dense", inputs, outputs, [t for t in initializers if t.name in read])
    model = helper.make_model(whole, opset_imports=given.opset_import, ir_version=given.ir_version)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _column(index: int, name: str) -> onnx.NodeProto:
    return helper.make_node("Gather", ["present_float", f"present/{index}"], [f"there_{name}"], axis=1)


def _kept(node: onnx.NodeProto, computed: str, names: Sequence[str]) -> list[onnx.NodeProto]:
    """The branch's answer under the name of the `If`: an encoder's is masked, an expert's is weighted by its gate."""
    (output,) = node.output
    name = output.removeprefix("f_")
    if output.startswith("f_") and name in names:
        return [helper.make_node("Mul", [computed, f"there_{name}"], [output])]
    return [helper.make_node("Identity", [computed], [output])]


def decision_inputs(
    modalities: Sequence[Modality], given: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.generic]]:
    """What a dense graph is fed: zeros stand for every modality that is not in `given`."""
    present = np.array([[m.name in given for m in modalities]])
    filled = {f"x_{m.name}": given[m.name][None] if m.name in given else _zeros(m) for m in modalities}
    return {"present": present, **filled}


def _zeros(modality: Modality) -> NDArray[np.float32]:
    return _zeros_of((1, *modality.shape))


@functools.cache
def _zeros_of(shape: tuple[int, ...]) -> NDArray[np.float32]:
    # Made once, as anyone would who writes it by hand: it is not part of a decision.
    return np.zeros(shape, np.float32)
