"""The task's cross-entropy and the losses of MARS beside it, which are pure functions of router outputs.

Axes: B batch, N experts, K active experts. All inputs float32. Where several processes share a batch, a loss is that of
the whole batch, but for means over a fixed number of rows, which the loop averages.
Source: arXiv 2606.30355 ("Residual-guided expert specialization"); load: arXiv 1701.06538, appendix A.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mars_training.data.split import IGNORED
from mars_training.distributed import all_sum, mean_over
from mars_training.model.routers import NoisyRouting
from mars_training.recipe import LossRecipe

_MEAN_SQUARED_FLOOR = 1e-10
_VARIANCE_FLOOR = 1e-8


def task_loss(logits: Tensor, labels: Tensor, recipe: LossRecipe) -> Tensor:
    """Mean cross-entropy of logits (B, classes) against labels (B,), or per pixel: (B, classes, H, W), (B, H, W).

    Pixels labelled `IGNORED` do not count; 0 where nothing does.
    """
    total = functional.cross_entropy(
        logits, labels, ignore_index=IGNORED, label_smoothing=recipe.label_smoothing, reduction="sum"
    )
    return mean_over(total, (labels != IGNORED).sum())


def squared_variation(x: Tensor) -> Tensor:
    """CV^2: the unbiased variance of `x` (N,) over its squared mean plus 1e-10; 0 when all are equal."""
    return x.var() / (x.mean().square() + _MEAN_SQUARED_FLOOR)


def smooth_load(clean: Tensor, scale: Tensor, noisy: Tensor, k: int) -> Tensor:
    """Load (N,): per expert, the summed probability over samples that fresh noise puts it in the top K.

    For expert i the bar is the K-th largest noisy logit of the other experts; inputs (B, N), 1 <= k < N.
    """
    top = noisy.topk(k + 1, dim=1).values
    kth, next_one = top[:, k - 1 : k], top[:, k : k + 1]
    # An expert inside the top K does not count itself: without it, the (K+1)-th becomes the K-th.
    bar = torch.where(noisy > next_one, next_one, kth)
    probability: Tensor = torch.special.ndtr((clean - bar) / scale)
    return probability.sum(dim=0)


def balance_loss(routing: NoisyRouting, k: int) -> Tensor:
    """CV^2(importance) + CV^2(load) of a router's gates, noisy or clean; 0 when experts are used equally."""
    load = smooth_load(routing.clean, routing.scale, routing.noisy, k)
    return squared_variation(all_sum(routing.gates.sum(dim=0))) + squared_variation(all_sum(load))


def imitation_loss(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over all N, summed over experts, mean over the batch.

    No gradient reaches the teacher. Logits (B, N) are divided by `temperature` (1 in the paper) and the loss
    is scaled by its square, so that gradients keep their size (arXiv 1503.02531, section 2).
    """
    target = (teacher.detach() / temperature).log_softmax(dim=1)
    answer = (student / temperature).log_softmax(dim=1)
    total = functional.kl_div(answer, target, reduction="sum", log_target=True)
    return mean_over(total, torch.tensor(len(student), device=student.device)) * temperature**2


def top_k_mask(logits: Tensor, k: int) -> Tensor:
    """Boolean (B, N), true at each row's K largest logits."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(k, dim=1).indices, True)


def noise_order_loss(teacher: Tensor, student: Tensor, scale: Tensor, k: int) -> Tensor:
    """Small when experts on which the routers disagree more get more noise; ln 2 when noise ignores disagreement.

    Over the union of both clean top-K sets, sorted by |softmax(teacher) - softmax(student)| (detached, largest
    first): the mean over adjacent pairs of softplus(log scale^2 of the later - log scale^2 of the earlier).
    0 if no sample has a pair. Inputs (B, N).
    """
    union = top_k_mask(teacher, k) | top_k_mask(student, k)
    disagreement = (teacher.softmax(dim=1) - student.softmax(dim=1)).abs().detach()
    order = disagreement.masked_fill(~union, -1.0).argsort(dim=1, descending=True, stable=True)
    log_variance = scale.square().clamp_min(_VARIANCE_FLOOR).log().gather(1, order)
    is_pair = union.gather(1, order)[:, 1:]
    violation = functional.softplus(log_variance[:, 1:] - log_variance[:, :-1])
    return mean_over((violation * is_pair).sum(), is_pair.sum())


def router_agreement(teacher: Tensor, student: Tensor, k: int) -> Tensor:
    """Per sample, the share of the K experts that both clean top-K sets name: (B,), 0 to 1."""
    return (top_k_mask(teacher, k) & top_k_mask(student, k)).sum(dim=1) / k


def distillation_loss(teacher: Tensor, student: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) * T^2 over classes (dim 1), mean over samples or pixels.

    No gradient reaches the teacher; pixels labelled `IGNORED` do not count. Source: arXiv 1503.02531, section 2.
    """
    target = (teacher.detach() / temperature).log_softmax(dim=1)
    answer = (student / temperature).log_softmax(dim=1)
    divergence = functional.kl_div(answer, target, reduction="none", log_target=True).sum(dim=1)
    counts = labels != IGNORED
    return mean_over((divergence * counts).sum(), counts.sum()) * temperature**2


def row_losses(logits: Tensor, labels: Tensor, recipe: LossRecipe) -> Tensor:
    """The cross-entropy of each row (B,), over its pixels the mean of those that are not `IGNORED`."""
    each = functional.cross_entropy(
        logits, labels, ignore_index=IGNORED, label_smoothing=recipe.label_smoothing, reduction="none"
    )
    counts = (labels != IGNORED).flatten(1).sum(dim=1) if labels.dim() > 1 else torch.ones_like(labels)
    return each.flatten(1).sum(dim=1) / counts.clamp_min(1) if labels.dim() > 1 else each


def ranking_loss(more: Tensor, fewer: Tensor) -> Tensor:
    """mean(max(0, more - fewer)) of row losses (B,): zero where more modalities do not do worse than fewer.

    Source: arXiv 2507.19264, "More vs. Fewer" loss.
    """
    return (more - fewer).clamp_min(0.0).mean()


def standard_normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of maps (B, C, H, W), summed over a row's entries, mean over the batch."""
    each = 0.5 * (log_variance.exp() + mean.square() - log_variance - 1.0)
    return each.flatten(1).sum(dim=1).mean()
