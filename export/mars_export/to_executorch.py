"""Lower the pieces of a deployed model into one .pte: a method per piece, the manifest as a constant method.

Design decision: one method per piece, so that the runtime skips what is missing or not chosen. Everything but the
manifest is planned once; serialising with another manifest then copies no weights.
Source: ExecuTorch 1.5, "Exporting to ExecuTorch"; backends XNNPACK, Core ML and Vulkan, "Partitioner API".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from mars_edge.errors import ParityError, UsageError
from mars_export import executorch_structure as structure
from mars_export.executorch_structure import Coverage as Coverage
from mars_export.executorch_structure import Structure
from mars_export.hush import hushed
from mars_export.pieces import Examples
from mars_export.targets import Backend, Precision, Target, default_target

_MANIFEST_METHOD = "manifest"
# The first deployment target whose quantizers take int8.
_COREML_TARGET = "iOS17"
# "" is the root: Vulkan's partitioner writes to it.
_TALKATIVE = ("", "executorch.backends.apple.coreml", "coremltools")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One lowered piece.

    Attributes:
        program: an `ExportedProgram` with all memory planned, ready to be emitted.
        named: what its delegates keep by name beside their own bytes; XNNPACK: weights, by their digest.
        blobs: all that its delegates bring into the file: bytes by digest.
        delegate_peak: bytes of XNNPACK's intermediate values; None for another backend, which does not tell.
    """

    program: Any
    coverage: Coverage
    named: tuple[Any, ...]
    blobs: Mapping[str, int]
    delegate_peak: int | None


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """Pieces lowered for one backend, by method; `program` serialises them with any manifest."""

    parts: Mapping[str, Method]

    def program(self, manifest: str) -> bytes:
        """The .pte without trailer; equal for equal manifests."""
        document = torch.frombuffer(bytearray(manifest.encode("utf-8")), dtype=torch.uint8)
        return bytes(self._emitted({_MANIFEST_METHOD: document}).buffer)

    def _emitted(self, constants: Mapping[str, Any]) -> Any:
        from executorch.exir import ExecutorchProgramManager
        from executorch.exir._serialize._named_data_store import NamedDataStore

        store = NamedDataStore()
        for method in self.parts.values():
            for named in method.named:
                store.merge_named_data_store(named)
        with hushed():
            programs = {name: method.program for name, method in self.parts.items()}
            return ExecutorchProgramManager(
                programs, dict(constants), _configuration(), store.get_named_data_store_output()
            )

    @cached_property
    def structure(self) -> Mapping[str, Structure]:
        """Per method, what the emitted program holds."""
        return structure.structures(self._emitted({}).executorch_program)

    def coverage(self) -> dict[str, Coverage]:
        """Per method, the share of its work on the delegate."""
        return {name: method.coverage for name, method in self.parts.items()}

    def memory(self) -> dict[str, int]:
        """Per method, bytes of intermediate values at their peak: the planned arena, and XNNPACK's own values.

        Without inputs, outputs and packed weights. A method of a backend that does not tell is left out.
        """
        peaks = {name: method.delegate_peak for name, method in self.parts.items()}
        return {name: self.structure[name].planned_bytes + peak for name, peak in peaks.items() if peak is not None}

    def weight_bytes(self) -> dict[str, int]:
        """Per method, bytes of the file that a call reads: weights, other constants and the delegates' programs."""
        return {
            name: sum(method.blobs.values()) + self.structure[name].constant_bytes
            for name, method in self.parts.items()
        }

    def stored_bytes(self) -> int:
        """Like the sum of `weight_bytes`, but what several methods share counts once, as it is stored."""
        shared: dict[str, int] = {}
        for method in self.parts.values():
            shared |= method.blobs
        return sum(shared.values()) + sum(s.constant_bytes for s in self.structure.values())


