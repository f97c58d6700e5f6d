"""The flight recorder: what led to a fault and what followed, one recording per incident, in bounded memory and disk.

An incident begins when a sensor that was used goes missing or degrades, when the downgrade alarm goes up, or when the
engine fails. It holds the seconds before from a ring in memory, and goes on until no fault has come for a while.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.files import make_folder
from mars_runtime.decision import Decision
from mars_runtime.recording.recorder import QUEUE_BYTES, Kept, Recorder, weight
from mars_runtime.recording.session import Session
from mars_runtime.recording.writer import load_mcap
from mars_runtime.tick import Tick

_HOUR_S = 3600.0
# Reasons that are no fault of a sensor.
_QUIET = ("skew", "ended", "not configured", "starting", "recovering")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much is kept.

    Attributes:
        before_s, after_s: around a fault.
        longest_s: of one incident, however many faults follow each other.
        ring_bytes: of samples held in memory; less than `before_s` is kept when they weigh more.
        per_hour: incidents that are written; further ones are counted only.
    """

    before_s: float = 10.0
    after_s: float = 5.0
    longest_s: float = 60.0
    ring_bytes: int = 256 * 2**20
    per_hour: int = 12


class FlightRecorder:
    """Give it every tick; it writes to `folder` when something goes wrong.

    Args:
        session: what is recorded; asked for when an incident begins.
        say: told of every finished incident and of every failure, one line for people.

    Raises:
        UsageError: the packages are not installed, the folder cannot be made, or the one it is to be in does not exist.
    """

    def __init__(
        self,
        folder: Path,
        session: Callable[[], Session],
        *,
        bounds: Bounds | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        load_mcap()
        make_folder(folder, "--flight-recorder")
        self._folder = folder
        self._session = session
        self._bounds = bounds or Bounds()
        self._say = say
        self._ring: deque[Tick] = deque()
        self._ring_bytes = 0
        self._decision: Decision | None = None
        self._recorder: Recorder | None = None
        self._finishing: list[Recorder] = []
        self._began_s = 0.0
        self._until_s = 0.0
        self._incidents_s: deque[float] = deque()
        self.suppressed = 0

    def tick(self, tick: Tick) -> None:
        """Keep one decision and its causes, and see whether it begins, goes on with or ends an incident."""
        now_s = tick.readings.end_s
        fault = _fault(self._decision, tick.decision)
        self._decision = tick.decision
        if self._recorder is not None:
            self._go_on(self._recorder, tick, fault, now_s)
            return
        self._remember(tick, now_s)
        if fault is not None:
            self._begin(fault, now_s)

    def _remember(self, tick: Tick, now_s: float) -> None:
        self._ring.append(tick)
        self._ring_bytes += weight(tick)
        bounds = self._bounds
        while len(self._ring) > 1 and (
            self._ring_bytes > bounds.ring_bytes or now_s - self._ring[0].readings.end_s > bounds.before_s
        ):
            self._ring_bytes -= weight(self._ring.popleft())

    def _begin(self, fault: str, now_s: float) -> None:
        while self._incidents_s and now_s - self._incidents_s[0] > _HOUR_S:
            self._incidents_s.popleft()
        if len(self._incidents_s) >= self._bounds.per_hour:
            self.suppressed += 1
            return
        self._incidents_s.append(now_s)
        session = replace(self._session(), note=fault)
        path = self._folder / _name(fault, self._ring[-1].readings.utc_s)
        try:
            self._recorder = Recorder(path, session, queue_bytes=self._bounds.ring_bytes + QUEUE_BYTES)
        except (OSError, UsageError) as error:
            self._say(f"flight recorder: {path.name}: {error}")
            return
        for remembered in self._ring:
            self._recorder.tick(remembered)
        self._ring.clear()
        self._ring_bytes = 0
        self._began_s, self._until_s = now_s, now_s + self._bounds.after_s

    def _go_on(self, recorder: Recorder, tick: Tick, fault: str | None, now_s: float) -> None:
        recorder.tick(tick)
        if fault is not None:
            self._until_s = now_s + self._bounds.after_s
        if now_s >= min(self._until_s, self._began_s + self._bounds.longest_s):
            recorder.finish(self._finished)
            self._finishing = [each for each in (*self._finishing, recorder) if each.is_writing]
            self._recorder = None

    def _finished(self, result: Kept | MarsEdgeError) -> None:
        if isinstance(result, Kept):
            self._say(f"flight recorder: {result.path} ({result.written} decisions)")
        else:
            self._say(f"flight recorder: {result}")

    def close(self) -> None:
        """Complete an incident that is under way; may be called twice."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.finish(self._finished)
            self._finishing.append(recorder)
        for each in self._finishing:
            each.join()


def _fault(before: Decision | None, now: Decision) -> str | None:
    """What became worse with this decision, as "SENSOR-REASON"; None when nothing did."""
    if before is None:
        return None
    for name, summary in now.modalities.items():
        was = before.modalities[name]
        # Of a sensor that falls silent the stamp is off first: a quiet reason is no fault that was told already.
        calm = was.status == "ok" or (was.status == "missing" and was.reason in _QUIET)
        worse = calm or (was.status == "degraded" and summary.status == "missing")
        if worse and summary.status != "ok" and summary.reason not in _QUIET:
            return f"{name}-{summary.reason}"
    if set(now.alarm) - set(before.alarm):
        return f"{now.alarm[0]}-alarm"
    failed = [each.outcome.reason or "" for each in (now, before)]
    return "engine-failed" if "the engine failed" in failed[0] and failed[0] != failed[1] else None


def _name(fault: str, utc_s: float) -> str:
    stamp = datetime.fromtimestamp(utc_s, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    return f"incident-{stamp}Z-{re.sub(r'[^a-z0-9]+', '-', fault.lower()).strip('-')}.mcap"
