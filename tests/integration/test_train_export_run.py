"""Train a few steps, export, and run the artifacts through a dropout: the whole way, tiny."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mars_edge import cli, subsets
from mars_edge.artifact import verify
from mars_edge.errors import ParityError
from mars_export import bundle, pieces
from mars_export.commands import export as command
from mars_runtime.engines import Engine, open_engine, read_manifest
from mars_training import train as training
from mars_training.checkpoint import load_deployed
from mars_training.data.split import Data, Split
from mars_training.recipe import Recipe
from tests.helpers.tiny_mars import NAMES, SOURCE, info, model, recipe, split

# Half a minute of processor time to lower eight pieces, several times that on a busy machine.
pytestmark = pytest.mark.timeout(900)

TRAIN, VALIDATION, TEST = split(96, 1), split(48, 2), split(64, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    given = recipe(qat_epochs=1, certify_max_error=0.9, certify_min_samples=20, require=("depth|ir",))
    schedule = dataclasses.replace(given.schedule, epochs=1, batch_size=32, precision="fp32")
    data = Data(source=SOURCE, train=TRAIN, validation=VALIDATION)
    training.train(dataclasses.replace(given, schedule=schedule), data, folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def artifacts(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the command writes for the run, by suffix, and what it prints."""
    folder = tmp_path_factory.mktemp("artifacts")
    paths = {suffix: folder / f"tiny{suffix}" for suffix in (".pte", ".onnx")}
    with pytest.MonkeyPatch.context() as patch:
        feed(patch)
        options = [f"-o{path}" for path in paths.values()]
        assert cli.main(["export", str(run), *options, "--quiet", "--parity-samples", "40"]) == 0
    return paths


def feed(patch: pytest.MonkeyPatch) -> None:
    """The command reads these samples instead of rendering the rig."""

    def load_split(recipe: Recipe, name: str, *, folder: Path | None = None) -> Split:
        return {"train": TRAIN, "validation": VALIDATION, "test": TEST}[name]

    patch.setattr(command, "load_split", load_split)
    patch.setattr(
        command, "load_data", lambda recipe, folder=None: Data(source=SOURCE, train=TRAIN, validation=VALIDATION)
    )


def sample(i: int) -> dict[str, np.ndarray]:
    return {name: TEST.inputs[name][i].float().numpy() for name in NAMES}


@pytest.fixture(params=[".pte", ".onnx"])
def engine(request: pytest.FixtureRequest, artifacts: dict[str, Path]) -> Engine:
    """The exported artifact, opened with its self-test."""
    return open_engine(artifacts[request.param], threads=1)


def test_the_artifact_describes_itself(engine: Engine) -> None:
    manifest = engine.manifest
    labels = {subsets.label(s, NAMES) for s in subsets.all_subsets(NAMES)}
    assert set(manifest.operating_points) == labels
    assert manifest.parity is not None and set(manifest.parity["subsets"]) == labels
    assert manifest.golden is not None and set(manifest.golden.logits) == labels
    assert manifest.policy.require == ("depth|ir",)
    assert manifest.provenance["note"] == SOURCE.note
    assert manifest.logit_step is not None and manifest.precision == "int8"
    left = {name for entry in manifest.parity["coverage"].values() for name in entry["left"]}
    assert left <= {"aten.mean.dim"}, "only the mean over pixels before a linear layer runs outside XNNPACK"


def test_a_stream_with_a_dropout_reuses_features_and_comes_back(engine: Engine) -> None:
    complete = engine.infer(sample(0), {})
    without_depth = engine.infer({n: x for n, x in sample(0).items() if n != "depth"}, {})
    assert set(without_depth.features) == {"rgb", "ir"}
    assert "encode.depth" not in without_depth.latency_ms
    cached = engine.infer({"depth": sample(0)["depth"]}, without_depth.features)
    np.testing.assert_array_equal(cached.logits, complete.logits)


