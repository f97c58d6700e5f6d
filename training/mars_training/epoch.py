"""What a training says of itself while it runs: a report per epoch and, within one, how far it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mars_training.evaluate import SubsetScore, mean_error


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One epoch as numbers.

    Attributes:
        terms: mean of every loss term over the epoch's steps.
        scores: validation, every subset; empty on epochs without validation.
        sampling: by incomplete combination: its discrepancy in this epoch and its probability in the next.
    """

    epoch: int
    epochs: int
    rate: float
    seconds: float
    eta_s: float
    samples_per_s: float
    terms: dict[str, float]
    scores: list[SubsetScore]
    sampling: dict[str, tuple[float, float]]

    @property
    def validation_error(self) -> float:
        """Mean error over subsets; infinite without validation."""
        return mean_error(self.scores) if self.scores else math.inf


def report_from_dict(table: Mapping[str, Any]) -> EpochReport:
    """The report whose `dataclasses.asdict` went through JSON."""
    scores = [SubsetScore(**score) for score in table["scores"]]
    sampling = {name: tuple(pair) for name, pair in table["sampling"].items()}
    return EpochReport(**{**table, "scores": scores, "sampling": sampling})


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """How far an epoch is: `step` of `steps` are done; `eta_s` is until all epochs are, validation not counted."""

    epoch: int
    epochs: int
    step: int
    steps: int
    samples_per_s: float
    eta_s: float
