"""Evaluation through the deployed path, for every subset of modalities.

The privileged router cannot be reached from here: a `Deployable` has none. A row counts in a subset only if it
has every modality of it. Class logits of whole images are reduced batch by batch: label maps of a test set do
not fit in memory.

Axes: n samples, B batch, M modalities in fusion order, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mars_edge import metrics, subsets
from mars_edge.errors import UsageError
from mars_edge.metrics import Reliability
from mars_training.data.split import IGNORED, Source, Split
from mars_training.model.deployable import Deployable

LOWER_IS_BETTER = ("acer",)
_MOST_BATCH = 128
_MOST_BATCH_VALUES = 2**24
_TABLE_COLUMNS = 100
# So wide a name of a subset is shown; live/spoof tables have two columns more.
_SUBSET_COLUMNS, _SPOOF_SUBSET_COLUMNS = 44, 24


@dataclass(frozen=True, kw_only=True)
class SubsetScore:
    """How a model does when exactly these modalities are present.

    Attributes:
        subset: canonical label, e.g. "rgb+ir".
        metric: "acer" (lower is better), or "accuracy" or "miou" (higher is better).
        value: the metric in 0..1, with its 95 % interval `low` to `high`.
        n: samples.
        detail: for ACER: bpcer, apcer_pooled, apcer_worst and worst_species; for mIoU: iou by class, None for one
            that does not occur; else empty.
        ece: expected calibration error in 0..1 over `metrics.CALIBRATION_BINS` bins of equal width; None in a run
            that was trained before it was measured.
        nll: mean negative log-likelihood of the right class, in nats; None as for `ece`.
    """

    subset: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    detail: dict[str, Any]
    ece: float | None = None
    nll: float | None = None

    @property
    def error(self) -> float:
        """The value as an error rate: lower is better for every metric."""
        return self.value if self.metric in LOWER_IS_BETTER else 1.0 - self.value


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, and what could not be.

    Attributes:
        scores: one per subset that has rows to measure on, small subsets first.
        unmeasured: why there is no score, by the label of each other subset; they enter no mean.
    """

    scores: list[SubsetScore]
    unmeasured: dict[str, str]


@dataclass(frozen=True)
class SubsetLogits:
    """The logits (B, classes, ...) of the rows `indices` (B,) of a split with only `subset` present."""

    subset: subsets.Subset
    indices: Tensor
    logits: Tensor


def rows_with(split: Split, subset: Sequence[str]) -> Tensor:
    """The indices, rising, of the rows that have every modality of `subset`."""
    needed = torch.from_numpy(subsets.mask(subset, list(split.inputs)))
    return torch.nonzero(split.presence[:, needed].all(dim=1)).flatten()


