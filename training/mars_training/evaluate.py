"""Evaluation through the deployed path, for every subset of modalities.

The privileged router cannot be reached from here: a `Deployable` has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mars_edge import metrics, subsets
from mars_training.data.split import Source, Split
from mars_training.model.deployable import Deployable


@dataclass(frozen=True, kw_only=True)
class SubsetScore:
    """How a model does when exactly these modalities are present.

    Attributes:
        subset: canonical label, e.g. "rgb+ir".
        metric: "acer" (lower is better) or "accuracy" (higher is better).
        value: the metric in 0..1, with its 95 % interval `low` to `high`.
        n: samples.
        detail: for ACER: bpcer, apcer_pooled, apcer_worst and worst_species; else empty.
    """

    subset: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    detail: dict[str, Any]

    @property
    def error(self) -> float:
        """The value as an error rate: lower is better for every metric."""
        return self.value if self.metric == "acer" else 1.0 - self.value


def logits_by_subset(
    model: Deployable, split: Split, wanted: Sequence[subsets.Subset], *, batch_size: int = 128
) -> dict[subsets.Subset, Tensor]:
    """Class logits (n, classes), float32, under each subset; every sample is encoded once."""
    model.eval()
    rows: dict[subsets.Subset, list[Tensor]] = {subset: [] for subset in wanted}
    with torch.no_grad():
        for indices in torch.split(torch.arange(len(split)), batch_size):
            features = model.encode_all(split.batch(indices))
            for subset in wanted:
                present = torch.from_numpy(subsets.mask(subset, model.modalities)).expand(len(indices), -1)
                rows[subset].append(model.classify(features, present).float())
    return {subset: torch.cat(parts) for subset, parts in rows.items()}


def predict_logits(model: Deployable, split: Split, subset: Sequence[str], *, batch_size: int = 128) -> Tensor:
    """Class logits (n, classes), float32, with only `subset` present."""
    chosen = tuple(subset)
    return logits_by_subset(model, split, [chosen], batch_size=batch_size)[chosen]


def score_logits(logits: NDArray[np.floating], split: Split, source: Source, subset: str) -> SubsetScore:
    """The task's metric of class logits (n, classes), decided at the largest logit."""
    if source.positive_label is None:
        hits = metrics.accuracy(logits.argmax(axis=1).astype(np.int64), split.class_labels.numpy())
        return SubsetScore(
            subset=subset, metric="accuracy", value=hits.value, low=hits.low, high=hits.high, n=hits.n, detail={}
        )
    positive = source.labels.index(source.positive_label)
    live = split.class_labels.numpy() == positive
    # Two classes: the largest logit is the positive one exactly when this difference is above zero.
    margin = logits[:, positive] - np.delete(logits, positive, axis=1).max(axis=1)
    errors = metrics.spoof_errors(margin, live, split.group_labels, float(np.nextafter(0.0, 1.0)))
    return spoof_score(errors, subset, len(split))


def spoof_score(errors: metrics.SpoofErrors, subset: str, n: int) -> SubsetScore:
    """The score of one subset from its live/spoof error rates over `n` samples."""
    worst = errors.worst_species
    return SubsetScore(
        subset=subset,
        metric="acer",
        value=errors.acer,
        low=errors.acer_low,
        high=errors.acer_high,
        n=n,
        detail={
            "bpcer": asdict(errors.bpcer),
            "apcer_pooled": asdict(errors.apcer_pooled),
            "apcer_worst": asdict(errors.apcer[worst]),
            "worst_species": worst,
            "apcer": {name: rate.value for name, rate in errors.apcer.items()},
        },
    )


def score_subsets(model: Deployable, split: Split, source: Source) -> list[SubsetScore]:
    """One score per non-empty subset, small subsets first."""
    logits = logits_by_subset(model, split, subsets.all_subsets(source.names))
    return [score_logits(rows.numpy(), split, source, subsets.label(s, source.names)) for s, rows in logits.items()]


def mean_error(scores: Sequence[SubsetScore]) -> float:
    """The mean error rate over subsets: what checkpoints are selected by, on validation."""
    return sum(score.error for score in scores) / len(scores)


def score_table(scores: Sequence[SubsetScore]) -> str:
    """A table for people: one line per subset, percent with the 95 % interval, then the mean."""
    live = scores[0].metric == "acer"
    width = max(len(s.subset) for s in scores)
    lines = [f"{'subset':<{width}}  {scores[0].metric + ' %':>10}  {'95 % interval':>15}  {'n':>6}"]
    lines[0] += "  BPCER %  worst APCER %" if live else ""
    for s in scores:
        line = f"{s.subset:<{width}}  {100 * s.value:10.2f}  {100 * s.low:6.2f} - {100 * s.high:6.2f}  {s.n:6d}"
        if live:
            worst = s.detail["apcer_worst"]["value"]
            line += f"  {100 * s.detail['bpcer']['value']:7.2f}  {100 * worst:6.2f} ({s.detail['worst_species']})"
        lines.append(line)
    mean = sum(s.value for s in scores) / len(scores)
    return "\n".join([*lines, f"{'mean':<{width}}  {100 * mean:10.2f}"])
