"""The assembled graph computes what a plain loop over the pieces computes, and runs only what it needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from mars_edge.errors import UsageError
from mars_edge.gates import top_k_gates
from mars_edge.manifest import Manifest
from mars_edge.modality import Modality
from mars_edge.subsets import all_subsets
from mars_export import to_onnx
from mars_export.onnx_precision import to_half
from mars_export.onnx_structure import RUNTIMES, check_structure, initializers_of
from mars_export.pieces import Examples, example_inputs, float_pieces, pieces_of
from mars_runtime.engines.graph import OnnxEngine
from mars_training.data.split import Task
from mars_training.model.build import build_deployed
from mars_training.model.mars import DeployedMars
from mars_training.recipe import EncoderRecipe, ModelRecipe
from tests.helpers.plain_pieces import ACTIVE, EXPERTS, NAMES, WIDTH, Plain, Values, piece


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


Sample = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """An untrained model and the float32 pieces it was lowered to."""

    deployed: DeployedMars
    modalities: tuple[Modality, ...]
    task: Task
    examples: Examples
    models: Mapping[str, ModelProto]

    @property
    def layout(self) -> to_onnx.Layout:
        names = self.deployed.modalities
        return to_onnx.Layout(
            modalities=names,
            experts=len(self.deployed.experts),
            active_experts=self.deployed.active_experts,
            shared_expert=self.deployed.expert_shared is not None,
            inputs={m.name: (1, *m.shape) for m in self.modalities},
            features={name: tuple(f.shape) for name, f in zip(names, self.examples["route"], strict=True)},
            expert_output=tuple(self.examples["head"][0].shape),
            classes=4,
        )

    def manifest(self) -> Manifest:
        return Manifest(
            name="network",
            task=self.task,
            labels=("a", "b", "c", "d"),
            positive_label=None,
            modalities=self.modalities,
            experts=self.layout.experts,
            active_experts=self.layout.active_experts,
            shared_expert=self.layout.shared_expert,
            feature_shapes={name: shape[1:] for name, shape in self.layout.features.items()},
            z_shape=tuple(self.examples["expert_0"][0].shape[1:]),
            precision="fp32",
            methods=tuple(self.models),
            operating_points={},
            provenance={},
        )

    def assemble(self, models: Mapping[str, ModelProto] | None = None) -> ModelProto:
        return to_onnx.assemble(self.layout, models or self.models, self.manifest().to_json())

    def engine(self, graph: ModelProto) -> OnnxEngine:
        return OnnxEngine(self.manifest(), to_onnx.serialize(graph), threads=1)

    def half(self) -> ModelProto:
        models = {}
        for method, model in self.models.items():
            models[method] = ModelProto()
            models[method].CopyFrom(model)
            to_half(models[method])
        return self.assemble(models)

    def sample(self, seed: int) -> Sample:
        random = np.random.default_rng(seed)
        return {m.name: self._values(m, random) for m in self.modalities}

    def _values(self, modality: Modality, random: np.random.Generator) -> NDArray[np.float32]:
        if modality.kind != "text":
            return random.random(modality.shape, dtype=np.float32)
        assert modality.vocabulary is not None
        words = random.integers(1, modality.vocabulary, modality.shape)
        words[:, random.integers(1, modality.shape[1]) :] = 0
        return words.astype(np.float32)

    @torch.no_grad()
    def answer(self, sample: Sample, subset: Sequence[str]) -> NDArray[np.float32]:
        inputs = {name: torch.from_numpy(x)[None] for name, x in sample.items()}
        present = torch.tensor([[name in subset for name in self.deployed.modalities]])
        logits: NDArray[np.float32] = self.deployed(inputs, present)[0].numpy()
        return logits


def image(name: str, channels: int, side: int) -> Modality:
    return Modality(name=name, kind="image", channels=channels, size=(side, side))


def encoder(kind: str, *channels: int, **more: Any) -> EncoderRecipe:
    return EncoderRecipe(kind=kind, channels=channels, strides=(2,) * len(channels), **more)


def every_kind() -> tuple[tuple[Modality, ...], Task, ModelRecipe]:
    """Every kind of modality, linear experts, and a router that knows the combination."""
    modalities = (
        image("photo", 3, 16),
        Modality(name="title", kind="text", length=12, vocabulary=20_000),
        Modality(name="words", kind="text", length=12, vocabulary=20_000),
        Modality(name="scan", kind="vector", length=9),
        Modality(name="motion", kind="sequence", channels=6, length=32),
        Modality(name="voice", kind="audio", rate_hz=8000, window_s=0.5),
    )
    encoders = {
        "photo": encoder("conv", 4, 6, pool=True),
        "title": EncoderRecipe(kind="text_lstm", channels=(5,), strides=(1,)),
        "words": EncoderRecipe(kind="text_mean", channels=(5,), strides=(1,)),
        "scan": EncoderRecipe(kind="vector", channels=(5,), strides=(1,)),
        "motion": encoder("sequence", 5, 6, pool=True),
        "voice": encoder("conv", 4, 6, pool=True),
    }
    recipe = ModelRecipe(
        encoders=encoders,
        experts=4,
        active_experts=2,
        width=8,
        fusion_kernel=1,
        fusion_stride=1,
        expert_kind="mlp",
        expert_channels=(8,),
        combination_router=True,
    )
    return modalities, "classification", recipe


def segmentation() -> tuple[tuple[Modality, ...], Task, ModelRecipe]:
    """A label per pixel, experts that correct a shared one, a picture of 16 channels."""
    recipe = ModelRecipe(
        encoders={"colour": encoder("conv", 4, 6), "cube": encoder("mobile", 4, 6)},
        experts=3,
        active_experts=2,
        width=8,
        expert_kind="low_rank",
        expert_channels=(8,),
        shared_expert=True,
    )
    return (image("colour", 3, 32), image("cube", 16, 32)), "segmentation", recipe


def sixteen() -> tuple[tuple[Modality, ...], Task, ModelRecipe]:
    """As many modalities as there may be, and residual stages for fusion and experts."""
    names = [f"probe_{i}" for i in range(16)]
    recipe = ModelRecipe(
        encoders={name: EncoderRecipe(kind="vector", channels=(3,), strides=(1,)) for name in names},
        experts=3,
        active_experts=1,
        width=8,
        fusion_kind="resnet_stage",
        fusion_stride=1,
        expert_kind="resnet_stage",
        expert_stride=1,
        expert_channels=(8, 8),
    )
    return tuple(Modality(name=name, kind="vector", length=4) for name in names), "classification", recipe


def build(modalities: tuple[Modality, ...], task: Task, recipe: ModelRecipe) -> tuple[DeployedMars, Examples]:
    torch.manual_seed(0)
    deployed = build_deployed(recipe, modalities, 4, task)
    with torch.no_grad():
        # Untrained biases are zero, and a combination would add nothing.
        for parameter in deployed.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folded = float_pieces(deployed)
    return folded, example_inputs(folded, {m.name: m.shape for m in modalities}, batch=1)


@pytest.fixture(scope="module", params=[every_kind, segmentation, sixteen], ids=lambda make: make.__name__)
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    modalities, task, recipe = request.param()
    deployed, examples = build(modalities, task, recipe)
    models = to_onnx.lower(pieces_of(deployed), examples, precision="fp32")
    yield Network(deployed=deployed, modalities=modalities, task=task, examples=examples, models=models)


def some_subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    if len(names) < 7:
        return list(all_subsets(names))
    return [(name,) for name in names] + [tuple(names[:i]) for i in range(2, len(names) + 1)]


def test_every_kind_of_piece_answers_as_in_torch_for_every_subset(network: Network) -> None:
    engine = network.engine(network.assemble())
    for seed, subset in enumerate(some_subsets(network.deployed.modalities)):
        sample = network.sample(seed)
        given = engine.infer({name: sample[name] for name in subset}, {}).logits
        assert given.shape == network.manifest().logits_shape
        np.testing.assert_allclose(given, network.answer(sample, subset), rtol=1e-4, atol=1e-5)


def test_half_answers_within_its_rounding_and_gives_the_same_features_again(network: Network) -> None:
    graph = network.half()
    engine = network.engine(graph)
    errors = []
    for seed, subset in enumerate(some_subsets(network.deployed.modalities)):
        sample = network.sample(seed)
        first = engine.infer({name: sample[name] for name in subset}, {})
        assert np.array_equal(engine.infer({}, first.features).logits, first.logits)
        expected = network.answer(sample, subset)
        errors.append(np.abs(first.logits - expected).max() / np.abs(expected).max())
    # 11 bits a value, a handful of layers; a sample whose experts tie may be routed otherwise.
    assert np.quantile(errors, 0.9) < 0.01
    stored = {t.data_type for t in initializers_of(graph.graph)}
    assert TensorProto.FLOAT16 in stored and TensorProto.FLOAT not in stored


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_kind_of_graph_is_one_that_the_runtime_lists_as_loadable(network: Network, runtime: Any) -> None:
    check_structure(network.assemble(), runtime)
    check_structure(network.half(), runtime)


def test_a_head_of_other_classes_than_the_layout_is_refused(network: Network) -> None:
    layout = network.layout
    with pytest.raises(UsageError, match=r"^the head gives \(1, 4.*\), expected \(1, 5\) or \(1, 5, H, W\)$"):
        to_onnx.assemble(dataclasses.replace(layout, classes=5), network.models, "{}")


def test_an_older_opset_gives_an_older_model_with_the_same_answers() -> None:
    deployed, examples = build(*segmentation())
    (model,) = to_onnx.lower({"head": deployed.head}, examples, precision="fp32", opset=18).values()
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    x = torch.randn(examples["head"][0].shape, generator=torch.Generator().manual_seed(0))
    running = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = running.run(None, {"head.in0": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(given, deployed.head(x).numpy(), rtol=1e-4, atol=1e-5)


def test_the_newest_opset_stays_readable_for_onnxruntime_1_17() -> None:
    graph = Plain().assemble()
    assert (graph.opset_import[0].version, graph.ir_version) == (20, 9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is unknown; allowed: int8, fp16, fp32"),
        ({"precision": "fp32", "opset": 17}, "opset is 17; allowed: 18, 19, 20"),
    ],
)
def test_lowering_to_something_unknown_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        to_onnx.lower({}, {}, **wrong)
    assert str(caught.value) == message
