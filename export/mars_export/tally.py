"""How an engine's answers compare with the model's, one by one, reduced to counts as they come.

Axes: K experts that run, H height, W width. A place is what gets a label of its own: a sample, or one pixel of a
sample in a segmentation. No label map is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import ParityError
from mars_export.reference import Reference, Scale

# Steps are compared after float32 arithmetic: 2 steps may read 2.0001.
SLACK = 1e-2
_BINS_PER_STEP = 64
_BINS = 16 * _BINS_PER_STEP


class Answer(Protocol):
    """What an engine says of one sample, as `mars_runtime.engines.protocol.Inference` holds it."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """(classes,), or (classes, H, W)."""

    @property
    def experts(self) -> tuple[tuple[int, float], ...]:
        """(index, gate) of the K that ran."""

    @property
    def features(self) -> Mapping[str, NDArray[np.float32]]:
        """By present modality."""


@dataclass(frozen=True, kw_only=True)
class RowParity:
    """One answer beside the model's.

    Attributes:
        steps: largest difference over the classes, per place (places,), in output steps; NaN stays NaN.
        equal_labels: number of places with equal labels.
        flipped: another set of experts ran.
        margin_steps: by how much the K-th largest router logit exceeds the weakest expert the engine chose.
    """

    steps: NDArray[np.float32]
    equal_labels: int
    flipped: bool
    margin_steps: float


@dataclass(frozen=True, kw_only=True)
class SubsetParity:
    """How one subset compares over all samples that have it.

    Attributes:
        samples: how many have it.
        places: how many labels they have.
        label_agreement: share of places with equal labels, 0..1.
        max_steps: largest logit difference in output steps, samples with a routing flip left out.
        over_one_step: share of the places of those samples that are further off than one step.
        p99_steps: 99 of 100 of those places are off by at most this, rounded up to 1/64 step.
        routing_flips: share of samples for which another set of experts ran.
        max_steps_flipped: largest difference among the flipped samples; 0 without flips.
        max_flip_margin_steps: largest margin, in router steps, by which the reference preferred its experts.
    """

    samples: int
    places: int
    label_agreement: float
    max_steps: float
    over_one_step: float
    p99_steps: float
    routing_flips: float
    max_steps_flipped: float
    max_flip_margin_steps: float


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The place where an artifact is furthest from its model.

    Attributes:
        row: of the split that the samples were taken from.
        sample: digest of its inputs, `parity.sample_ids`, by which it is found in any copy of the data.
        pixel: (y, x) in a segmentation, else empty.
        artifact: the logits there, one per class.
        model: what the model gives there.
        flipped: other experts ran; a place without is preferred.
    """

    subset: str
    row: int
    sample: str
    steps: float
    pixel: tuple[int, ...]
    artifact: tuple[float, ...]
    model: tuple[float, ...]
    flipped: bool

    def badness(self) -> tuple[bool, float]:
        """See the function `badness`."""
        return _badness(self.flipped, self.steps)


def compare(given: Answer, wanted: Reference, row: int, scale: Scale) -> RowParity:
    """The engine's answer beside row `row` of the reference.

    Raises:
        ParityError: there is nothing to compare, the experts are not K different ones of N, or a feature is not finite.
    """
    model, router_logits, chosen = wanted.logits[row], wanted.router_logits[row], wanted.experts[row]
    if given.logits.size == 0 or given.logits.shape != model.shape:
        raise ParityError(f"cannot compare logits of shapes {given.logits.shape} and {model.shape}")
    experts = _experts(given, k=len(chosen), n=len(router_logits))
    for name, feature in given.features.items():
        if not np.isfinite(feature).all():
            raise ParityError(f"the feature of {name} holds NaN or infinity")
    margin = np.sort(router_logits)[-len(chosen)] - router_logits[experts].min()
    return RowParity(
        steps=(np.abs(given.logits - model).max(axis=0) / np.float32(scale.logit_step)).reshape(-1),
        equal_labels=int(np.sum(given.logits.argmax(axis=0) == model.argmax(axis=0))),
        flipped=set(experts) != set(chosen.tolist()),
        margin_steps=float(margin) / scale.router_step,
    )


