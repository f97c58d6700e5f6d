"""Top-K expert gates: one definition for training checks, every engine and every test.

Axes: B batch, N experts, K experts that run.
Source: Shazeer et al., "Outrageously Large Neural Networks", 2017, eq. 3-5 (softmax over the kept K).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError


def top_k_gates(logits: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices (B, K) of the K largest logits per row, largest first, and their softmax weights (B, K).

    Equal logits keep the order of their indices, as ONNX TopK does; torch.topk leaves it open.

    Args:
        logits: router logits, (B, N), finite.
        k: how many experts run, 1 to N.

    Raises:
        UsageError: the rank is not 2, or k is outside 1..N.
    """
    if logits.ndim != 2:
        raise UsageError(f"router logits have shape {logits.shape}, expected (batch, experts)")
    if not 1 <= k <= logits.shape[1]:
        raise UsageError(f"k is {k}, allowed: 1 to {logits.shape[1]} experts")
    indices = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    # In float64: the last bit of a float32 exponential is another one on x86-64 than on aarch64.
    kept = logits[np.arange(len(logits))[:, None], indices].astype(np.float64)
    powers = np.exp(kept - kept[:, :1])
    weights = powers / powers.sum(axis=1, keepdims=True)
    return indices.astype(np.int64, copy=False), weights.astype(np.float32)
