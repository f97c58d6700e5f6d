"""One decision and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mars_runtime.health import Summary
from mars_runtime.policy import Outcome


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
        age_ms: age of the oldest sample used, at the time of the decision; None if none was used.
    """

    seq: int
    t_utc_s: float
    outcome: Outcome
    subset: str
    modalities: Mapping[str, Summary]
    experts: tuple[tuple[int, float], ...]
    latency_ms: Mapping[str, float]
    age_ms: float | None

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
            "subset": self.subset,
            "modalities": {name: _modality(summary) for name, summary in self.modalities.items()},
            "experts": [{"id": index, "gate": round(gate, 4)} for index, gate in self.experts],
            "latency_ms": {stage: round(value, 3) for stage, value in self.latency_ms.items()},
            "age_ms": _rounded(self.age_ms, 1),
        }


def _modality(summary: Summary) -> dict[str, Any]:
    age_ms = None if summary.age_s is None else round(summary.age_s * 1000.0, 1)
    return {"status": summary.status, "reason": summary.reason, "age_ms": age_ms}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
