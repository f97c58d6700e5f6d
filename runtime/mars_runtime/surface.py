"""Whether a depth picture shows surfaces at all: how much of it does, and how rough they are.

Axes: H and W pixels of a picture; 0 means "no measurement". A lens that is covered leaves nothing measured but false
matches, which resemble none of their neighbours; light that is scattered leaves a value everywhere, of no surface.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of one surface are two neighbours in a thinned picture that differ by at most this share of their depth.
STEP_SHARE = 0.1
_ROWS, _COLUMNS = 16, 160
# Fewer measured neighbourhoods than this say nothing of roughness.
_FEWEST = 50
# Mean of |x| of a standard normal variable over the smaller three quarters of its values.
_TRIMMED_MEAN = 0.51483


def missing_share(thinned: NDArray[np.uint16]) -> float:
    """Share of the pixels (H, W) that show no surface: no measurement, or unlike both neighbours in their row."""
    depth = thinned.astype(np.float32)
    left, right = depth[:, :-1], depth[:, 1:]
    alike = (np.abs(left - right) <= STEP_SHARE * left) & (left > 0.0)
    on_surface = np.zeros(depth.shape, np.bool_)
    on_surface[:, :-1] = alike
    on_surface[:, 1:] |= alike
    return 1.0 - np.count_nonzero(on_surface) / on_surface.size


def roughness(data: NDArray[Any]) -> float | None:
    """Standard deviation of the pixel noise as a share of the depth itself; None where too little is measured.

    As `facts.noise`, of those 3 x 3 neighbourhoods that are measured throughout. A share of the depth, because what
    cameras err by grows with it: a wall far away is no noise. Slopes cancel, edges are left out as the largest quarter.
    """
    if data.ndim != 2 or min(data.shape) < 3:
        return None
    left = max(0, (data.shape[1] - _COLUMNS) // 2)
    rows = np.linspace(0, data.shape[0] - 3, min(_ROWS, data.shape[0] - 2)).astype(np.intp)
    middle = data[:, left : left + _COLUMNS]
    above, at, below = (middle[rows + k].astype(np.float32) for k in range(3))
    least = np.minimum(np.minimum(above, at), below)
    measured = np.minimum(np.minimum(least[:, :-2], least[:, 1:-1]), least[:, 2:]) > 0.0
    down = above - 2.0 * at + below
    both = np.abs(down[:, :-2] - 2.0 * down[:, 1:-1] + down[:, 2:])[measured] / at[:, 1:-1][measured]
    if both.size < _FEWEST:
        return None
    kept = 3 * both.size // 4
    return float(np.partition(both, kept - 1)[:kept].mean()) / (6.0 * _TRIMMED_MEAN)
