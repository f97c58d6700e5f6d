"""Random numbers of a training, keyed by where they are used instead of by what was drawn before.

Every step seeds torch's generators from (seed, epoch, step), and an epoch's order comes from (seed, epoch) alone. So
a run that goes on after a kill needs no generator state.
"""

from __future__ import annotations

import hashlib

import torch


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
