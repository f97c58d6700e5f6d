"""Targets say what a file is for, refuse what it cannot be, and are in the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

from mars_edge.errors import UsageError
from mars_export.targets import Target, default_target, known_targets, load_target

ROOT = Path(__file__).parents[2]
NAMED = (
    "coreml",
    "onnx-cpu",
    "onnx-tensorrt",
    "onnx-web",
    "qualcomm",
    "vulkan",
    "xnnpack-arm64",
    "xnnpack-x86",
)
SOUND: dict[str, Any] = {
    "name": "mine",
    "description": "a board",
    "runtime": "executorch",
    "backend": "xnnpack",
    "suffix": ".pte",
    "precisions": ("int8", "fp32"),
    "precision": "int8",
    "least_coverage": 0.9,
    "runs_here": True,
}
ONNX = {"runtime": "onnxruntime", "backend": "onnx", "suffix": ".onnx", "least_coverage": 0.0}


def test_the_named_targets_are_these_and_each_loads() -> None:
    assert known_targets() == NAMED
    assert [load_target(name).name for name in NAMED] == list(NAMED)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        load_target("xnnpack-riscv")
    assert str(caught.value) == f"unknown target 'xnnpack-riscv'; known: {', '.join(NAMED)}, or a .toml file"


def test_a_file_of_the_users_own_is_a_target_too(tmp_path: Path) -> None:
    text = (ROOT / "export/mars_export/targets/onnx-cpu.toml").read_text(encoding="utf-8")
    own = tmp_path / "old-board.toml"
    own.write_text(text.replace('"onnx-cpu"', '"old-board"').replace("opset = 20", "opset = 18"), encoding="utf-8")
    assert load_target(own) == load_target(str(own))
    assert (load_target(own).name, load_target(own).opset) == ("old-board", 18)


def test_a_target_is_named_like_its_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text((ROOT / "export/mars_export/targets/onnx-cpu.toml").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_target(own)
    assert str(caught.value) == f"target {own} calls itself 'onnx-cpu'; a target is named like its file"


def test_a_misspelt_key_lists_the_known_ones(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('name = "mine"\nprecison = "int8"\n', encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_target(own)
    assert str(caught.value) == (
        "unknown key 'precison' in target; known keys: name, description, runtime, backend, suffix, precisions, "
        "precision, runs_here, weights, opset, least_coverage, not_run"
    )


def test_no_such_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_target(tmp_path / "none.toml")
    assert str(caught.value) == f"no target at {tmp_path / 'none.toml'}"


def test_a_suffix_has_a_default_target() -> None:
    assert (default_target(".pte").name, default_target(".onnx").name) == ("xnnpack-x86", "onnx-cpu")
    with pytest.raises(UsageError, match=r"^output suffix '\.tflite' is unknown; allowed: \.pte, \.onnx$"):
        default_target(".tflite")


def test_a_precision_that_a_target_cannot_hold_is_refused() -> None:
    load_target("onnx-tensorrt").require_precision("fp16")
    with pytest.raises(UsageError, match=r"^target onnx-tensorrt cannot hold int8; allowed: fp16, fp32$"):
        load_target("onnx-tensorrt").require_precision("int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "precision fp16 is not in its precisions"),
        ({"runtime": "onnxruntime"}, "onnxruntime reads no .pte"),
        ({"backend": "onnx"}, "onnx executes no .pte"),
        ({"least_coverage": 0.0}, "a .pte needs a least_coverage above 0"),
        (ONNX | {"least_coverage": 0.5}, "an .onnx has no delegate: least_coverage must be 0"),
        ({"backend": "vulkan"}, "no engine of ours runs vulkan"),
        ({"runs_here": False}, "runs_here is false; say in not_run what was not seen"),
        ({"precisions": ("int8", "fp16")}, "xnnpack cannot run our fp16"),
        (ONNX | {"runtime": "tensorrt"}, "tensorrt cannot run our int8"),
    ],
)
def test_a_target_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    Target(**SOUND)
    Target(**(SOUND | ONNX))
    with pytest.raises(UsageError) as caught:
        Target(**(SOUND | changes))
    assert str(caught.value) == f"target mine: {message}"


def test_an_opset_outside_what_is_written_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^target\.opset is 21; .*18 to 20"):
        Target(**(SOUND | ONNX | {"opset": 21}))


def test_what_our_engines_cannot_run_says_what_was_not_seen() -> None:
    for target in map(load_target, NAMED):
        assert target.runs_here == (target.backend in ("xnnpack", "onnx"))
        assert target.runs_here or "not" in target.not_run


def test_both_xnnpack_targets_are_one_lowering() -> None:
    arm, x86 = load_target("xnnpack-arm64"), load_target("xnnpack-x86")
    lowering = ("runtime", "backend", "suffix", "precisions", "precision", "least_coverage")
    assert [getattr(arm, key) for key in lowering] == [getattr(x86, key) for key in lowering]


def test_every_target_is_in_the_wheel() -> None:
    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"mars_export/targets/{name}.toml" for name in NAMED} <= packed
