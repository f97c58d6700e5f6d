"""Top-K gates against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_edge.gates import top_k_gates


def reference(row: list[float], k: int) -> tuple[list[int], list[float]]:
    chosen = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
    powers = [math.exp(row[i] - row[chosen[0]]) for i in chosen]
    return chosen, [p / sum(powers) for p in powers]


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_gates_equal_the_plain_loop(k: int) -> None:
    logits = np.random.default_rng(k).normal(scale=4, size=(50, 8)).astype(np.float32)
    indices, weights = top_k_gates(logits, k)
    assert (indices.shape, weights.shape, weights.dtype) == ((50, k), (50, k), np.float32)
    for row, chosen, gates in zip(logits, indices, weights, strict=True):
        expected, expected_gates = reference([float(v) for v in row], k)
        assert chosen.tolist() == expected
        np.testing.assert_allclose(gates, expected_gates, rtol=2e-6)


def test_gates_sum_to_one_even_for_huge_logits() -> None:
    _, weights = top_k_gates(np.array([[3e38, 1e38, -3e38]], np.float32), 2)
    assert weights.sum() == pytest.approx(1.0)


def test_equal_logits_keep_the_order_of_their_indices() -> None:
    indices, weights = top_k_gates(np.array([[1, 7, 7, 7]], np.float32), 2)
    assert indices.tolist() == [[1, 2]]
    assert weights.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("k", [0, 5])
def test_k_outside_the_experts_is_refused(k: int) -> None:
    with pytest.raises(UsageError, match=rf"^k is {k}, allowed: 1 to 4 experts$"):
        top_k_gates(np.zeros((1, 4), np.float32), k)


def test_a_single_row_without_batch_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^router logits have shape \(4,\), expected \(batch, experts\)$"):
        top_k_gates(np.zeros(4, np.float32), 2)


def test_weights_are_the_exact_softmax_rounded_once() -> None:
    logits = np.random.default_rng(5).normal(scale=4, size=(500, 8)).astype(np.float32)
    indices, weights = top_k_gates(logits, 2)
    for row, chosen, gates in zip(logits, indices, weights, strict=True):
        smaller = math.exp(float(row[chosen[1]]) - float(row[chosen[0]]))
        assert gates.tolist() == [np.float32(1 / (1 + smaller)), np.float32(smaller / (1 + smaller))]
