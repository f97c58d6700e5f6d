"""Whatever was damaged between the model and the file, the export refuses it, says where, and writes nothing.

Axes: N = 3 experts, K = 2.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, load_model_from_string

from mars_edge.errors import EngineError, ParityError
from mars_export import bundle, lowering, parity
from mars_export.onnx_pieces import OnnxPieces, cut_pieces
from mars_export.pieces import pieces_of
from mars_runtime.engines import Inference
from tests.helpers import tiny_int8
from tests.helpers.torch_engine import Arrays, TorchEngine
from tests.helpers.toy_training import toy_split

# Half a minute of processor time to lower seven pieces twice, several times that on a busy machine.
pytestmark = pytest.mark.timeout(900)

SUFFIXES = (".onnx", ".pte")
SPLITS = bundle.Splits(validation=toy_split(24, 2), test=toy_split(48, 3), parity=toy_split(48, 3))


@pytest.fixture(scope="module")
def ready() -> lowering.Model:
    return tiny_int8.int8_model()


@pytest.fixture(scope="module")
def payloads(ready: lowering.Model) -> dict[str, lowering.Payload]:
    return {suffix: lowering.lower(ready, suffix) for suffix in SUFFIXES}


def refusal(ready: lowering.Model, suffix: str, payload: lowering.Payload, folder: Path) -> str:
    """Why the payload is refused; checks that nothing was written and that an older file stays as it was."""
    older = folder / f"older{suffix}"
    older.write_bytes(b"an older artifact")
    reasons = []
    for path in (older, folder / f"new{suffix}"):
        with pytest.raises(ParityError) as caught:
            bundle.write(path, ready, SPLITS, payload=payload)
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]
    assert [path.name for path in folder.iterdir()] == [older.name]
    assert older.read_bytes() == b"an older artifact"
    return reasons[0]


def steps_off(reason: str, method: str) -> float:
    """By how many steps a refusal says that a method is off."""
    found = re.fullmatch(rf"method {method} is off by ([\d.]+) output steps, allowed 2", reason)
    assert found, reason
    return float(found[1])


# How a refusal goes on after engine and subset, where every method alone is right.
DECISION = r"(a logit is off by [\d.]+ output steps, allowed 2|label agreement \d+\.\d\d%, at least 99% is needed)"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_not_damaged_is_written(
    ready: lowering.Model, payloads: dict[str, lowering.Payload], suffix: str, tmp_path: Path
) -> None:
    written = bundle.write(tmp_path / f"whole{suffix}", ready, SPLITS, payload=payloads[suffix])
    report = written.manifest.parity
    assert report is not None
    assert set(report["methods"]) == set(pieces_of(ready.deployed))
    assert max(report["methods"].values()) <= parity.MOST_STEPS + 0.01


def damaged(ready: lowering.Model, payload: lowering.Payload, method: str, factor: float) -> lowering.Payload:
    """The payload with the weight scales of the last layer of one method multiplied."""
    if isinstance(payload, lowering.OnnxPayload):
        return tiny_int8.with_initializer(
            payload, method, lambda scales: scales * np.float32(factor), layer=-1, which=1
        )
    wrong = tiny_int8.with_piece(ready, method, lambda traced: _multiply(tiny_int8.weight_scales(traced)[-1], factor))
    return tiny_int8.relowered(payload, wrong, method)


def _multiply(tensor: torch.Tensor, factor: float) -> None:
    tensor.data.mul_(factor)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("method", ["encode_depth", "expert_1", "head"])
def test_a_wrong_scale_is_refused_with_its_method(
    ready: lowering.Model, payloads: dict[str, lowering.Payload], suffix: str, method: str, tmp_path: Path
) -> None:
    reason = refusal(ready, suffix, damaged(ready, payloads[suffix], method, 1.25), tmp_path)
    assert steps_off(reason, method) > 2.0


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("first", "second"), [("expert_0", "expert_2"), ("encode_rgb", "encode_depth")])
def test_two_methods_in_each_others_place_are_refused(
    ready: lowering.Model,
    payloads: dict[str, lowering.Payload],
    suffix: str,
    first: str,
    second: str,
    tmp_path: Path,
) -> None:
    reason = refusal(ready, suffix, tiny_int8.exchanged(payloads[suffix], first, second), tmp_path)
    assert steps_off(reason, f"(?:{first}|{second})") > 2.0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_nan_weight_in_an_expert_is_refused(
    ready: lowering.Model, payloads: dict[str, lowering.Payload], suffix: str, tmp_path: Path
) -> None:
    """The integer arithmetic of both engines turns it into a number, so that no answer is NaN."""
    if suffix == ".onnx":
        wrong = damaged(ready, payloads[suffix], "expert_2", math.nan)
    else:
        model = tiny_int8.with_piece(ready, "expert_2", lambda t: _multiply(tiny_int8.biases(t)[-1], math.nan))
        wrong = tiny_int8.relowered(payloads[suffix], model, "expert_2")
    reason = refusal(ready, suffix, wrong, tmp_path)
    assert steps_off(reason, "expert_2") > 2.0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_permuted_labels_are_refused(
    ready: lowering.Model, payloads: dict[str, lowering.Payload], suffix: str, tmp_path: Path
) -> None:
    if suffix == ".onnx":
        wrong = tiny_int8.with_initializer(payloads[suffix], "head", _reversed, layer=-1, which=0)
    else:
        model = tiny_int8.with_piece(ready, "head", _reverse_weights)
        wrong = tiny_int8.relowered(payloads[suffix], model, "head")
    reason = refusal(ready, suffix, wrong, tmp_path)
    assert steps_off(reason, "head") > 2.0


def _reversed(values: NDArray[Any]) -> NDArray[Any]:
    """Rows or columns of one class each, in the other order."""
    return np.ascontiguousarray(values[::-1] if values.shape[0] == 2 else values[:, ::-1])


def _reverse_weights(traced: Any) -> None:
    for name in ("_frozen_param0",):
        tensor = getattr(traced, name)
        tensor.data = tensor.data.flip(0).contiguous()


def always_fresh(model: ModelProto) -> None:
    """Every encoder runs, whether its sensor is there or not."""
    model.graph.initializer.append(helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    for node in model.graph.node:
        if node.op_type == "If" and node.name.startswith("encode_"):
            node.input[0] = "always"


def smallest_win(model: ModelProto) -> None:
    """The gates go to the experts with the smallest logits."""
    (node,) = [n for n in model.graph.node if n.op_type == "TopK"]
    node.attribute.append(helper.make_attribute("largest", 0))


def gates_turned(model: ModelProto) -> None:
    """The right experts, each with the gate of the other."""
    for node in model.graph.node:
        if "gates/weights" in node.output:
            (row,) = [n for n in model.graph.node if "gates/row" in n.output]
            model.graph.initializer.append(helper.make_tensor("order", TensorProto.INT64, [2], [1, 0]))
            turn = helper.make_node("Gather", ["gates/row", "order"], ["gates/turned"], axis=1)
            model.graph.node.insert(list(model.graph.node).index(row) + 1, turn)
            node.input[0] = "gates/turned"
            return


@pytest.mark.parametrize("edit", [always_fresh, smallest_win, gates_turned])
def test_a_graph_that_is_wired_another_way_is_refused(
    ready: lowering.Model,
    payloads: dict[str, lowering.Payload],
    edit: Callable[[ModelProto], None],
    tmp_path: Path,
) -> None:
    reason = refusal(ready, ".onnx", tiny_int8.Edited(payloads[".onnx"], edit), tmp_path)
    assert re.fullmatch(rf"onnxruntime on (rgb|depth|rgb\+depth): {DECISION}", reason), reason


# What no artifact can do but an engine could.


class Constant(TorchEngine):
    """Answers with the logits of its first sample."""

    first: NDArray[np.float32] | None = None

    def infer(self, samples: Arrays, features: Arrays) -> Inference:
        answer = super().infer(samples, features)
        self.first = answer.logits if self.first is None else self.first
        return dataclasses.replace(answer, logits=self.first)


class Unmasked(TorchEngine):
    """Goes on with the last feature of a sensor that is gone."""

    def infer(self, samples: Arrays, features: Arrays) -> Inference:
        self.last: Arrays = dict(getattr(self, "last", {})) | {
            name: self.execute(f"encode_{name}", [x[None]])[0] for name, x in samples.items()
        }
        answer = super().infer({}, {**self.last, **features})
        return dataclasses.replace(answer, features={n: answer.features[n] for n in (*samples, *features)})


class WrongGates(TorchEngine):
    """Runs the experts with the smallest logits."""

    def gates(self, router_logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return super().gates(-router_logits)


class Permuted(TorchEngine):
    """Gives each label the logit of the other."""

    def infer(self, samples: Arrays, features: Arrays) -> Inference:
        answer = super().infer(samples, features)
        return dataclasses.replace(answer, logits=answer.logits[::-1].copy())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [Constant, Unmasked, WrongGates, Permuted])
def test_an_engine_that_answers_another_way_is_refused(
    ready: lowering.Model,
    payloads: dict[str, lowering.Payload],
    suffix: str,
    kind: type[TorchEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = bundle._draft(ready, payloads[suffix])
    monkeypatch.setattr(bundle, "open_artifact", lambda path, self_test, threads: kind(ready.deployed, manifest))
    reason = refusal(ready, suffix, payloads[suffix], tmp_path)
    assert re.fullmatch(rf"torch on (rgb|depth|rgb\+depth): {DECISION}", reason), reason


def test_the_pieces_of_a_graph_are_cut_from_the_file_and_answer_as_the_model_does(
    ready: lowering.Model, payloads: dict[str, lowering.Payload]
) -> None:
    """So a piece that was exchanged while the graph was assembled is found though the payload's own is right."""
    graph = load_model_from_string(payloads[".onnx"].program("{}"))
    runner = OnnxPieces(cut_pieces(graph, tiny_int8.NAMES, pieces_of(ready.deployed)))
    found = parity.method_parity(runner, ready.deployed, SPLITS.parity, "int8")
    assert set(found) == set(pieces_of(ready.deployed))
    assert all(method.max_steps <= 1.01 for method in found.values())
    with pytest.raises(EngineError) as refused:
        runner.execute("expert_7", [])
    assert str(refused.value) == "the graph has no piece 'expert_7'"
    with pytest.raises(EngineError, match=r"^method 'head' failed: "):
        runner.execute("head", [np.zeros((1, 2), np.float32)])
    with pytest.raises(ParityError) as caught:
        cut_pieces(graph, tiny_int8.NAMES, ["expert_7"])
    expected = "the graph has no value 'expert_7/expert_7.out0': the piece expert_7 cannot be checked alone"
    assert str(caught.value) == expected


def test_parity_samples_that_set_the_ranges_are_refused() -> None:
    train, test = toy_split(64, 1), toy_split(48, 3)
    calibration = dataclasses.replace(
        train,
        inputs={name: torch.cat([x[:40], test.inputs[name][40:]]) for name, x in train.inputs.items()},
        labels=train.labels[:48],
        groups=train.groups[:48],
    )
    with pytest.raises(ParityError) as caught:
        parity.require_disjoint(test, {"train": train, "calibration": calibration})
    assert str(caught.value) == "8 of 48 parity samples are in the calibration split: take others"
