"""Batches: which samples make up each step of an epoch, and reading the next ones while a step runs.

Axes: n samples, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from mars_training.data.split import Split

Item = TypeVar("Item")


def balanced_order(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A random order of about len(labels) samples in which every class comes equally often.

    A class is gone through completely before any of its samples repeats. Without a generator, torch's global one.
    """
    classes = torch.unique(labels)
    each = max(len(labels) // len(classes), 1)
    parts = [_repeat_shuffled(torch.nonzero(labels == c).flatten(), each, generator) for c in classes.tolist()]
    order = torch.cat(parts)
    return order[torch.randperm(len(order), generator=generator)]


def _repeat_shuffled(indices: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    rounds = -(-count // len(indices))
    return torch.cat([indices[torch.randperm(len(indices), generator=generator)] for _ in range(rounds)])[:count]


def batches(split: Split, size: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Indices (B,) of every step of an epoch; an incomplete last batch is left out, for batch norm's sake.

    Classes come equally often; where the labels are maps, every sample comes once.
    """
    labels = split.labels
    if isinstance(labels, Tensor) and labels.dim() == 1:
        order = balanced_order(labels, generator)
    else:
        order = torch.randperm(len(split), generator=generator)
    size = min(size, len(order))
    return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]


def read_ahead(read: Callable[[Tensor], Item], rows: Sequence[Tensor]) -> Generator[Item]:
    """`read` of each of `rows`, in order; one thread reads the next while the caller works on this one.

    What `read` raises is raised here, at its place. Closing the iterator ends the thread.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        waiting = reader.submit(read, rows[0]) if rows else None
        for following in [*rows[1:], None]:
            if waiting is None:
                return
            ready = waiting.result()
            waiting = None if following is None else reader.submit(read, following)
            yield ready
    finally:
        reader.shutdown(cancel_futures=True)
