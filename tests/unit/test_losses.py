"""Every loss of MARS against a plain Python loop over samples and experts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mars_training import losses
from mars_training.data.split import IGNORED
from mars_training.model.routers import NoisyRouting, clean_routing, top_k_gates
from mars_training.recipe import LossRecipe

B, N, K = 7, 6, 2


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Teacher logits, student logits and noise scales (B, N), double precision."""
    generator = torch.Generator().manual_seed(3)
    teacher, student, raw = torch.randn(3, B, N, generator=generator, dtype=torch.float64)
    return 2.0 * teacher, 2.0 * student, raw.exp()


def top_k(row: list[float], k: int) -> set[int]:
    return set(sorted(range(len(row)), key=lambda j: -row[j])[:k])


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def variation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return variance / (mean**2 + 1e-10)


def loop_load(clean: list[list[float]], scale: list[list[float]], noisy: list[list[float]], k: int) -> list[float]:
    """Shazeer et al. 2017, equation 9: the k-th excluding i is searched among the others only."""
    load = [0.0] * len(clean[0])
    for c, s, h in zip(clean, scale, noisy, strict=True):
        for i in range(len(c)):
            others = sorted((h[j] for j in range(len(h)) if j != i), reverse=True)
            z = (c[i] - others[k - 1]) / s[i]
            load[i] += 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))
    return load


