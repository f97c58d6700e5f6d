"""An export target: which runtime on which hardware a file is for, and what it may hold. One TOML file each.

The named targets are files beside this module; a path to a file of the user's own works the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from mars_edge.errors import UsageError
from mars_export.onnx_precision import Weights
from mars_export.to_onnx import OPSET, OPSETS
from mars_training.ranges import Range, Share, check_ranges
from mars_training.recipe import read_toml, strict_dataclass

Runtime = Literal["executorch", "onnxruntime", "tensorrt", "onnxruntime-web"]
Backend = Literal["xnnpack", "coreml", "vulkan", "qualcomm", "onnx"]
Precision = Literal["int8", "fp16", "fp32"]
Suffix = Literal[".pte", ".onnx"]
_DEFAULTS = {".pte": "xnnpack-x86", ".onnx": "onnx-cpu"}
# Of these our engines hold the kernels; a file for any other backend cannot answer here.
_ENGINES_HOLD = ("xnnpack", "onnx")
# XNNPACK: our engine's interface has no float16. TensorRT takes quantizers with zero point 0 alone, ours have others.
_CANNOT_HOLD = (("xnnpack", "fp16"), ("tensorrt", "int8"))


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one kind of artifact is made for.

    Attributes:
        backend: who executes the pieces inside `runtime`; "onnx" for the whole graph.
        precisions: what the backend was seen to take; `precision` is the default among them.
        weights: .onnx, int8: how trained weights are written, see `onnx_precision.set_weights`.
        opset: .onnx only.
        least_coverage: .pte: the share of the work, see `Coverage`, that the backend must take over.
        runs_here: our engines can run the file, so that its answers are compared before it is written.
        not_run: what was not seen to work, in words for people; never empty where `runs_here` is false.
    """

    name: str
    description: str
    runtime: Runtime
    backend: Backend
    suffix: Suffix
    precisions: tuple[Precision, ...]
    precision: Precision
    runs_here: bool
    weights: Weights = "uint8"
    opset: Annotated[int, Range(low=min(OPSETS), high=max(OPSETS))] = OPSET
    least_coverage: Share = 0.0
    not_run: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, "target")
        _check(self)

    def require_precision(self, precision: str) -> None:
        """Passes when files of this target may hold `precision`.

        Raises:
            UsageError: they may not; lists what they may.
        """
        if precision not in self.precisions:
            raise UsageError(f"target {self.name} cannot hold {precision}; allowed: {', '.join(self.precisions)}")

    def require_proof(self, *, unverified: bool) -> None:
        """Passes when a file is written without proof exactly where none can be had.

        Raises:
            UsageError: it could be proven here and is not to be, or the other way round.
        """
        if unverified and self.runs_here:
            raise UsageError(f"target {self.name} can be proven here: leave out --unverified")
        if not unverified and not self.runs_here:
            if self.backend == "qualcomm":
                raise UsageError(f"target {self.name} cannot be written: {self.not_run}")
            raise UsageError(f"target {self.name} cannot be proven here; --unverified writes it without proof")


def known_targets() -> tuple[str, ...]:
    """The named targets, sorted."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in _folder().iterdir() if f.name.endswith(".toml")))


def load_target(name: str | Path) -> Target:
    """The named target, or the one in a TOML file: anything with a suffix or a folder in it is a path.

    Raises:
        UsageError: unknown name, no such file, or a file that is no target.
    """
    path = Path(name)
    if path.suffix or len(path.parts) != 1:
        return _read(path)
    if str(name) not in known_targets():
        raise UsageError(f"unknown target {str(name)!r}; known: {', '.join(known_targets())}, or a .toml file")
    with resources.as_file(_folder() / f"{name}.toml") as found:
        return _read(found)


def default_target(suffix: str) -> Target:
    """The target of a file whose target nobody named.

    Raises:
        UsageError: another suffix than .pte and .onnx.
    """
    if suffix not in _DEFAULTS:
        raise UsageError(f"output suffix {suffix!r} is unknown; allowed: {', '.join(_DEFAULTS)}")
    return load_target(_DEFAULTS[suffix])


def _read(path: Path) -> Target:
    target = strict_dataclass(Target, read_toml(path, "target"), "target")
    assert isinstance(target, Target)
    if target.name != path.stem:
        raise UsageError(f"target {path} calls itself {target.name!r}; a target is named like its file")
    return target


def _folder() -> resources.abc.Traversable:
    return resources.files("mars_export") / "targets"


def _check(target: Target) -> None:
    for precision in target.precisions:
        for part in {target.backend, target.runtime}:
            if (part, precision) in _CANNOT_HOLD:
                raise UsageError(f"target {target.name}: {part} cannot run our {precision}")
    for wrong, message in (
        (target.precision not in target.precisions, f"precision {target.precision} is not in its precisions"),
        ((target.runtime == "executorch") != (target.suffix == ".pte"), f"{target.runtime} reads no {target.suffix}"),
        ((target.backend == "onnx") != (target.suffix == ".onnx"), f"{target.backend} executes no {target.suffix}"),
        (target.suffix == ".pte" and not target.least_coverage, "a .pte needs a least_coverage above 0"),
        (target.suffix == ".onnx" and target.least_coverage > 0, "an .onnx has no delegate: least_coverage must be 0"),
        (target.runs_here and target.backend not in _ENGINES_HOLD, f"no engine of ours runs {target.backend}"),
        (not target.runs_here and not target.not_run, "runs_here is false; say in not_run what was not seen"),
    ):
        if wrong:
            raise UsageError(f"target {target.name}: {message}")