def _experts(given: Answer, *, k: int, n: int) -> list[int]:
    experts = [index for index, _ in given.experts]
    if len(set(experts)) != k or len(experts) != k or not set(experts) <= set(range(n)):
        raise ParityError(f"the experts {experts} ran, expected {k} different ones of 0 to {n - 1}")
    return experts


def badness(row: RowParity) -> tuple[bool, float]:
    """Greater is worse: a NaN than any number, and anything without a routing flip than with one."""
    return _badness(row.flipped, float(row.steps.max()))


def _badness(flipped: bool, steps: float) -> tuple[bool, float]:
    return not flipped, math.inf if math.isnan(steps) else steps


def worst_place(
    subset: str, row: int, sample: str, given: Answer, wanted: NDArray[np.float32], found: RowParity
) -> Worst:
    """The place of one answer that is furthest off."""
    # numpy's argmax finds a NaN first.
    at = int(found.steps.argmax())
    classes, *size = wanted.shape
    return Worst(
        subset=subset,
        row=row,
        sample=sample,
        steps=float(found.steps[at]),
        pixel=tuple(int(i) for i in np.unravel_index(at, size)) if size else (),
        artifact=tuple(map(float, given.logits.reshape(classes, -1)[:, at])),
        model=tuple(map(float, wanted.reshape(classes, -1)[:, at])),
        flipped=found.flipped,
    )


@dataclass(kw_only=True)
class Tally:
    """The rows of one subset so far, as counts."""

    samples: int = 0
    places: int = 0
    equal_labels: int = 0
    flips: int = 0
    kept_places: int = 0
    over_one_step: int = 0
    max_steps: float = 0.0
    max_steps_flipped: float = 0.0
    max_margin: float = 0.0
    # How many places of samples without a flip are off by up to i/64 step; the last bin has all beyond 16 steps.
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS + 1, np.int64))

    def add(self, row: RowParity) -> None:
        """Counts one more row."""
        self.samples += 1
        self.places += row.steps.size
        self.equal_labels += row.equal_labels
        if row.flipped:
            self.flips += 1
            self.max_steps_flipped = _larger(self.max_steps_flipped, row.steps.max())
            self.max_margin = _larger(self.max_margin, row.margin_steps)
            return
        self.kept_places += row.steps.size
        self.over_one_step += int(np.sum(~(row.steps <= 1.0 + SLACK)))
        self.max_steps = _larger(self.max_steps, row.steps.max())
        bins = np.ceil((np.nan_to_num(row.steps, nan=np.inf) - SLACK) * _BINS_PER_STEP).clip(0, _BINS).astype(np.int64)
        self.histogram += np.bincount(bins, minlength=_BINS + 1)

    def report(self) -> SubsetParity:
        """What the rows show together.

        Raises:
            ParityError: there was no row.
        """
        if not self.samples:
            raise ParityError("parity compared nothing: an empty check proves nothing")
        return SubsetParity(
            samples=self.samples,
            places=self.places,
            label_agreement=self.equal_labels / self.places,
            max_steps=self.max_steps,
            over_one_step=self.over_one_step / max(self.kept_places, 1),
            p99_steps=self._p99(),
            routing_flips=self.flips / self.samples,
            max_steps_flipped=self.max_steps_flipped,
            max_flip_margin_steps=self.max_margin,
        )

    def _p99(self) -> float:
        if not self.kept_places:
            return 0.0
        up_to = int(np.searchsorted(self.histogram.cumsum(), 0.99 * self.kept_places))
        return self.max_steps if up_to == _BINS else up_to / _BINS_PER_STEP


def _larger(a: float, b: float | np.floating) -> float:
    # numpy's maximum keeps a NaN; Python's max(0.0, nan) is 0.0.
    return float(np.maximum(a, b))