def test_both_formats_hold_the_same_scales(artifacts: dict[str, Path]) -> None:
    engines = [open_engine(path, threads=1) for path in artifacts.values()]
    step = engines[0].manifest.logit_step
    assert step is not None and engines[1].manifest.logit_step == step
    for i in range(20):
        for subset in subsets.all_subsets(NAMES):
            present = {name: sample(i)[name] for name in subset}
            first, second = (engine.infer(present, {}) for engine in engines)
            if first.experts[0][0] == second.experts[0][0]:
                assert np.abs(first.logits - second.logits).max() <= 2.01 * step


def test_both_formats_name_the_checkpoint_they_come_from_and_its_parameters(
    run: Path, artifacts: dict[str, Path]
) -> None:
    checkpoint = hashlib.sha256((run / "selected.safetensors").read_bytes()).hexdigest()
    everything = sum(tensor.numel() for tensor in load_file(run / "selected.safetensors").values())
    deployed = sum(p.numel() for p in load_deployed(run)[0].parameters())
    for path in artifacts.values():
        manifest = read_manifest(verify(path))
        assert manifest.provenance["checkpoint"] == checkpoint
        assert manifest.parameters == deployed < everything


def test_evaluate_measures_the_artifact_in_its_engine(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mars_export.evaluate.load_split", lambda recipe, name, folder=None: TEST)
    assert cli.main(["evaluate", "--model", str(artifacts[".onnx"]), "--json", "--quiet"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["subset"] for row in table["subsets"]][-1] == "rgb+depth+ir"
    assert all(row["n"] == len(TEST) for row in table["subsets"])


@pytest.fixture(scope="module")
def float_model() -> bundle.Model:
    deployed = pieces.float_pieces(model().deployed)
    return bundle.Model(deployed=deployed, precision="fp32", info=info(), provenance={})


SPLITS = bundle.Splits(validation=VALIDATION, test=TEST, parity=TEST)


def test_a_float_artifact_passes_and_a_sabotaged_one_leaves_the_old_file_alone(
    float_model: bundle.Model, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.onnx"
    written = bundle.write(path, float_model, SPLITS)
    assert written.manifest.logit_step is None
    before = path.read_bytes()
    wrong = copy.deepcopy(float_model.deployed)
    wrong.experts[0], wrong.experts[1] = wrong.experts[1], wrong.experts[0]
    payload = bundle.lower(dataclasses.replace(float_model, deployed=wrong), ".onnx")
    with pytest.raises(ParityError, match=r"^method expert_[01] is off by [\d.e+]+ output steps, allowed 2$"):
        bundle.write(path, float_model, SPLITS, payload=payload)
    with pytest.raises(ParityError, match=r"^method expert_[01] is off by [\d.e+]+ output steps, allowed 2$"):
        bundle.write(tmp_path / "other.onnx", float_model, SPLITS, payload=payload)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.onnx"]
    assert verify(path).format == "onnx"


def test_a_nan_weight_writes_nothing(float_model: bundle.Model, tmp_path: Path) -> None:
    wrong = copy.deepcopy(float_model.deployed)
    with torch.no_grad():
        next(wrong.head.parameters()).flatten()[0] = float("nan")
    payload = bundle.lower(dataclasses.replace(float_model, deployed=wrong), ".onnx")
    with pytest.raises(ParityError) as caught:
        bundle.write(tmp_path / "tiny.onnx", float_model, SPLITS, payload=payload)
    assert str(caught.value) == "method head is off by nan output steps, allowed 2"
    assert not list(tmp_path.iterdir())


def test_parity_samples_that_training_saw_stop_the_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(monkeypatch)
    monkeypatch.setattr(command, "load_split", lambda recipe, name, folder=None: TRAIN)
    assert cli.main(["export", str(run), "-o", str(tmp_path / "tiny.pte"), "--quiet", "--parity-samples", "9"]) == 1
    expected = "mars-edge: 9 of 9 parity samples are in the train split: take others\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_is_one_line_and_exit_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "-o", "tiny.tflite"]) == 2
    expected = "mars-edge: output tiny.tflite is neither .pte nor .onnx: the suffix decides the format\n"
    assert capsys.readouterr().err == expected
