"""A lowered program holds what it says, its memory and bytes add up, and it answers as the pieces it came from.

Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import builtins
import copy
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_edge.errors import ParityError, UsageError
from mars_export import quantize
from mars_export.executorch_structure import structures_of_file, total_multiply_accumulates, xnnpack_peak
from mars_export.hush import hushed
from mars_export.pieces import Examples, example_inputs, float_pieces, output_steps, pieces_of
from mars_export.targets import Precision, load_target
from mars_export.to_executorch import Coverage, Lowered, lower, require_coverage
from mars_runtime.engines import native
from mars_training.costs import costs
from mars_training.model.mars import DeployedMars
from mars_training.recipe import load_recipe
from tests.unit.test_quantize_recipes import MARS, RECIPES, lively, narrow, random_split, source_of

EDGE = ("casia_surf_edge", "crema_d_edge", "food101_edge", "mcubes_edge")
needs_engine = pytest.mark.skipif(native.absence() is not None, reason="the native engine is not built")


class Scan(nn.Module):
    """A running sum, which XNNPACK has no kernel for, before a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.conv(x.cumsum(-1))
        return summed


class OwnWeights(nn.Module):
    """A convolution whose weights are an input: XNNPACK takes constant ones alone."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return functional.conv2d(x, weights, padding=1)


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))


PICTURE = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def toy() -> Lowered:
    """Four methods, two of them with equal weights of 64 KiB."""
    torch.manual_seed(0)
    twin = nn.Linear(128, 128)
    pieces = {"plain": convolutions(), "scan": Scan(), "one": twin, "other": copy.deepcopy(twin)}
    vector = (torch.zeros(1, 128),)
    return lower(pieces, {"plain": (PICTURE,), "scan": (PICTURE,), "one": vector, "other": vector})


def test_equal_manifests_give_equal_programs_whatever_was_written_between(toy: Lowered) -> None:
    first = toy.program('{"a":1}')
    assert toy.program('{"a":2}') != first
    assert toy.program('{"a":1}') == first


@needs_engine
def test_the_manifest_is_a_method_of_the_program(toy: Lowered) -> None:
    text = json.dumps({"name": "Prüfling"}, ensure_ascii=False)
    runner = native.NativeRunner(toy.program(text))
    (found,) = runner.execute("manifest", [])
    assert found.tobytes().decode("utf-8") == text
    assert sorted(runner.methods()) == ["manifest", "one", "other", "plain", "scan"]


def test_intermediate_values_of_a_delegate_are_counted_while_they_live(toy: Lowered) -> None:
    # float32; NCHW to NHWC 8*8*1, first convolution 8*8*4, second 8*8*2; two neighbours live at a time.
    assert toy.memory()["plain"] == 4 * 8 * 8 * (4 + 2)


def test_values_between_delegates_are_in_the_arena(toy: Lowered) -> None:
    # The running sum 8*8 waits in the arena, which ExecuTorch makes 64 bytes longer than its values; inside the
    # delegate the sum turns to NHWC, and 8*8*4 follow.
    assert toy.structure["scan"].planned_bytes == 4 * 8 * 8 + 64
    assert toy.memory()["scan"] == toy.structure["scan"].planned_bytes + 4 * 8 * 8 * (1 + 4)


def test_a_value_lives_from_its_writer_to_its_last_reader() -> None:
    def value(number: int, items: int, external: int = 0xFFFFFFFF) -> dict[str, Any]:
        table = {"datatype": "xnn_datatype_fp32", "dims": [items], "external_id": external, "constant_buffer_idx": 0}
        return {"xvalue_union": table | {"id_out": number}}

    def node(*inputs: int, output: int) -> dict[str, Any]:
        return {"xnode_union": {f"input{i}_id": v for i, v in enumerate(inputs)} | {"output_id": output, "flags": 1}}

    values = [value(0, 100, external=0), value(1, 10), value(2, 20), value(3, 1), value(4, 100, external=1)]
    nodes = [node(0, output=1), node(1, output=2), node(2, output=3), node(1, 3, output=4)]
    # Value 1 is read again by the last node, so it is still there while 2 and 3 are.
    assert xnnpack_peak({"xvalues": values, "xnodes": nodes}) == 4 * (10 + 20 + 1)


def test_equal_weights_are_stored_once(toy: Lowered) -> None:
    weight = 4 * 128 * 128
    alone = lower({"one": nn.Linear(128, 128)}, {"one": (torch.zeros(1, 128),)})
    both = Lowered(parts={name: toy.parts[name] for name in ("one", "other")})
    assert weight < len(alone.program("{}")) < len(both.program("{}")) < len(alone.program("{}")) + 0.1 * weight
    assert both.weight_bytes()["one"] == both.weight_bytes()["other"] > weight
    assert both.stored_bytes() == both.weight_bytes()["one"]


def test_the_stored_bytes_are_the_file(toy: Lowered) -> None:
    assert 0 < len(toy.program("{}")) - toy.stored_bytes() < 0.1 * toy.stored_bytes()


def test_the_file_holds_what_the_lowering_says(toy: Lowered) -> None:
    found = structures_of_file(toy.program("{}"))
    manifest = found.pop("manifest")
    assert found == toy.structure
    assert (manifest.delegates, manifest.operators) == ((), ())
    assert found["plain"].delegates == ("XnnpackBackend",) and found["plain"].operators == ()
    assert found["scan"].operators == ("aten::cumsum.out",)


def test_work_outside_the_delegate_is_what_it_multiplies_and_moves(toy: Lowered) -> None:
    assert toy.coverage()["plain"] == Coverage(delegated=8 * 8 * 9 * (4 + 8), total=8 * 8 * 9 * (4 + 8), left=())
    products = 8 * 8 * 9 * 4
    assert toy.coverage()["scan"] == Coverage(delegated=products, total=products + 8 * 8, left=("aten.cumsum.default",))


def test_a_convolution_that_falls_out_of_the_delegate_is_refused() -> None:
    example = (torch.zeros(1, 4, 8, 8), torch.zeros(4, 4, 3, 3))
    lowered = lower({"own": OwnWeights()}, {"own": example})
    products, written = 8 * 8 * 4 * 4 * 9, 4 * 8 * 8
    coverage = lowered.coverage()["own"]
    assert coverage == Coverage(delegated=0, total=products + written, left=("aten.convolution.default",))
    with pytest.raises(ParityError) as caught:
        require_coverage(lowered.coverage(), load_target("xnnpack-x86").least_coverage)
    assert str(caught.value) == (
        "the delegate executes 0.0% of the work, at least 95% are needed; "
        "worst method own, outside: aten.convolution.default"
    )


def test_a_method_without_products_is_covered_only_when_nothing_is_left() -> None:
    assert Coverage(delegated=0, total=0, left=()).share == 1.0
    assert Coverage(delegated=0, total=0, left=("aten.select_copy.int",)).share == 0.0
    assert Coverage(delegated=3, total=4, left=("aten.mean.dim",)).share == 0.75


def test_fp16_and_other_formats_are_no_xnnpack_program() -> None:
    with pytest.raises(UsageError, match=r"^target xnnpack-arm64 cannot hold fp16; allowed: int8, fp32$"):
        lower({}, {}, load_target("xnnpack-arm64"), "fp16")
    with pytest.raises(UsageError, match=r"^target onnx-cpu is no \.pte: ExecuTorch has no backend 'onnx'$"):
        lower({}, {}, load_target("onnx-cpu"))


def test_qualcomm_says_what_is_missing_before_anything_is_downloaded() -> None:
    with pytest.raises(UsageError) as caught:
        lower({}, {}, load_target("qualcomm"))
    assert str(caught.value) == (
        "target qualcomm cannot be lowered: the executorch wheel needs the Qualcomm AI Engine Direct SDK (QNN) "
        "for it, and mars-edge was never tried with one; allowed: xnnpack-arm64 for the same phone's CPU"
    )


def test_coreml_names_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = builtins.__import__

    def without_coremltools(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "coremltools":
            raise ModuleNotFoundError(name)
        return ordinary(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_coremltools)
    with pytest.raises(UsageError, match=r"^target coreml needs the package coremltools: pip install coremltools$"):
        lower({}, {}, load_target("coreml"))


# Every kind of model.


def deployed(name: str, precision: Precision) -> tuple[DeployedMars, Examples]:
    """A narrow untrained model of a committed recipe, ready for lowering."""
    recipe = narrow(load_recipe(RECIPES / f"{name}.toml"))
    source = source_of(recipe)
    model = lively(recipe, source)
    shapes = {m.name: m.shape for m in source.modalities}
    if precision == "fp32":
        ready = float_pieces(model.deployed)
    else:
        ready = model.deployed
        ready.always_dense = True
        with hushed(), torch.no_grad():
            quantize.prepare(ready, shapes)
            torch.manual_seed(0)
            quantize.observe(ready, random_split(source), recipe)
            quantize.freeze_observers(ready)
            ready = quantize.convert(ready)
    return ready, example_inputs(ready, shapes, batch=1)


def inputs_of(method: str, example: tuple[Tensor, ...], generator: torch.Generator) -> list[Tensor]:
    if method == "encode_text":
        return [torch.randint(0, 50, x.shape, generator=generator).float() for x in example]
    return [torch.rand(x.shape, generator=generator) for x in example]


@torch.no_grad()
def differences(pieces: Mapping[str, nn.Module], examples: Examples, program: bytes) -> tuple[float, float]:
    """The largest and the largest mean difference of an engine's output from its piece, in output steps.

    Of a float output of an int8 piece, which has int8 values somewhere before it, in 128ths of its largest value; of
    a float32 piece in thousandths.
    """
    runner = native.NativeRunner(program)
    generator, found = torch.Generator().manual_seed(0), []
    for method, piece in pieces.items():
        inputs = inputs_of(method, examples[method], generator)
        answered = piece(*inputs)
        expected = [answered] if isinstance(answered, Tensor) else list(answered)
        steps, parts = output_steps(piece) or (None,) * len(expected), 128 if output_steps(piece) else 1000
        given = runner.execute(method, [x.numpy() for x in inputs])
        for want, got, step in zip(expected, given, steps, strict=True):
            assert np.isfinite(got).all() and got.shape == want.shape
            off = np.abs(got - want.numpy()) / (step or float(want.abs().max()) / parts)
            found.append((float(off.max()), float(off.mean())))
    return max(most for most, _ in found), max(mean for _, mean in found)


@needs_engine
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("name", EDGE)
def test_every_edge_recipe_lowers_and_answers_as_its_pieces(name: str, precision: Precision) -> None:
    model, examples = deployed(name, precision)
    pieces, target = pieces_of(model), load_target("xnnpack-x86")
    lowered = lower(pieces, examples, target, precision)
    require_coverage(lowered.coverage(), target.least_coverage)
    assert set(lowered.memory()) == set(lowered.weight_bytes()) == set(pieces)
    most, mean = differences(pieces, examples, lowered.program("{}"))
    # Each of up to 20 quantizers in a row may round a tie the other way, and the layers after it spread that.
    assert most <= (5.01 if precision == "int8" else 1.0)
    assert mean <= 1.0


@pytest.mark.parametrize("name", MARS)
def test_products_are_counted_as_the_recipe_counts_them(name: str) -> None:
    recipe = narrow(load_recipe(RECIPES / f"{name}.toml"))
    source = source_of(recipe)
    model = lively(recipe, source).deployed
    examples = example_inputs(model, {m.name: m.shape for m in source.modalities}, batch=1)
    expected = {method: cost.macs for method, cost in costs(model, source.modalities, source.task).pieces.items()}
    with hushed(), torch.no_grad():
        found = {
            method: total_multiply_accumulates(torch.export.export(piece.eval(), examples[method]))
            for method, piece in pieces_of(model).items()
        }
    assert found == expected


@pytest.mark.slow
def test_the_int8_face_model_is_at_most_three_tenths_of_fp32() -> None:
    recipe = load_recipe(RECIPES / "face_antispoof.toml")
    source = source_of(recipe)
    sizes = {}
    for precision in ("int8", "fp32"):
        model = lively(recipe, source).deployed
        shapes = {m.name: m.shape for m in source.modalities}
        if precision == "int8":
            model.always_dense = True
            with hushed(), torch.no_grad():
                quantize.prepare(model, shapes)
                quantize.observe(model, random_split(source), recipe)
                model = quantize.convert(model)
        else:
            model = float_pieces(model)
        lowered = lower(pieces_of(model), example_inputs(model, shapes, batch=1), precision=precision)
        sizes[precision] = len(lowered.program("{}"))
        # What is in the file beside weights and programs of delegates is less than a thirtieth.
        assert sizes[precision] < 1.034 * lowered.stored_bytes()
    assert sizes["int8"] <= 0.30 * sizes["fp32"]


# Backends that no engine of ours runs: lowered and looked at.


def other(target: str, precision: Precision) -> Lowered:
    model, examples = deployed("own_data", precision if precision == "int8" else "fp32")
    wanted = ("encode_depth", "expert_0")
    pieces = {name: piece for name, piece in pieces_of(model).items() if name in wanted}
    return lower(pieces, examples, load_target(target), precision)


# coremltools leaves temporary folders to the garbage collector.
no_folders_left = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


@no_folders_left
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize(("target", "delegate"), [("vulkan", "VulkanBackend"), ("coreml", "CoreMLBackend")])
def test_vulkan_and_core_ml_take_the_whole_of_a_piece(target: str, delegate: str, precision: Precision) -> None:
    if target == "coreml":
        pytest.importorskip("coremltools")
    lowered = other(target, precision)
    found = structures_of_file(lowered.program("{}"))
    for method in lowered.parts:
        assert set(found[method].delegates) == {delegate}
    require_coverage(lowered.coverage(), load_target(target).least_coverage)
    assert lowered.memory() == {}
    assert lowered.stored_bytes() <= len(lowered.program("{}"))


@no_folders_left
@pytest.mark.slow
@pytest.mark.parametrize("target", ["vulkan", "coreml"])
def test_fp16_halves_what_fp32_stores(target: str) -> None:
    if target == "coreml":
        pytest.importorskip("coremltools")
    pieces: dict[str, nn.Module] = {"linear": nn.Linear(512, 512)}
    examples = {"linear": (torch.zeros(1, 512),)}
    half, full = (lower(pieces, examples, load_target(target), p).stored_bytes() for p in ("fp16", "fp32"))
    assert full > 4 * 512 * 512 > 1.8 * half
