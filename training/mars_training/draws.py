"""Random numbers of a training, keyed by where they are used instead of by what was drawn before.

Every step seeds torch's generators from (seed, epoch, step), and an epoch's order comes from (seed, epoch) alone. So
a run that goes on after a kill needs no generator state.

Where several processes share a batch, all draw for the whole of it and each takes its own rows.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mars_training.distributed import own, size


def key(*numbers: int) -> int:
    """A seed below 2^63 for these numbers; any other numbers, or another order, give an unrelated one."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def reseed(*numbers: int) -> None:
    """Seed torch's global generator, and that of every GPU, with the key of these numbers."""
    torch.manual_seed(key(*numbers))


def generator(*numbers: int) -> torch.Generator:
    """A processor generator of its own, seeded with the key of these numbers."""
    return torch.Generator().manual_seed(key(*numbers))


def uniform(rows: int, *shape: int, device: torch.device | None = None) -> Tensor:
    """Uniform on 0 to 1: this process's `rows` of what is drawn for the whole batch, (rows, *shape)."""
    return own(torch.rand(rows * size(), *shape, device=device))


def normal(rows: int, *shape: int, device: torch.device | None = None) -> Tensor:
    """Standard normal: this process's `rows` of what is drawn for the whole batch, (rows, *shape)."""
    return own(torch.randn(rows * size(), *shape, device=device))


def exponential(rows: int, *shape: int) -> Tensor:
    """Exponential of mean 1: this process's `rows` of what is drawn for the whole batch, (rows, *shape)."""
    return own(torch.empty(rows * size(), *shape).exponential_())


def integers(low: int, high: int, rows: int, *shape: int) -> Tensor:
    """Whole numbers from `low` to below `high`: this process's `rows` of those of the whole batch, (rows, *shape)."""
    return own(torch.randint(low, high, (rows * size(), *shape)))
