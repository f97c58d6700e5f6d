"""Lower the pieces of a deployed model into one .pte: a method per piece, the manifest as a constant method.

Design decision: one method per piece, so that the runtime skips what is missing or not chosen.
Source: ExecuTorch 1.5, "Exporting to ExecuTorch" and "XNNPACK backend".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mars_edge.errors import ParityError
from mars_export.hush import hushed
from mars_export.pieces import Examples

_MANIFEST_METHOD = "manifest"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many of a method's operations XNNPACK executes; the others run in portable kernels.

    Attributes:
        left: the names of the operations outside the delegate, each once.
    """

    delegated: int
    total: int
    left: tuple[str, ...]

    @property
    def share(self) -> float:
        """Delegated operations over all, 0..1."""
        return self.delegated / self.total if self.total else 0.0


class Lowered:
    """Pieces lowered to XNNPACK; `program` serialises them with any manifest."""

    def __init__(self, manager: Any, methods: tuple[str, ...]) -> None:
        self._manager = manager
        self.methods = methods

    def program(self, manifest: str) -> bytes:
        """The .pte without trailer; equal for equal manifests."""
        from executorch.exir import EdgeProgramManager, ExecutorchBackendConfig
        from executorch.exir.passes import MemoryPlanningPass

        document = torch.frombuffer(bytearray(manifest.encode("utf-8")), dtype=torch.uint8)
        with hushed():
            manager = EdgeProgramManager(
                # Serialising rewrites the programs it is given: a copy keeps the next manifest's equal.
                {name: copy.deepcopy(self._manager.exported_program(name)) for name in self.methods},
                constant_methods={_MANIFEST_METHOD: document},
                compile_config=self._manager.compile_config,
            )
            # Inputs and outputs stay out of the plan: the runtime then works in the caller's arrays, without copies.
            planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
            return bytes(manager.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning)).buffer)

    def coverage(self) -> dict[str, Coverage]:
        """Per method, the share of its operations on the delegate."""
        return {name: _coverage(self._manager.exported_program(name).graph_module) for name in self.methods}


def lower(pieces: Mapping[str, nn.Module], examples: Examples) -> Lowered:
    """The pieces as XNNPACK methods with static shapes; `examples` have batch 1."""
    with hushed(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        programs = {name: torch.export.export(piece.eval(), examples[name]) for name, piece in pieces.items()}
        manager = to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()])
    return Lowered(manager, tuple(pieces))


def require_coverage(coverage: Mapping[str, Coverage], least: float) -> None:
    """Passes when at least `least` of all operations are delegated.

    Raises:
        ParityError: fewer are, or there is nothing to count; names the method with the lowest share.
    """
    total = sum(c.total for c in coverage.values())
    share = sum(c.delegated for c in coverage.values()) / total if total else 0.0
    if not share >= least:
        worst = min(coverage, key=lambda name: coverage[name].share, default="none")
        left = ", ".join(coverage[worst].left) if coverage else ""
        raise ParityError(
            f"XNNPACK executes {share:.1%} of the operations, at least {least:.0%} are needed; "
            f"worst method {worst}, outside: {left}"
        )


def _coverage(graph_module: Any) -> Coverage:
    from executorch.exir.delegate import executorch_call_delegate
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    delegated = sum(
        len(_operations(module.original_module.graph_module)) for _, module, _ in get_lowered_submodules(graph_module)
    )
    left = [name for name in _operations(graph_module) if name != str(executorch_call_delegate)]
    return Coverage(delegated=delegated, total=delegated + len(left), left=tuple(sorted(set(left))))


def _operations(graph_module: Any) -> list[str]:
    """Names of the calls that compute or move values; `getitem` only unpacks."""
    calls = [n.target for n in graph_module.graph.nodes if n.op == "call_function"]
    return [getattr(t, "__name__", str(t)) for t in calls if getattr(t, "__name__", "") != "getitem"]
