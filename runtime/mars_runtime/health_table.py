"""The rows of the fault table that are a measured number, a limit and how long it must hold; each a line of data.

The other rows (silence, errors, time stamps, repetition, rate) count events and are in `health`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mars_edge.manifest import CONTENT_FAULTS
from mars_runtime.limits import Limits

Tier = Literal["transport", "content", "degraded"]
_TESTS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}


class Facts(Protocol):
    """A sample's receipt time; the measured numbers are attributes named by the rows."""

    @property
    def at_s(self) -> float:
        """Receipt, monotonic clock."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the fault table.

    Attributes:
        tier: transport faults mask; content faults mask where the model's policy names them; others only degrade.
        fact: the measured number, a field of `SampleSeen`; None there means it does not apply.
        test: how the number compares with the limit in a fault.
        limit: a field of `Limits`; a limit of 0 turns a row with the test "<=" off.
        enter_s, leave_s: fields of `Limits`, how long it must hold without interruption; "" means at once.
        leave_samples: a field of `Limits`, samples in a row that end it instead of a time.
        best_phase: judged by the best of the last `Limits.strobe_frames` numbers.
    """

    reason: str
    tier: Tier
    fact: str
    test: Literal[">=", ">", "<=", "<"]
    limit: str
    enter_s: str
    leave_s: str = ""
    leave_samples: str = ""
    best_phase: bool = False


# The first that holds is the one a degraded sensor names, so the more specific come first.
ROWS = (
    Row(
        reason="audio-dead",
        tier="transport",
        fact="zeros_s",
        test=">=",
        limit="zeros_s",
        enter_s="",
        leave_s="zeros_leave_s",
    ),
    Row(
        reason="dark",
        tier="content",
        fact="dark",
        test=">=",
        limit="dark_share",
        enter_s="dark_s",
        leave_s="dark_s",
        best_phase=True,
    ),
    Row(
        reason="saturated",
        tier="content",
        fact="saturated",
        test=">=",
        limit="saturated_share",
        enter_s="saturated_s",
        leave_s="saturated_s",
    ),
    Row(
        reason="depth-invalid",
        tier="content",
        fact="invalid_depth",
        test=">",
        limit="invalid_depth_share",
        enter_s="invalid_depth_s",
        leave_s="invalid_depth_s",
    ),
    Row(
        reason="covered",
        tier="content",
        fact="flat",
        test=">=",
        limit="covered_share",
        enter_s="covered_s",
        leave_s="covered_s",
        best_phase=True,
    ),
    Row(
        reason="noise",
        tier="content",
        fact="noise",
        test=">",
        limit="noise_most",
        enter_s="noise_s",
        leave_s="noise_s",
        best_phase=True,
    ),
    Row(
        reason="frozen?",
        tier="content",
        fact="still",
        test="<=",
        limit="still_share",
        enter_s="still_s",
        leave_samples="still_samples",
    ),
    Row(
        reason="audio-silent",
        tier="degraded",
        fact="loudness_dbfs",
        test="<",
        limit="silent_dbfs",
        enter_s="silent_s",
        leave_s="silent_s",
    ),
    Row(
        reason="audio-clipped",
        tier="degraded",
        fact="clipped",
        test=">",
        limit="clipped_share",
        enter_s="clipped_s",
        leave_s="clipped_s",
    ),
)
assert {row.reason for row in ROWS if row.tier == "content"} == set(CONTENT_FAULTS)


@dataclass(frozen=True, kw_only=True)
class Dwell:
    """How long a row's condition has held, and whether that made it a fault.

    Attributes:
        fine_since_s, fine: since when, and for how many samples in a row, a fault's condition has not held.
        recent: the newest numbers, as many as the strobe has phases.
        evidence: the number and the limit when it became a fault, and how long it had held.
    """

    bad_since_s: float | None = None
    fine_since_s: float | None = None
    fine: int = 0
    active: bool = False
    recent: tuple[float, ...] = ()
    evidence: Mapping[str, float] = field(default_factory=dict)


_FINE = Dwell()


def judged(dwells: Mapping[str, Dwell], facts: Facts, limits: Limits, *, gap: bool) -> Mapping[str, Dwell]:
    """The dwells after one sample; `gap` says that samples were missing before it, so nothing held without a break."""
    after = {}
    for row in ROWS:
        value = getattr(facts, row.fact)
        if value is not None:
            after[row.reason] = _next(row, dwells.get(row.reason, _FINE), float(value), facts.at_s, limits, gap=gap)
    return after


def _next(row: Row, dwell: Dwell, value: float, at_s: float, limits: Limits, *, gap: bool) -> Dwell:
    recent: tuple[float, ...] = ()
    if row.best_phase and limits.strobe_frames > 1:
        recent = (*(() if gap else dwell.recent), value)[-limits.strobe_frames :]
    value = min(recent, default=value)
    limit = float(getattr(limits, row.limit))
    off = row.test == "<=" and limit == 0.0
    if not off and _TESTS[row.test](value, limit):
        return _bad(row, dwell, value, limit, at_s, limits, recent, gap=gap)
    if not dwell.active:
        return Dwell(recent=recent) if recent else _FINE
    since_s = at_s if dwell.fine_since_s is None or gap else dwell.fine_since_s
    fine = dwell.fine + 1
    if row.leave_samples:
        left = fine >= int(getattr(limits, row.leave_samples))
    else:
        left = at_s - since_s >= float(getattr(limits, row.leave_s))
    if left:
        return Dwell(recent=recent)
    return Dwell(fine_since_s=since_s, fine=fine, active=True, recent=recent, evidence=dwell.evidence)


def _bad(
    row: Row,
    dwell: Dwell,
    value: float,
    limit: float,
    at_s: float,
    limits: Limits,
    recent: tuple[float, ...],
    *,
    gap: bool,
) -> Dwell:
    since_s = at_s if dwell.bad_since_s is None or gap else dwell.bad_since_s
    held_s = at_s - since_s
    enter_s = float(getattr(limits, row.enter_s)) if row.enter_s else 0.0
    evidence = dwell.evidence
    if not dwell.active and held_s >= enter_s:
        evidence = {row.fact: value, "limit": limit, "for_s": held_s}
    return Dwell(bad_since_s=since_s, active=dwell.active or held_s >= enter_s, recent=recent, evidence=evidence)
