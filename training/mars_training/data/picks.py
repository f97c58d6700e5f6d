"""Which rows a split takes: held out of the training list, or a balanced few for a trial.

Axes: n rows. Nothing here depends on the order in which files lie on disk, or on the machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HOLD_OUT = 0x484F4C44


def held_out(labels: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.bool_]:
    """True (n,) for a random `share` of every class, at least one row, and never a class's only row."""
    generator = np.random.default_rng([_HOLD_OUT, seed])
    out = np.zeros(labels.size, dtype=np.bool_)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        count = min(max(round(share * mine.size), 1), mine.size - 1)
        out[generator.permutation(mine)[:count]] = True
    return out


def balanced_head(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Ascending indices of `limit` rows (all for 0): the classes' first rows, then their second ones, and so on."""
    if not 0 < limit < labels.size:
        return np.arange(labels.size)
    turn = np.zeros(labels.size, dtype=np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        turn[mine] = np.arange(mine.size)
    return np.sort(np.lexsort((labels, turn))[:limit])
