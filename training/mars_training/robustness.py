"""Undetected faults: what a model answers when a sensor lies and is still believed.

One modality at a time shows a content fault in its raw samples and stays marked present; everything else is as it
was. Beside it stand the same rows without the fault, and with that modality masked, as a detector would have it:
the difference to the latter is what detection is worth.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_edge.faults import CONTENT_FAULTS, corrupt
from mars_training.data.columns import Decoded
from mars_training.data.split import RawColumn, Source, Split
from mars_training.evaluate import Evaluation, SubsetScore, evaluate, rows_with
from mars_training.model.deployable import Deployable

SWAP = "swap"
"""Another sample's data, as a frozen sensor would show it: plausible, and of the wrong moment."""
UNDETECTED_FAULTS: tuple[str, ...] = (*CONTENT_FAULTS, SWAP)
FAULT_SAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class ModalityFaults:
    """What one lying modality does to the full set.

    Attributes:
        modality: its name.
        masked: the same rows with the modality known to be missing; None where there is no such subset, because
            it is the only modality or one that is never missing.
        faults: by fault, the score with the fault believed.
    """

    modality: str
    masked: SubsetScore | None
    faults: dict[str, SubsetScore]

    def worth(self, fault: str) -> float | None:
        """How much lower the error would be had the fault been detected; None without `masked`."""
        return None if self.masked is None else self.faults[fault].error - self.masked.error


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """A model under undetected faults: `clean` is the full set of modalities without any, over `samples` rows."""

    samples: int
    seed: int
    clean: SubsetScore
    modalities: list[ModalityFaults]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; each fault with its `worth` beside its score."""
        table = dataclasses.asdict(self)
        for found, entry in zip(self.modalities, table["modalities"], strict=True):
            for fault, score in entry["faults"].items():
                score["worth"] = found.worth(fault)
        return table


@dataclass(frozen=True)
class _Corrupted:
    """Raw samples that show a content fault; row i depends on the seed and i only, whoever asks and when."""

    raw: RawColumn
    fault: str
    seed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int, /) -> NDArray[Any]:
        return corrupt(self.fault, self.raw[index], np.random.default_rng([*self.seed, index]))


@dataclass(frozen=True)
class _Swapped:
    """Every row shows the raw sample of another row."""

    raw: RawColumn
    other: Sequence[int]

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int, /) -> NDArray[Any]:
        return self.raw[self.other[index]]


def with_fault(split: Split, source: Source, modality: str, fault: str, *, seed: int) -> Split:
    """The split with `fault` in every raw sample of `modality`; all else, presence included, as it is.

    Raises:
        UsageError: the split has no raw samples of it, or the fault does not fit their type.
    """
    raw = _raw_of(split, modality)
    if fault not in faults_of(raw):
        raise UsageError(f"fault {fault!r} does not fit {modality}; allowed: {', '.join(faults_of(raw))}")
    own_seed = (seed, zlib.crc32(modality.encode()), zlib.crc32(fault.encode()))
    changed = _Swapped(raw, _others(len(raw), own_seed)) if fault == SWAP else _Corrupted(raw, fault, own_seed)
    described = source.modalities[source.names.index(modality)]
    column = Decoded(described, changed, split.presence[:, source.names.index(modality)])
    return dataclasses.replace(
        split, inputs={**split.inputs, modality: column}, raw={**(split.raw or {}), modality: changed}
    )


def faults_of(raw: RawColumn) -> tuple[str, ...]:
    """The faults that samples of this type can show: text only that of another moment."""
    return UNDETECTED_FAULTS if np.issubdtype(raw[0].dtype, np.number) else (SWAP,)


def _raw_of(split: Split, modality: str) -> RawColumn:
    if split.raw is None or modality not in split.raw:
        raise UsageError(f"faults need the raw samples of {modality!r}, which this data set's reader does not give")
    return split.raw[modality]


def _others(n: int, seed: tuple[int, ...]) -> list[int]:
    """For each row another row; each is shown once: neighbours on one random circle through all rows."""
    if n < 2:
        raise UsageError(f"fault {SWAP!r} needs at least 2 samples, this split has {n}")
    circle = np.random.default_rng(seed).permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[circle] = np.roll(circle, 1)
    return [int(i) for i in other]


def evenly_spread(rows: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` of the indices `rows`, rising and evenly spread over them."""
    if len(rows) <= count:
        return rows
    return rows[torch.from_numpy(np.linspace(0, len(rows) - 1, count).round().astype(np.int64))]


