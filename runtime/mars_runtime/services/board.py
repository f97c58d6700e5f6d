"""The newest decision on a board: one writer, the decision loop; any number of readers, none of whom it waits for."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from mars_runtime.decision import Decision
from mars_runtime.sensors.pace import Clock


@dataclass(frozen=True, kw_only=True)
class Posted:
    """A decision, when it was posted (monotonic clock), and its number among the posted ones, from 1.

    `punctual_s` is when the newest decision that was not late was posted, at first that of the first decision.
    """

    decision: Decision
    at_s: float
    number: int
    punctual_s: float


class Board:
    """A sink that keeps the newest decision; readers miss what came while they were away."""

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._newest: Posted | None = None
        self._closed = False

    @property
    def newest(self) -> Posted | None:
        """None before the first decision."""
        return self._newest

    @property
    def closed(self) -> bool:
        """Whether no further decision will come."""
        return self._closed

    def write(self, decision: Decision) -> None:
        """Post a decision in the place of the one before."""
        with self._changed:
            now_s, before = self._clock(), self._newest
            punctual_s = now_s if before is None or decision.late_ms <= 0.0 else before.punctual_s
            number = 1 if before is None else before.number + 1
            self._newest = Posted(decision=decision, at_s=now_s, number=number, punctual_s=punctual_s)
            self._changed.notify_all()

    def close(self) -> None:
        """Send the readers home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def after(self, number: int, timeout_s: float) -> Posted | None:
        """The newest decision once it is younger than `number`; None after `timeout_s`, or when the board is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._number() > number, timeout=timeout_s)
            return self._newest if not self._closed and self._number() > number else None

    def _number(self) -> int:
        return 0 if self._newest is None else self._newest.number
