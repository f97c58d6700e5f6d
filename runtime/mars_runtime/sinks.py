"""Where decisions go: JSON lines for programs, a redrawn block for a person at a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from mars_runtime.decision import Decision
from mars_runtime.health import Summary
from mars_runtime.sensors.pace import Clock

_REDRAW_S = 0.1
_MARK = {"ok": "\x1b[32m●\x1b[0m", "degraded": "\x1b[33m●\x1b[0m", "missing": "\x1b[31m○\x1b[0m"}
_COLOUR = {"accept": "\x1b[32m", "reject": "\x1b[31m", "abstain": "\x1b[33m"}


class Sink(Protocol):
    """Whatever wants every decision: called in the decision loop's thread, so it must not wait for anything slow."""

    def write(self, decision: Decision) -> None:
        """Take one decision, in order."""

    def close(self) -> None:
        """No further decision comes; may be called twice."""


class JsonLines:
    """One JSON object per line, flushed, so a reader sees each decision when it is made."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, decision: Decision) -> None:
        """Write one line.

        Raises:
            BrokenPipeError: the reader has gone.
        """
        line = json.dumps(decision.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing to do: every line is flushed, and the stream belongs to the caller."""


class LiveStatus:
    """The newest decision as a block that redraws itself, at most ten times a second.

    `note` gives a last line, for example the truth of a simulation.
    """

    def __init__(self, stream: TextIO, *, note: Callable[[], str] | None = None, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._note = note
        self._clock = clock
        self._drawn_lines = 0
        self._next_s = 0.0

    def write(self, decision: Decision) -> None:
        """Redraw if the last redraw is long enough ago."""
        now_s = self._clock()
        if now_s < self._next_s and self._drawn_lines:
            return
        self.clear()
        self._next_s = now_s + _REDRAW_S
        lines = render(decision)
        if self._note is not None:
            lines.append(f"  {self._note()}")
        # Without line wrap each line stays one row, however narrow the terminal is.
        self._stream.write("\x1b[?7l" + "".join(f"{line}\n" for line in lines) + "\x1b[?7h")
        self._stream.flush()
        self._drawn_lines = len(lines)

    def close(self) -> None:
        """The last block stays on the screen."""

    def clear(self) -> None:
        """Remove the block, so that something else can be printed where it was."""
        if self._drawn_lines:
            self._stream.write(f"\x1b[{self._drawn_lines}F\x1b[J")
            self._stream.flush()
        self._drawn_lines = 0


def render(decision: Decision) -> list[str]:
    """The block's lines: verdict, one line per modality, experts, latency; as many for every decision."""
    outcome = decision.outcome
    score = "" if outcome.score is None else f"  score {outcome.score:.3f}"
    limit = "" if outcome.threshold is None else f"  threshold {outcome.threshold:.3f}"
    why = "" if outcome.reason is None else f"  ({outcome.reason})"
    verdict = f"{_COLOUR.get(outcome.verdict, '')}{outcome.verdict}\x1b[0m"
    experts = "  ".join(f"#{index} {gate:.2f}" for index, gate in decision.experts) or "none"
    stages = "  ".join(f"{stage} {value:.1f}" for stage, value in decision.latency_ms.items())
    return [
        f"decision {decision.seq}  {verdict}{score}{limit}{why}",
        *(_sensor_line(name, summary) for name, summary in decision.modalities.items()),
        f"  experts  {experts}",
        f"  ms       {stages}",
    ]


def _sensor_line(name: str, summary: Summary) -> str:
    age = "" if summary.age_s is None else f"  {summary.age_s * 1000.0:.0f} ms old"
    why = "" if summary.reason is None else f": {summary.reason}"
    why += f" ({summary.error})" if summary.error else ""
    return f"  {_MARK[summary.status]} {name:<8} {summary.status}{why}{age}"