def measure_faults(
    model: Deployable,
    split: Split,
    source: Source,
    *,
    samples: int = FAULT_SAMPLES,
    seed: int = 0,
    always_present: Iterable[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> Robustness:
    """Every undetected fault of every modality, on at most `samples` evenly spread rows that have all modalities.

    `progress` is told what is measured next.

    Raises:
        UsageError: the reader gives no raw samples, too few rows have all modalities, or they are of one class.
    """
    for name in source.names:
        _raw_of(split, name)
    rows = evenly_spread(rows_with(split, source.names), samples)
    if len(rows) < 2:
        raise UsageError(f"{len(rows)} rows have all modalities; faults are measured on at least 2")
    chosen = split.take(rows)
    without = _without_one(source, always_present)
    wanted = [source.names, *without.values()]
    progress(f"{len(chosen)} samples without a fault, and with each modality masked")
    clean, *masked = _scores(evaluate(model, chosen, source, wanted=wanted), len(wanted))
    known = dict(zip(without, masked, strict=True))
    found = [
        ModalityFaults(
            modality=name,
            masked=known.get(name),
            faults=_fault_scores(model, chosen, source, name, seed=seed, progress=progress),
        )
        for name in source.names
    ]
    return Robustness(samples=len(chosen), seed=seed, clean=clean, modalities=found)


def _without_one(source: Source, always_present: Iterable[str]) -> dict[str, subsets.Subset]:
    """By modality, the subset of all others, where that is one a model is trained for."""
    allowed = subsets.evaluated_subsets(source.names, always_present)
    rest = {name: tuple(other for other in source.names if other != name) for name in source.names}
    return {name: subset for name, subset in rest.items() if subset in allowed}


def _fault_scores(
    model: Deployable, split: Split, source: Source, name: str, *, seed: int, progress: Callable[[str], None]
) -> dict[str, SubsetScore]:
    scores = {}
    for fault in faults_of(_raw_of(split, name)):
        progress(f"{name}: {fault}")
        faulty = with_fault(split, source, name, fault, seed=seed)
        (scores[fault],) = _scores(evaluate(model, faulty, source, wanted=[source.names]), 1)
    return scores


def _scores(evaluation: Evaluation, count: int) -> list[SubsetScore]:
    if len(evaluation.scores) < count:
        subset, why = next(iter(evaluation.unmeasured.items()))
        raise UsageError(f"faults cannot be measured on {subset}: {why}; take more samples")
    return evaluation.scores


def fault_table(found: Robustness) -> str:
    """A table for people, at most 100 columns: per modality and fault the metric, and what detection is worth."""
    metric = found.clean.metric
    width = max(len("no fault"), *(len(m.modality) for m in found.modalities))
    lines = [
        f"undetected faults, all modalities present, {found.samples} samples",
        f"{'modality':<{width}}  fault     {metric + ' %':>10}  {'95 % interval':>15}  ECE %  masked %  detection",
        f"{'no fault':<{width}}  {'':8}  {_measured(found.clean)}",
    ]
    for entry in found.modalities:
        lines += [_fault_line(entry, fault, width) for fault in entry.faults]
    lines.append("masked: the modality known to be missing. detection: points of error that knowing would save")
    return "\n".join(lines)


def _fault_line(entry: ModalityFaults, fault: str, width: int) -> str:
    line = f"{entry.modality:<{width}}  {fault:<8}  {_measured(entry.faults[fault])}"
    worth = entry.worth(fault)
    if entry.masked is None or worth is None:
        return f"{line}  {'-':>8}  {'-':>9}"
    return f"{line}  {100 * entry.masked.value:8.2f}  {100 * worth:+9.2f}"


def _measured(s: SubsetScore) -> str:
    ece = "-" if s.ece is None else f"{100 * s.ece:.2f}"
    return f"{100 * s.value:10.2f}  {100 * s.low:6.2f} - {100 * s.high:6.2f}  {ece:>5}"