def batch_size_for(split: Split) -> int:
    """How many rows to evaluate at once: at most 128, and few of large images."""
    row = split.batch(torch.tensor([0]))
    return max(1, min(_MOST_BATCH, _MOST_BATCH_VALUES // sum(x.numel() for x in row.values())))


def device_of(model: Deployable) -> torch.device:
    """Where the model's parameters are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _answers(
    model: Deployable, split: Split, wanted: Sequence[subsets.Subset], batch_size: int | None
) -> Iterator[SubsetLogits]:
    """Float32 logits on the model's device, batch by batch and subset by subset; every sample is encoded once."""
    model.eval()
    device, presence = device_of(model), split.presence
    needs = {subset: torch.from_numpy(subsets.mask(subset, model.modalities)) for subset in wanted}
    for indices in torch.split(torch.arange(len(split)), batch_size or batch_size_for(split)):
        with torch.no_grad():
            features = model.encode_all({name: x.to(device) for name, x in split.batch(indices).items()})
        for subset, needed in needs.items():
            rows = torch.nonzero(presence[indices][:, needed].all(dim=1)).flatten()
            if not len(rows):
                continue
            present, own = needed.to(device).expand(len(rows), -1), rows.to(device)
            with torch.no_grad():
                kept = features if len(rows) == len(indices) else [f[own] for f in features]
                logits = model.classify(kept, present).float()
            yield SubsetLogits(subset, indices[rows], logits)


def logits_by_subset(
    model: Deployable, split: Split, wanted: Sequence[subsets.Subset], *, batch_size: int | None = None
) -> dict[subsets.Subset, Tensor]:
    """Class logits (rows, classes), float32 on the CPU, of the rows that have each subset (`rows_with`)."""
    parts: dict[subsets.Subset, list[Tensor]] = {subset: [] for subset in wanted}
    for answers in _answers(model, split, wanted, batch_size):
        parts[answers.subset].append(answers.logits.cpu())
    return {subset: torch.cat(found) if found else torch.empty(0, 0) for subset, found in parts.items()}


def predict_logits(model: Deployable, split: Split, subset: Sequence[str], *, batch_size: int | None = None) -> Tensor:
    """Class logits (rows, classes), float32, with only `subset` present, of the rows that have it."""
    chosen = tuple(subset)
    return logits_by_subset(model, split, [chosen], batch_size=batch_size)[chosen]


@dataclass(frozen=True)
class _Sureness:
    """How well probabilities fit what happened: bins of confidence, and the summed negative log-likelihood."""

    bins: Reliability
    nll_sum: float

    def __add__(self, other: _Sureness) -> _Sureness:
        return _Sureness(self.bins + other.bins, self.nll_sum + other.nll_sum)

    @property
    def nll(self) -> float:
        return self.nll_sum / float(self.bins.counts.sum())


def _sureness(logits: Tensor, labels: Tensor) -> _Sureness:
    """Of logits (B, classes, ...) and labels (B, ...) on one device; labels that are `IGNORED` are left out."""
    nll = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    confidence, chosen = logits.softmax(dim=1).max(dim=1)
    known = labels != IGNORED
    # Counted on the CPU: there a sum has one order, and double precision on every machine.
    hit = (chosen == labels)[known].cpu().numpy()
    bins = metrics.reliability(confidence[known].clamp(0.0, 1.0).cpu().numpy(), hit)
    return _Sureness(bins, float(nll[known].cpu().double().sum()))


def score_logits(logits: NDArray[np.floating], split: Split, source: Source, subset: str) -> SubsetScore:
    """The task's metric of class logits (n, classes) of every row of `split`, decided at the largest logit.

    Raises:
        UsageError: the split is empty, or a live/spoof split lacks one of its two classes.
    """
    found = _sureness(torch.from_numpy(logits).float(), split.class_labels)
    sure = {"ece": found.bins.error, "nll": found.nll}
    if source.positive_label is None:
        hits = metrics.accuracy(logits.argmax(axis=1).astype(np.int64), split.class_labels.numpy())
        return SubsetScore(
            subset=subset,
            metric="accuracy",
            value=hits.value,
            low=hits.low,
            high=hits.high,
            n=hits.n,
            detail={},
            **sure,
        )
    positive = source.labels.index(source.positive_label)
    live = split.class_labels.numpy() == positive
    # Two classes: the largest logit is the positive one exactly when this difference is above zero.
    margin = logits[:, positive] - np.delete(logits, positive, axis=1).max(axis=1)
    errors = metrics.spoof_errors(margin, live, split.group_labels, float(np.nextafter(0.0, 1.0)))
    return spoof_score(errors, subset, len(split), **sure)


def spoof_score(
    errors: metrics.SpoofErrors, subset: str, n: int, *, ece: float | None = None, nll: float | None = None
) -> SubsetScore:
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
        ece=ece,
        nll=nll,
    )


@dataclass
class _Maps:
    """What is kept of one subset's label maps: a confusion matrix per image, and the sureness of all pixels."""

    confusions: list[NDArray[np.int64]] = field(default_factory=list)
    sureness: _Sureness | None = None

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count the answers (B, classes, H, W) against the labels (B, H, W), both on one device."""
        # int16: a fourth of the bytes to copy, and room for any number of classes.
        chosen = logits.argmax(dim=1).to(torch.int16).cpu().numpy()
        expected = torch.where(labels == IGNORED, -1, labels).cpu().numpy()
        classes = logits.shape[1]
        self.confusions += [metrics.confusion_matrix(e, c, classes) for e, c in zip(expected, chosen, strict=True)]
        found = _sureness(logits, labels)
        self.sureness = found if self.sureness is None else self.sureness + found

    @property
    def gap(self) -> str:
        """Why there is nothing to measure; empty if there is something."""
        if not self.confusions:
            return "no row has it"
        return "" if any(c.any() for c in self.confusions) else "its rows have no labelled pixel"

    def score(self, subset: str, labels: Sequence[str]) -> SubsetScore:
        assert self.sureness is not None
        iou = metrics.mean_iou(np.stack(self.confusions))
        per_class = [None if math.isnan(value) else value for value in iou.per_class.tolist()]
        return SubsetScore(
            subset=subset,
            metric="miou",
            value=iou.value,
            low=iou.low,
            high=iou.high,
            n=iou.n,
            detail={"iou": dict(zip(labels, per_class, strict=True))},
            ece=self.sureness.bins.error,
            nll=self.sureness.nll,
        )


def evaluate(
    model: Deployable,
    split: Split,
    source: Source,
    *,
    always_present: Iterable[str] = (),
    wanted: Sequence[subsets.Subset] | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """One score per subset of the modalities with all that is `always_present`, or per subset `wanted`."""
    chosen = subsets.evaluated_subsets(source.names, always_present) if wanted is None else wanted
    return measure(_answers(model, split, chosen, batch_size), split, source, chosen)


RowScore = Callable[[NDArray[np.floating], Split, Source, str], SubsetScore]
"""From class logits (rows, classes) of every row of a split to the score of the subset called so."""


def measure(
    answers: Iterable[SubsetLogits],
    split: Split,
    source: Source,
    wanted: Sequence[subsets.Subset],
    *,
    score: RowScore = score_logits,
) -> Evaluation:
    """One score per `wanted` subset from whoever answers: a model, or an engine that runs an artifact.

    Rows must rise within a subset. `score` is for classification alone: label maps are reduced as they come.
    """
    if source.task == "segmentation":
        return _measure_maps(answers, split, source, wanted)
    parts: dict[subsets.Subset, list[SubsetLogits]] = {subset: [] for subset in wanted}
    for given in answers:
        parts[given.subset].append(given)
    gaps = {subset: _gap(split.class_labels[rows_with(split, subset)], source) for subset in wanted}
    scores = []
    for subset, found in parts.items():
        if not gaps[subset]:
            rows = split.take(torch.cat([given.indices for given in found]))
            logits = torch.cat([given.logits.cpu() for given in found]).numpy()
            scores.append(score(logits, rows, source, subsets.label(subset, source.names)))
    return Evaluation(scores=scores, unmeasured=_labelled(gaps, source))


def _gap(labels: Tensor, source: Source) -> str:
    """Why the metric has no value on rows of these labels (rows,); empty if it has one."""
    if not len(labels):
        return "no row has it"
    if source.positive_label is None:
        return ""
    live = labels == source.labels.index(source.positive_label)
    return "" if bool(live.any()) and not bool(live.all()) else "its rows are all of one class"


def _measure_maps(
    answers: Iterable[SubsetLogits], split: Split, source: Source, wanted: Sequence[subsets.Subset]
) -> Evaluation:
    maps = {subset: _Maps() for subset in wanted}
    for given in answers:
        labels = split.labels[given.indices].long().to(given.logits.device)
        maps[given.subset].add(given.logits, labels)
    gaps = {subset: kept.gap for subset, kept in maps.items()}
    scores = [
        kept.score(subsets.label(subset, source.names), source.labels) for subset, kept in maps.items() if not kept.gap
    ]
    return Evaluation(scores=scores, unmeasured=_labelled(gaps, source))


def _labelled(gaps: dict[subsets.Subset, str], source: Source) -> dict[str, str]:
    return {subsets.label(subset, source.names): why for subset, why in gaps.items() if why}


def score_subsets(
    model: Deployable, split: Split, source: Source, *, always_present: Iterable[str] = ()
) -> list[SubsetScore]:
    """One score per non-empty subset that has rows, small subsets first."""
    return evaluate(model, split, source, always_present=always_present).scores


def mean_error(scores: Sequence[SubsetScore]) -> float:
    """The mean error rate over subsets: what checkpoints are selected by, on validation.

    Raises:
        UsageError: there is no score.
    """
    if not scores:
        raise UsageError("0 subsets of modalities have rows to measure on; at least 1 is needed")
    return sum(score.error for score in scores) / len(scores)


def worst_score(scores: Sequence[SubsetScore]) -> SubsetScore:
    """The score of the largest error; the first of equal ones."""
    return max(scores, key=lambda score: score.error)


def score_table(scores: Sequence[SubsetScore], unmeasured: Mapping[str, str] | None = None) -> str:
    """A table for people, at most 100 columns: a line per subset, in percent with the 95 % interval; mean and worst.

    ECE is the calibration error, NLL the mean negative log-likelihood in nats. A subset of `unmeasured` has n = 0.
    """
    missing = dict(unmeasured or {})
    metric = scores[0].metric if scores else "metric"
    most = _SPOOF_SUBSET_COLUMNS if metric == "acer" else _SUBSET_COLUMNS
    width = min(most, max(map(len, [*missing, "subset", *(s.subset for s in scores)])))
    lines = [_head_line(metric, width)]
    lines += [_score_line(s, width) for s in scores]
    lines += [f"{_clipped(name, width)}  {'-':>10}  {'-':>15}  {0:6d}  {why}" for name, why in missing.items()]
    if scores:
        lines += [_mean_line(scores, width), _worst_line(worst_score(scores), width)]
    if missing:
        lines.append("n = 0: not measured, and in no mean")
    return "\n".join(lines)


def _head_line(metric: str, width: int) -> str:
    line = f"{'subset':<{width}}  {metric + ' %':>10}  {'95 % interval':>15}  {'n':>6}  ECE %  {'NLL':>6}"
    return line + ("  BPCER %  worst APCER %" if metric == "acer" else "")


def _score_line(s: SubsetScore, width: int) -> str:
    line = f"{_clipped(s.subset, width)}  {100 * s.value:10.2f}  {100 * s.low:6.2f} - {100 * s.high:6.2f}  {s.n:6d}"
    line += f"  {_number(s.ece, 5, 100)}  {_number(s.nll, 6)}"
    if s.metric == "acer":
        line += f"  {100 * s.detail['bpcer']['value']:7.2f}  {100 * s.detail['apcer_worst']['value']:6.2f}"
        line += f" ({_shortened(s.detail['worst_species'], _TABLE_COLUMNS - len(line) - 3)})"
    return line


def _mean_line(scores: Sequence[SubsetScore], width: int) -> str:
    line = f"{'mean':<{width}}  {100 * sum(s.value for s in scores) / len(scores):10.2f}"
    eces, nlls = [s.ece for s in scores if s.ece is not None], [s.nll for s in scores if s.nll is not None]
    if len(eces) < len(scores) or len(nlls) < len(scores):
        return line
    return f"{line}  {'':15}  {'':6}  {_number(sum(eces) / len(eces), 5, 100)}  {_number(sum(nlls) / len(nlls), 6)}"


def _worst_line(worst: SubsetScore, width: int) -> str:
    return f"{'worst':<{width}}  {100 * worst.value:10.2f}  ({_shortened(worst.subset, _SUBSET_COLUMNS)})"


def _number(value: float | None, width: int, factor: float = 1.0) -> str:
    return f"{'-':>{width}}" if value is None else f"{factor * value:{width}.{2 if factor > 1 else 3}f}"


def _clipped(text: str, width: int) -> str:
    return f"{_shortened(text, width):<{width}}"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 1)] + "…"
