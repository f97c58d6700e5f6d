"""The gated sum of experts, computed for every row or only where a gate is open.

Axes: B batch, N experts, d channels of z; C, H, W of an expert's output.
Design decision: both forms take the same arguments and agree wherever an expert treats rows independently. In
training they differ by batch norm: dense, an expert's statistics are those of all rows; sparse, of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mars_training.distributed import all_sum
from mars_training.model.rows import run

Experts = Sequence[nn.Module] | nn.ModuleList


def runs_sparse(dispatch: str, active: int, experts: int, *, training: bool) -> bool:
    """Whether rows are dispatched: in training if a recipe's `dispatch` says so, else where it saves half the work."""
    return dispatch == "sparse" if training else 2 * active <= experts


def mixture(experts: Experts, z: Tensor, gates: Tensor, *, sparse: bool) -> Tensor:
    """sum_j gates_j E_j(z)."""
    # On the meta device, where costs are measured, gates have no values to dispatch by.
    return sparse_mixture(experts, z, gates) if sparse and not z.is_meta else dense_mixture(experts, z, gates)


def dense_mixture(experts: Experts, z: Tensor, gates: Tensor) -> Tensor:
    """sum_j gates_j E_j(z): every expert sees every row, so no shape depends on data."""
    weights = gates.to(z.dtype).view(*gates.shape, *[1] * (z.dim() - 1)).unbind(dim=1)
    total: Tensor = sum(w * expert(z) for w, expert in zip(weights, experts, strict=True))
    return total


def sparse_mixture(experts: Experts, z: Tensor, gates: Tensor) -> Tensor:
    """sum_j gates_j E_j(z): each expert sees the rows whose gate is not zero; one without rows does not run."""
    expert_of, row_of = (gates != 0).t().nonzero(as_tuple=True)
    counts = torch.bincount(expert_of, minlength=len(experts))
    parts = torch.split(row_of, counts.tolist())
    # In training, batch norm sums over processes: all run an expert, with rows of their own or not, or none does.
    everywhere = all_sum(counts) if experts[0].training else counts
    runs = zip(experts, parts, everywhere.tolist(), strict=True)
    outputs = [run(expert, z[rows], enough=count > 1) for expert, rows, count in runs if count]
    stacked = torch.cat(outputs)
    weights = gates[row_of, expert_of].to(stacked.dtype).view(-1, *[1] * (stacked.dim() - 1))
    return stacked.new_zeros(len(z), *stacked.shape[1:]).index_add(0, row_of, weights * stacked)