def lower(
    pieces: Mapping[str, nn.Module],
    examples: Examples,
    target: Target | None = None,
    precision: Precision | None = None,
) -> Lowered:
    """The pieces as methods of the target's backend with static shapes.

    Args:
        pieces: converted for int8, folded float32 for fp16 and fp32.
        examples: batch 1.
        target: xnnpack-x86 when None; its program is that of xnnpack-arm64.
        precision: the target's own when None. XNNPACK computes in what the pieces hold.

    Raises:
        UsageError: the target is no .pte or cannot hold the precision, or its backend cannot be lowered here; names
            the package that is missing.
    """
    target = target or default_target(".pte")
    precision = precision or target.precision
    if target.backend not in _PARTITIONERS:
        raise UsageError(f"target {target.name} is no .pte: ExecuTorch has no backend {target.backend!r}")
    target.require_precision(precision)
    with hushed(), _quiet_backends(), torch.no_grad():
        partitioner = _PARTITIONERS[target.backend](precision)
        from executorch.exir import to_edge_transform_and_lower

        programs = {name: torch.export.export(piece.eval(), examples[name]) for name, piece in pieces.items()}
        macs = {name: structure.total_multiply_accumulates(program) for name, program in programs.items()}
        return _planned(to_edge_transform_and_lower(programs, partitioner=[partitioner]), macs)


def _planned(manager: Any, macs: Mapping[str, int]) -> Lowered:
    """The methods of an `EdgeProgramManager` in the order of `macs`; it must not be used again."""
    edge = {name: manager.exported_program(name) for name in macs}
    # Planning rewrites the programs: what the edge dialect tells is read before.
    coverage = {name: structure.coverage(program, macs[name]) for name, program in edge.items()}
    named = {name: structure.named_data(program) for name, program in edge.items()}
    blobs = {name: structure.stored_blobs(program) for name, program in edge.items()}
    peaks = {name: structure.delegate_peak(program) for name, program in edge.items()}
    planned = manager.to_executorch(_configuration())
    return Lowered(
        parts={
            name: Method(
                program=planned.exported_program(name),
                coverage=coverage[name],
                named=named[name],
                blobs=blobs[name],
                delegate_peak=peaks[name],
            )
            for name in macs
        }
    )


def _configuration() -> Any:
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    # Inputs and outputs stay out of the plan: the runtime then works in the caller's arrays, without copies.
    planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    return ExecutorchBackendConfig(memory_planning_pass=planning)


def _xnnpack(precision: Precision) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    del precision
    return XnnpackPartitioner()


def _coreml(precision: Precision) -> Any:
    try:
        import coremltools
    except ModuleNotFoundError:
        raise UsageError("target coreml needs the package coremltools: pip install coremltools") from None
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    computed = coremltools.precision.FLOAT32 if precision == "fp32" else coremltools.precision.FLOAT16
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(coremltools.target, _COREML_TARGET), compute_precision=computed
    )
    return CoreMLPartitioner(compile_specs=specs)


def _vulkan(precision: Precision) -> Any:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return VulkanPartitioner({"force_fp16": True} if precision == "fp16" else {})


def _qualcomm(precision: Precision) -> Any:
    # Before any import: executorch.backends.qualcomm downloads the SDK when its partitioner is made.
    del precision
    raise UsageError(
        "target qualcomm cannot be lowered: the executorch wheel needs the Qualcomm AI Engine Direct SDK (QNN) "
        "for it, and mars-edge was never tried with one; allowed: xnnpack-arm64 for the same phone's CPU"
    )


_PARTITIONERS: dict[Backend, Callable[[Precision], Any]] = {
    "xnnpack": _xnnpack,
    "coreml": _coreml,
    "vulkan": _vulkan,
    "qualcomm": _qualcomm,
}


@contextmanager
def _quiet_backends() -> Iterator[None]:
    """Inside, the partitioners do not tell about every node that they look at."""
    before, level = logging.root.manager.disable, logging.root.level
    # Not by the level of a logger: importing the Vulkan partitioner sets the root logger's to INFO.
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.setLevel(level)


def require_coverage(coverage: Mapping[str, Coverage], least: float) -> None:
    """Passes when at least `least` of all work is delegated.

    Raises:
        ParityError: less is, or there is nothing to count; names the method with the most work outside.
    """
    total = sum(c.total for c in coverage.values())
    share = sum(c.delegated for c in coverage.values()) / total if total else 0.0
    if not share >= least:
        worst = max(coverage, key=lambda name: coverage[name].total - coverage[name].delegated, default="none")
        left = ", ".join(coverage[worst].left) if coverage else ""
        raise ParityError(
            f"the delegate executes {share:.1%} of the work, at least {least:.0%} are needed; "
            f"worst method {worst}, outside: {left}"
        )