def test_gates_are_the_softmax_over_the_top_k_and_zero_elsewhere(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    gates = top_k_gates(logits[0], K)
    for row, found in zip(logits[0].tolist(), gates.tolist(), strict=True):
        kept = top_k(row, K)
        total = sum(math.exp(row[j]) for j in kept)
        assert found == pytest.approx([math.exp(row[j]) / total if j in kept else 0.0 for j in range(N)])
        assert sum(v > 0 for v in found) == K


@pytest.mark.parametrize("k", [1, 2, N - 1])
def test_smooth_load_is_the_chance_of_beating_the_kth_other_expert(
    logits: tuple[Tensor, Tensor, Tensor], k: int
) -> None:
    clean, other, scale = logits
    noisy = clean + 0.3 * other
    expected = loop_load(clean.tolist(), scale.tolist(), noisy.tolist(), k)
    assert losses.smooth_load(clean, scale, noisy, k).tolist() == pytest.approx(expected)


def test_balance_loss_is_the_variation_of_importance_plus_that_of_load(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    clean, other, scale = logits
    noisy = clean + 0.3 * other
    gates = top_k_gates(noisy, K)
    importance = [sum(row[j] for row in gates.tolist()) for j in range(N)]
    load = loop_load(clean.tolist(), scale.tolist(), noisy.tolist(), K)
    routing = NoisyRouting(clean=clean, scale=scale, noisy=noisy, gates=gates)
    assert float(losses.balance_loss(routing, K)) == pytest.approx(variation(importance) + variation(load))


def test_squared_variation_of_equal_values_is_zero() -> None:
    assert float(losses.squared_variation(torch.full((8,), 0.7))) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_imitation_loss_is_the_kl_divergence_from_student_to_teacher(
    logits: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    teacher, student, _ = logits
    expected = 0.0
    for t_row, s_row in zip(teacher.tolist(), student.tolist(), strict=True):
        p = softmax([v / temperature for v in t_row])
        q = softmax([v / temperature for v in s_row])
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / B
    found = losses.imitation_loss(teacher, student, temperature=temperature)
    assert float(found) == pytest.approx(expected * temperature**2)


def test_imitation_never_moves_the_teacher() -> None:
    teacher = torch.randn(B, N, requires_grad=True)
    student = torch.randn(B, N, requires_grad=True)
    losses.imitation_loss(teacher, student).backward()
    assert teacher.grad is None
    assert student.grad is not None and bool(student.grad.abs().sum() > 0)


def test_noise_order_loss_compares_adjacent_experts_of_the_union_sorted_by_disagreement(
    logits: tuple[Tensor, Tensor, Tensor],
) -> None:
    teacher, student, scale = logits
    pairs: list[float] = []
    for t_row, s_row, v_row in zip(teacher.tolist(), student.tolist(), scale.tolist(), strict=True):
        union = top_k(t_row, K) | top_k(s_row, K)
        p, q = softmax(t_row), softmax(s_row)
        order = sorted(union, key=lambda j: -abs(p[j] - q[j]))
        variance = [math.log(max(v_row[j] ** 2, 1e-8)) for j in order]
        pairs += [softplus(later - earlier) for earlier, later in itertools.pairwise(variance)]
    found = losses.noise_order_loss(teacher, student, scale, K)
    assert float(found) == pytest.approx(sum(pairs) / len(pairs))


def test_noise_order_loss_of_equal_scales_is_ln_2(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    equal = torch.full((B, N), 0.3, dtype=torch.float64)
    assert float(losses.noise_order_loss(logits[0], logits[1], equal, K)) == pytest.approx(math.log(2.0))


def test_noise_order_loss_moves_only_the_noise(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    teacher, student, scale = (x.clone().requires_grad_() for x in logits)
    losses.noise_order_loss(teacher, student, scale, K).backward()
    assert teacher.grad is None and student.grad is None
    assert scale.grad is not None and bool(scale.grad.abs().sum() > 0)


def test_noise_order_loss_without_any_pair_is_zero() -> None:
    same = torch.tensor([[3.0, 1.0, 0.0]])
    assert float(losses.noise_order_loss(same, same, torch.ones(1, 3), 1)) == 0.0


def test_router_agreement_is_the_shared_part_of_both_top_k_sets(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    teacher, student, _ = logits
    expected = [len(top_k(t, K) & top_k(s, K)) / K for t, s in zip(teacher.tolist(), student.tolist(), strict=True)]
    assert losses.router_agreement(teacher, student, K).tolist() == expected


def cross_entropy(row: list[float], label: int, smoothing: float) -> float:
    """Of one sample against its label, spread over all classes by `smoothing`."""
    log = [math.log(p) for p in softmax(row)]
    return -(1.0 - smoothing) * log[label] - smoothing * sum(log) / len(log)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_row_losses_are_each_samples_cross_entropy_and_their_mean_is_the_task_loss(
    logits: tuple[Tensor, Tensor, Tensor], smoothing: float
) -> None:
    labels, recipe = torch.arange(B) % N, LossRecipe(label_smoothing=smoothing)
    expected = [cross_entropy(row, y, smoothing) for row, y in zip(logits[0].tolist(), labels.tolist(), strict=True)]
    found = losses.row_losses(logits[0], labels, recipe)
    assert found.tolist() == pytest.approx(expected)
    assert float(losses.task_loss(logits[0], labels, recipe)) == pytest.approx(sum(expected) / B)


def test_row_losses_of_maps_are_means_over_the_pixels_that_count() -> None:
    generator = torch.Generator().manual_seed(4)
    maps = torch.randn(3, N, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[[0, 1], [2, IGNORED]], [[IGNORED, IGNORED], [5, 3]], [[IGNORED] * 2] * 2])
    expected = []
    for b in range(3):
        each = [
            cross_entropy(maps[b, :, i, j].tolist(), int(labels[b, i, j]), 0.0)
            for i, j in itertools.product(range(2), repeat=2)
            if labels[b, i, j] != IGNORED
        ]
        expected.append(sum(each) / max(len(each), 1))
    assert losses.row_losses(maps, labels, LossRecipe()).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_the_kl_divergence_from_the_complete_to_the_incomplete_pass(
    logits: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    teacher, student = logits[0].clone().requires_grad_(), logits[1].clone().requires_grad_()
    expected = 0.0
    for t_row, s_row in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = (softmax([v / temperature for v in row]) for row in (t_row, s_row))
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / B * temperature**2
    found = losses.distillation_loss(teacher, student, torch.arange(B), temperature=temperature)
    assert float(found.detach()) == pytest.approx(expected)
    found.backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None and student.grad is not None and bool(student.grad.abs().sum() > 0)


def test_distillation_does_not_count_ignored_pixels() -> None:
    teacher, student = torch.randn(2, 1, N, 2, 2, generator=torch.Generator().manual_seed(5))
    labels = torch.tensor([[[0, IGNORED], [1, IGNORED]]])
    rows = [x[:, :, :, 0].permute(0, 2, 1).reshape(2, N) for x in (teacher, student)]
    expected = losses.distillation_loss(rows[0], rows[1], torch.tensor([0, 1]), temperature=2.0)
    found = losses.distillation_loss(teacher, student, labels, temperature=2.0)
    assert float(found) == pytest.approx(float(expected))


def test_ranking_loss_counts_only_rows_where_more_modalities_do_worse() -> None:
    more, fewer = torch.tensor([1.0, 0.5, 3.0]), torch.tensor([2.0, 0.4, 1.0])
    assert float(losses.ranking_loss(more, fewer)) == pytest.approx((0.0 + 0.1 + 2.0) / 3)


def test_divergence_from_the_standard_normal_is_that_of_torch_distributions() -> None:
    mean, log_variance = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(6))
    given = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    each = torch.distributions.kl_divergence(given, torch.distributions.Normal(0.0, 1.0))
    expected = float(each.flatten(1).sum(dim=1).mean())
    assert float(losses.standard_normal_divergence(mean, log_variance)) == pytest.approx(expected, rel=1e-5)


def test_balance_without_noise_uses_clean_gates_and_a_load_of_constant_scale(
    logits: tuple[Tensor, Tensor, Tensor],
) -> None:
    clean = logits[0].requires_grad_()
    rows = clean.tolist()
    importance = [sum(row[j] for row in top_k_gates(clean, K).tolist()) for j in range(N)]
    load = loop_load(rows, [[1.0 / N] * N] * B, rows, K)
    found = losses.balance_loss(clean_routing(clean, K), K)
    assert float(found.detach()) == pytest.approx(variation(importance) + variation(load))
    found.backward()  # type: ignore[no-untyped-call]
    assert clean.grad is not None and bool(clean.grad.abs().sum() > 0)
