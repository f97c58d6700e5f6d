"""One decision and its JSON form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_runtime.health import Summary
from mars_runtime.policy import Outcome

# Raised when a program that reads the lines could break: a field removed, renamed or of another meaning.
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided, on what, by whom and how fast.

    Attributes:
        seq: 0, 1, 2 ... within one stream.
        t_utc_s: wall clock, seconds since the epoch.
        subset: canonical label of the modalities used, "none" if there was none.
        modalities: every modality of the model, in fusion order.
        experts: (id, gate), largest gate first; empty when nothing was inferred.
        latency_ms: per stage; `encode.NAME` only for encoders that ran; total excludes capture_wait.
        age_ms: age of the oldest sample used, from its capture where the device stamps it, when the decision was
            made; None if none was used.
        alarm: sensors that liveness depends on, that were used before in this session, and that are missing now.
        late_ms: how long after its deadline it was made; 0 in time.
        skipped: periods just before it that passed without a decision.
        label_map: segmentation only: uint8 (H, W), the index of the label of each pixel; not part of the JSON line.
    """

    seq: int
    t_utc_s: float
    outcome: Outcome
    subset: str
    modalities: Mapping[str, Summary]
    experts: tuple[tuple[int, float], ...]
    latency_ms: Mapping[str, float]
    age_ms: float | None
    alarm: tuple[str, ...] = ()
    late_ms: float = 0.0
    skipped: int = 0
    label_map: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of one output line; numbers are rounded, never NaN."""
        return {
            "seq": self.seq,
            "t_utc": _utc(self.t_utc_s),
            "label": self.outcome.label,
            "score": _rounded(self.outcome.score, 4),
            "threshold": _rounded(self.outcome.threshold, 4),
            "verdict": self.outcome.verdict,
            "reason": self.outcome.reason,
            "shares": _shares(self.outcome.shares),
            "subset": self.subset,
            "modalities": {name: _modality(summary) for name, summary in self.modalities.items()},
            "experts": [{"id": index, "gate": round(gate, 4)} for index, gate in self.experts],
            "latency_ms": {stage: round(value, 3) for stage, value in self.latency_ms.items()},
            "age_ms": _rounded(self.age_ms, 1),
            "alarm": list(self.alarm),
            "late_ms": round(self.late_ms, 3),
            "skipped": self.skipped,
            "schema": SCHEMA_VERSION,
        }


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one output line, as shipped in the package."""
    text = resources.files("mars_runtime").joinpath(f"schema/decision.v{SCHEMA_VERSION}.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _shares(shares: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if shares is None else {label: round(share, 4) for label, share in shares.items()}


def _modality(summary: Summary) -> dict[str, Any]:
    age_ms = None if summary.age_s is None else round(summary.age_s * 1000.0, 1)
    entry: dict[str, Any] = {"status": summary.status, "reason": summary.reason, "age_ms": age_ms}
    # JSON has no infinity: a limit that is switched off is no evidence.
    evidence = {key: float(f"{value:.4g}") for key, value in summary.evidence.items() if math.isfinite(value)}
    if evidence:
        entry["evidence"] = evidence
    if summary.error:
        entry["error"] = summary.error
    return entry


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
