"""What a recipe would train, without data: parameters, MACs per subset, memory of a step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from mars_edge.subsets import evaluated_subsets, label
from mars_training.costs import Costs, Memory, costs, training_memory
from mars_training.data.split import Source
from mars_training.methods import build_model, deployed_of
from mars_training.model.build import parameter_count
from mars_training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Check:
    """The dry run of one recipe.

    Attributes:
        privileged: parameters that exist in training only.
    """

    recipe: Recipe
    source: Source
    costs: Costs
    privileged: int
    memory: Memory


def check(recipe: Recipe, source: Source) -> Check:
    """The recipe's model, built without memory for its weights, and its costs.

    Raises:
        UsageError: recipe and data do not fit together.
    """
    with torch.device("meta"):
        model = build_model(recipe, source.modalities, len(source.labels), source.task)
    found = costs(deployed_of(model), source.modalities, source.task)
    return Check(
        recipe=recipe,
        source=source,
        costs=found,
        privileged=parameter_count(model) - found.parameters,
        memory=training_memory(model, source.modalities, recipe.schedule, crop_px=recipe.augment.crop_px),
    )


def headline(found: Check) -> str:
    """Two lines: what is trained, on what."""
    deployed = found.costs.parameters
    shapes = ", ".join(f"{m.name} {'x'.join(map(str, m.shape))}" for m in found.source.modalities)
    return (
        f"{found.recipe.name}: {found.recipe.method}, {deployed:,} parameters deployed, "
        f"{deployed + found.privileged:,} in training\n"
        f"inputs: {shapes}; classes: {', '.join(found.source.labels)} ({found.source.note})"
    )


def text(found: Check) -> str:
    """Everything, for people."""
    return "\n".join([headline(found), "", *_piece_lines(found), "", *_subset_lines(found), "", *_memory_lines(found)])


def _piece_lines(found: Check) -> list[str]:
    lines = [f"{'piece':<20}{'parameters':>14}{'MACs':>18}"]
    experts = found.costs.experts
    for name, cost in found.costs.pieces.items():
        if name == "expert_0":
            lines.append(f"{f'expert x {len(experts)}, each':<20}{cost.parameters:>14,}{cost.macs:>18,}")
        elif cost not in experts or not name.removeprefix("expert_").isdigit():
            lines.append(f"{name:<20}{cost.parameters:>14,}{cost.macs:>18,}")
    return [*lines, f"{'in training only':<20}{found.privileged:>14,}"]


def _subset_lines(found: Check) -> list[str]:
    names, count = found.source.names, len(found.costs.experts)
    if not count:
        lines = [f"{'present':<32}{'MACs':>18}"]
    else:
        every, active = f"all {count} experts", f"{found.costs.active_experts} experts"
        lines = [f"{'present: MACs with':<32}{every:>18}{active:>18}"]
    for subset in evaluated_subsets(names, found.recipe.data.always_present):
        sparse = f"{found.costs.macs(subset):>18,}"
        dense = f"{found.costs.macs(subset, sparse=False):>18,}" if count else ""
        lines.append(f"{label(subset, names):<32}{dense}{sparse}")
    return lines


def _memory_lines(found: Check) -> list[str]:
    memory = found.memory
    parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in asdict(memory).items())
    return [
        f"memory of a training step, batch {found.recipe.schedule.batch_size}: at least {_gigabytes(memory.total)}",
        f"({parts}; float32, every expert computed, without workspaces)",
    ]


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def to_dict(found: Check) -> dict[str, Any]:
    """Everything, as plain JSON types."""
    names = found.source.names
    return {
        "recipe": found.recipe.name,
        "method": found.recipe.method,
        "parameters": found.costs.parameters,
        "parameters_in_training": found.costs.parameters + found.privileged,
        "pieces": {name: asdict(cost) for name, cost in found.costs.pieces.items()},
        "experts": len(found.costs.experts),
        "active_experts": found.costs.active_experts,
        "macs": {
            label(subset, names): {
                "dense": found.costs.macs(subset, sparse=False),
                "sparse": found.costs.macs(subset),
            }
            for subset in evaluated_subsets(names, found.recipe.data.always_present)
        },
        "memory_bytes": {**asdict(found.memory), "total": found.memory.total},
        "batch_size": found.recipe.schedule.batch_size,
        "inputs": {m.name: list(m.shape) for m in found.source.modalities},
        "classes": list(found.source.labels),
        "task": found.source.task,
    }
