"""Experts made one: which of them are alike, and the mean of their weights.

Axes: N experts; O outputs and I inputs of a convolution, k its kernel's places.
Design decision: experts are averaged as what they compute, not as what they store. Each batch norm is folded into its
convolution first (the same function has many splits between the two), and inner channels are put into the order that
fits best (independently trained experts number theirs at random). The mean is written back with a batch norm that
passes it on unchanged and expects the moments that the folded ones gave, so that training goes on from there.
Source: matching of channels by weights, arXiv 2209.04836, section 3.2; cost of a merge, Ward 1963, Journal of the
American Statistical Association 58(301), 236-244.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_training.model.blocks import Residual

_MOST_SWEEPS = 20
Array = NDArray[np.float64]
Group = tuple[int, ...]
"""Experts that become one, the most used one first."""


@dataclass(frozen=True)
class _Layer:
    """A convolution with its batch norm folded, in float64.

    Attributes:
        weight: (O, I, k).
        bias: (O,).
        mean, variance: (O,) of the output over the training samples, as the batch norm scaled it; None without one.
    """

    weight: Array
    bias: Array
    mean: Array | None
    variance: Array | None

    def ordered(self, outputs: NDArray[np.intp], inputs: NDArray[np.intp]) -> _Layer:
        """With output channel i the one that was `outputs[i]`, and inputs likewise."""
        mean, variance = (None if moment is None else moment[outputs] for moment in (self.mean, self.variance))
        return _Layer(self.weight[outputs][:, inputs], self.bias[outputs], mean, variance)


Chain = list[_Layer]
"""Layers of which each but the last is read by the next alone: its channels may stand in any order."""
_Pair = tuple[nn.Conv2d, nn.BatchNorm2d | None]


def merged(experts: Sequence[nn.Module], shares: Sequence[float]) -> nn.Module:
    """One expert that computes with the mean of the experts' weights, each counting as its share of the usage.

    Channels take the first one's order. Shares that are all zero count alike.

    Raises:
        UsageError: an expert has a layer other than convolutions, batch norms behind one, ReLU and residual blocks.
    """
    total, mixed = shares[0], _folded(experts[0])
    for expert, share in zip(experts[1:], shares[1:], strict=True):
        mixed = _mean(mixed, _matched(mixed, _folded(expert)), _weight_of(total, share))
        total += share
    target = copy.deepcopy(experts[0])
    for pairs, chain in zip(_chains(target), mixed, strict=True):
        for (convolution, norm), layer in zip(pairs, chain, strict=True):
            _write(convolution, norm, layer)
    return target


def alike(experts: Sequence[nn.Module], shares: Sequence[float], *, to: int) -> list[Group]:
    """`to` groups of all experts, by merging again and again the two whose merge moves the used weights least.

    A merge of two costs d a b / (a + b): their shares a and b, and d the squared distance of their weights once
    matched, relative to the weights. An expert that nothing uses merges for nothing.
    """
    found: list[tuple[Group, float, list[Chain]]] = [
        ((i,), shares[i], _folded(expert)) for i, expert in enumerate(experts)
    ]
    costs: dict[tuple[Group, Group], float] = {}
    while len(found) > to:
        for (a, of_a, first), (b, of_b, other) in itertools.combinations(found, 2):
            if (a, b) not in costs:
                costs[a, b] = _distance(first, _matched(first, other)) * (of_a * of_b / (of_a + of_b or 1.0))
        i, j = min(itertools.combinations(range(len(found)), 2), key=lambda ij: costs[found[ij[0]][0], found[ij[1]][0]])
        (a, of_a, first), (b, of_b, other) = sorted((found[i], found[j]), key=lambda entry: -entry[1])
        joined = _mean(first, _matched(first, other), _weight_of(of_a, of_b))
        found = [entry for k, entry in enumerate(found) if k not in (i, j)] + [((*a, *b), of_a + of_b, joined)]
    groups = [tuple(sorted(members, key=lambda expert: -shares[expert])) for members, _, _ in found]
    return sorted(groups, key=min)


def _weight_of(first: float, other: float) -> float:
    """How much the second of two counts in their mean."""
    return other / (first + other) if first + other > 0 else 0.5


def _chains(module: nn.Module) -> list[list[_Pair]]:
    """The convolutions of an expert, each with its batch norm, cut where an output has another reader."""
    chains: list[list[_Pair]] = [[]]
    before: nn.Module | None = None
    for part in _flat(module):
        if isinstance(part, nn.Conv2d):
            chains[-1].append((part, None))
        elif isinstance(part, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            chains[-1][-1] = (before, part)
        elif isinstance(part, Residual):
            chains += [*_chains(part.body), *_chains(part.shortcut), []]
        elif not isinstance(part, nn.ReLU | nn.Identity):
            raise UsageError(f"experts with a {type(part).__name__} cannot be merged; they can be dropped")
        before = part
    return [chain for chain in chains if chain]


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if not isinstance(module, nn.Sequential):
        yield module
        return
    for child in module:
        yield from _flat(child)


def _folded(expert: nn.Module) -> list[Chain]:
    return [[_fold(convolution, norm) for convolution, norm in pairs] for pairs in _chains(expert)]


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> _Layer:
    if convolution.groups != 1:
        raise UsageError(f"experts with convolutions in {convolution.groups} groups cannot be merged; drop them")
    weight = _array(convolution.weight).reshape(*convolution.weight.shape[:2], -1)
    bias = np.zeros(len(weight)) if convolution.bias is None else _array(convolution.bias)
    if norm is None:
        return _Layer(weight, bias, None, None)
    assert norm.running_mean is not None and norm.running_var is not None
    gain, offset = _array(norm.weight), _array(norm.bias)
    scale = gain / np.sqrt(_array(norm.running_var) + norm.eps)
    return _Layer(
        weight * scale[:, None, None], (bias - _array(norm.running_mean)) * scale + offset, offset, np.square(gain)
    )


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.detach().cpu().double().contiguous().numpy()
    return found


@torch.no_grad()
def _write(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, layer: _Layer) -> None:
    convolution.weight.copy_(torch.from_numpy(layer.weight).view_as(convolution.weight))
    if norm is None:
        assert convolution.bias is not None or not layer.bias.any()
        if convolution.bias is not None:
            convolution.bias.copy_(torch.from_numpy(layer.bias))
        return
    assert layer.mean is not None and layer.variance is not None
    assert norm.running_mean is not None and norm.running_var is not None
    if convolution.bias is not None:
        convolution.bias.zero_()
    # The batch norm's scale is 1 as long as it keeps these moments.
    variance = np.maximum(layer.variance, norm.eps)
    norm.weight.copy_(torch.from_numpy(np.sqrt(variance)))
    norm.bias.copy_(torch.from_numpy(layer.mean))
    norm.running_var.copy_(torch.from_numpy(variance - norm.eps))
    norm.running_mean.copy_(torch.from_numpy(layer.mean - layer.bias))


def _matched(first: list[Chain], other: list[Chain]) -> list[Chain]:
    """`other` with its inner channels in the order in which they are most like those of `first`."""
    return [_matched_chain(a, b) for a, b in zip(first, other, strict=True)]


def _matched_chain(first: Chain, other: Chain) -> Chain:
    """One channel order after the other is the best given those around it, until none changes."""
    # orders[i] is that of layer i's inputs; the first and the last are not the chain's to choose.
    orders = [np.arange(layer.weight.shape[1]) for layer in other] + [np.arange(len(other[-1].bias))]
    for _ in range(_MOST_SWEEPS):
        before = list(orders)
        for i in range(1, len(other)):
            gains = _likeness(first[i - 1 : i + 1], other[i - 1 : i + 1], orders[i - 1], orders[i + 1])
            orders[i] = linear_sum_assignment(gains, maximize=True)[1]
        if all(np.array_equal(a, b) for a, b in zip(before, orders, strict=True)):
            break
    return [layer.ordered(orders[i + 1], orders[i]) for i, layer in enumerate(other)]


def _likeness(first: Chain, other: Chain, inputs: NDArray[np.intp], outputs: NDArray[np.intp]) -> Array:
    """Dot products (C, C) of all weights into and out of the channels between two layers, of `first` with `other`."""
    into, out_of = first[0], first[1].weight
    given = into.weight.reshape(len(into.bias), -1) @ other[0].weight[:, inputs].reshape(len(into.bias), -1).T
    reading = out_of.swapaxes(0, 1).reshape(out_of.shape[1], -1)
    taken: Array = reading @ other[1].weight[outputs].swapaxes(0, 1).reshape(out_of.shape[1], -1).T
    return given + np.outer(into.bias, other[0].bias) + taken


def _mean(first: list[Chain], other: list[Chain], weight: float) -> list[Chain]:
    """(1 - weight) first + weight other, layer by layer."""

    def mix(a: Array | None, b: Array | None) -> Array | None:
        return None if a is None or b is None else (1.0 - weight) * a + weight * b

    return [
        [
            _Layer(
                (1.0 - weight) * a.weight + weight * b.weight,
                (1.0 - weight) * a.bias + weight * b.bias,
                mix(a.mean, b.mean),
                mix(a.variance, b.variance),
            )
            for a, b in zip(chain, opposite, strict=True)
        ]
        for chain, opposite in zip(first, other, strict=True)
    ]


def _distance(first: list[Chain], other: list[Chain]) -> float:
    """The mean over layers of |a - b|^2 / (|a|^2 + |b|^2): 0 for equal weights, 1 for unrelated, 2 for opposite."""
    layers = [
        (a, b) for chain, opposite in zip(first, other, strict=True) for a, b in zip(chain, opposite, strict=True)
    ]
    return float(np.mean([_layer_distance(_numbers(a), _numbers(b)) for a, b in layers]))


def _numbers(layer: _Layer) -> Array:
    return np.concatenate([layer.weight.ravel(), layer.bias])


def _layer_distance(a: Array, b: Array) -> float:
    size = float(a @ a + b @ b)
    return float(np.square(a - b).sum()) / size if size else 0.0
