"""Rows of a batch that a module runs on, and what stands for its answer on the others: exact zeros.

Axes: B batch (B of this process where several share one), M modules, one per modality.
Design decision: a module of one modality meets, in a training step, only rows that have the modality. Batch norm would
else take what stands for an absent input for a sample, and a deployed encoder never meets one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mars_training.distributed import all_sum


def encode_rows(encoders: nn.ModuleDict, inputs: Mapping[str, Tensor], present: Tensor) -> list[Tensor]:
    """Every modality's feature (B, C, H, W), from the rows that `present` (B, M) says have it; zeros for the others."""
    return on_rows(encoders.values(), [inputs[name] for name in encoders], present)


def on_rows(modules: Iterable[nn.Module], xs: Sequence[Tensor], present: Tensor, *, copies: int = 1) -> list[Tensor]:
    """Each module's answer on its own input (B, ...), from the rows that its column of `present` (B, M) keeps.

    What the other rows of an input hold does not matter, be it NaN. A module that every row keeps runs as it is; one
    that a single row keeps, by running statistics; over all processes. Every row stands `copies` times in the batch.
    """
    least = 2 * copies
    states = [(kept == rows, kept >= least, kept > 0) for kept, rows in _kept_rows(present)]
    columns = zip(modules, xs, present.unbind(dim=1), states, strict=True)
    return [
        module(x) if everywhere and enough else _on_some(module, x, there, enough=enough, some=some)
        for module, x, there, (everywhere, enough, some) in columns
    ]


# Compiled code is made for the outcomes of the comparisons, not for every number of rows.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _kept_rows(present: Tensor) -> list[tuple[int, int]]:
    here = torch.cat([present.sum(dim=0), present.new_full((1,), len(present), dtype=torch.long)])
    *kept, rows = all_sum(here).tolist()
    return [(k, rows) for k in kept]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _on_some(module: nn.Module, x: Tensor, there: Tensor, *, enough: bool, some: bool) -> Tensor:
    if not some:
        # The shape of an answer is known from one alone.
        with torch.no_grad():
            shape = run(module, torch.zeros_like(x[:1]), enough=False)
        return shape.new_zeros(len(x), *shape.shape[1:])
    rows = there.nonzero(as_tuple=True)[0]
    # Without a row of its own, a process still takes part in the sums of batch norm.
    answer = run(module, x[rows], enough=enough)
    return answer.new_zeros(len(x), *answer.shape[1:]).index_copy(0, rows, answer)


def run(module: nn.Module, rows: Tensor, *, enough: bool) -> Tensor:
    """`module` of `rows`; where they are not `enough`, one in all, by running statistics, which stay as they are.

    One row has no variance over a 1x1 map, and is no statistic of a batch over any.
    """
    if enough:
        output: Tensor = module(rows)
        return output
    # Backward reads the statistics again, which another call of the same module may have moved on by then.
    statistics = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with _evaluating(module):
        alone: Tensor = functional_call(module, statistics, (rows,))
    return alone


@contextmanager
def _evaluating(module: nn.Module) -> Generator[None]:
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
