"""The pieces of a deployed model, each exported, quantized and lowered on its own.

Axes: B batch. A piece is called by its method name: encode_<modality>, route, expert_<i>, expert_shared, head.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mars_export.fold import fold_batch_norms
from mars_export.fusion_share import share_fusion
from mars_training.model.mars import DeployedMars

Examples = dict[str, tuple[Tensor, ...]]

# Any batch; 1 is allowed too, or the exported guards would refuse a single sample.
_LARGEST_BATCH = 1 << 20


class Piece(nn.Module):
    """A traced piece that computes the same in training and evaluation mode.

    A traced graph refuses `train()`; without batch norm or dropout there is nothing to switch.
    """

    # Not "graph": exporting a Piece again would look its weights up in GraphModule.graph.

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *inputs: Tensor) -> Any:
        return self.traced(*inputs)

    def train(self, mode: bool = True) -> Piece:
        self.training = mode
        return self


def pieces_of(deployed: DeployedMars) -> dict[str, nn.Module]:
    """The deployed model's pieces by method name, in the order of `mars_edge.manifest.required_methods`."""
    found: dict[str, nn.Module] = {f"encode_{name}": module for name, module in deployed.encoders.items()}
    found["route"] = deployed.route_stage
    found |= {f"expert_{i}": expert for i, expert in enumerate(deployed.experts)}
    if deployed.expert_shared is not None:
        found["expert_shared"] = deployed.expert_shared
    found["head"] = deployed.head
    return found


def replace_piece(deployed: DeployedMars, method: str, module: nn.Module) -> None:
    """Puts `module` in the place of the piece called `method`."""
    if method.startswith("encode_"):
        deployed.encoders[method.removeprefix("encode_")] = module
    elif method in ("route", "head", "expert_shared"):
        setattr(deployed, "route_stage" if method == "route" else method, module)
    else:
        deployed.experts[int(method.removeprefix("expert_"))] = module


@torch.no_grad()
def example_inputs(deployed: DeployedMars, shapes: Mapping[str, tuple[int, ...]], *, batch: int) -> Examples:
    """Zero-valued inputs (B first) of every piece, each of the shape it meets; `shapes` per modality without B."""
    inputs = {name: torch.zeros(batch, *shapes[name]) for name in deployed.modalities}
    features = deployed.encode_all(inputs)
    z, _ = deployed.route_stage(*features)
    expert_output = deployed.experts[0](z)
    examples: Examples = {f"encode_{name}": (x,) for name, x in inputs.items()}
    examples["route"] = tuple(torch.zeros_like(f) for f in features)
    for method in pieces_of(deployed):
        if method.startswith("expert_"):
            examples[method] = (torch.zeros_like(z),)
    examples["head"] = (torch.zeros_like(expert_output),)
    return examples


def trace(module: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """`module` as an exported program with a dynamic batch."""
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    each = tuple({0: batch} for _ in example)
    # A piece with *inputs takes one tuple, whose entries are the inputs.
    variadic = len(example) > 1 or isinstance(module, Piece) or _is_variadic(module)
    return torch.export.export(module, example, dynamic_shapes=(each,) if variadic else each)


def _is_variadic(module: nn.Module) -> bool:
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def one_dequantizer_each(traced: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with a dequantizer of its own for every reader of a quantized value.

    XNNPACK refuses to run a dequantized map that is at once an output, in NCHW, and read on in NHWC.
    """
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and "dequantize_per_tensor" in str(node.target):
            for user in list(node.users)[1:]:
                with traced.graph.inserting_after(node):
                    user.replace_input_with(node, traced.graph.node_copy(node))
    traced.recompile()
    return traced


def float_pieces(deployed: DeployedMars) -> DeployedMars:
    """A copy in evaluation mode with batch norms folded and its fusion shared, for float artifacts."""
    folded = copy.deepcopy(deployed)
    fold_batch_norms(folded)
    share_fusion(folded)
    return folded


def output_steps(piece: nn.Module) -> tuple[float | None, ...]:
    """Per output of a converted piece, the distance between neighbouring values, None for a float output.

    Empty for a float piece.
    """
    traced = getattr(piece, "traced", None)
    if traced is None:
        return ()
    (returned,) = [n for n in traced.graph.nodes if n.op == "output"]
    leaves, _ = torch.utils._pytree.tree_flatten(returned.args)
    return tuple(float(n.args[1]) if "dequantize_per_tensor" in str(n.target) else None for n in leaves)
