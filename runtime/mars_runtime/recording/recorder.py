"""Recording beside a running loop: the loop hands over, a thread writes, nothing waits for a disk.

What the disk cannot keep up with is dropped decision by decision and counted; the next one that is kept carries the
loop's whole state, so a replay is exact on both sides of the gap.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mars_edge.errors import MarsEdgeError
from mars_runtime.capture import Delivery
from mars_runtime.recording.session import Session
from mars_runtime.recording.writer import RecordingWriter
from mars_runtime.sensors.driver import Traits
from mars_runtime.tick import Tick

QUEUE_BYTES = 64 * 2**20
# What a tick weighs beside its pictures.
_OVERHEAD_BYTES = 8192
_FLUSH_S = 1.0
_CLOSE_S = 30.0

_Job = Callable[[RecordingWriter], None]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a recording holds in the end, and how much of it was dropped; `written` counts decisions or deliveries."""

    path: Path
    written: int
    dropped: int


class Recorder:
    """A recording that grows; `tick` and `delivery` return at once.

    Raises:
        UsageError: the file exists, or the packages are not installed.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, session: Session, *, queue_bytes: int = QUEUE_BYTES) -> None:
        self._writer = RecordingWriter(path, session)
        self._queue_bytes = queue_bytes
        self._news = threading.Condition()
        self._jobs: deque[tuple[int, _Job]] = deque()
        self._queued_bytes = 0
        self._closing = False
        self._failure: Exception | None = None
        self._needs_state = True
        self._written = 0
        self._dropped = 0
        self._then: Callable[[Kept | MarsEdgeError], None] | None = None
        self._thread = threading.Thread(target=self._run, name=f"record-{path.name}", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """Why it stopped writing, None while it writes."""
        if isinstance(self._failure, OSError) and self._failure.strerror:
            return self._failure.strerror
        return None if self._failure is None else str(self._failure)

    def tick(self, tick: Tick) -> None:
        """Keep one decision and its causes; dropped and counted when the disk is too slow."""
        state = self._needs_state

        def write(writer: RecordingWriter) -> None:
            writer.tick(tick, state=state)

        self._needs_state = not self._put(weight(tick), write)

    def delivery(self, name: str, delivery: Delivery, traits: Traits, at_s: float) -> None:
        """Keep what one sensor handed out; dropped and counted when the disk is too slow."""
        size = 0 if delivery.sample is None else delivery.sample.frame.data.nbytes
        self._put(size + _OVERHEAD_BYTES, lambda writer: writer.delivery(name, delivery, traits, at_s))

    def _put(self, size: int, job: _Job) -> bool:
        with self._news:
            full = self._queued_bytes + size > self._queue_bytes and bool(self._jobs)
            if full or self._closing or self._failure is not None:
                self._dropped += 1
                return False
            self._jobs.append((size, job))
            self._queued_bytes += size
            self._news.notify()
        return True

    def close(self) -> Kept:
        """Write what is queued, complete the file and give it its name; may be called twice.

        Raises:
            MarsEdgeError: the disk failed; the recording up to then is under its partial name.
        """
        with self._news:
            self._closing = True
            self._news.notify()
        if not self.join():
            path = self._writer.path
            raise MarsEdgeError(f"{path}: the disk does not take the rest of the recording within {_CLOSE_S:g} s")
        return self._result()

    def finish(self, then: Callable[[Kept | MarsEdgeError], None]) -> None:
        """Like `close`, without waiting: `then` is called in the writing thread."""
        with self._news:
            self._then = then
            self._closing = True
            self._news.notify()

    @property
    def is_writing(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def join(self) -> bool:
        """Wait for the end of a closing recording, at most 30 s; whether it came."""
        self._thread.join(_CLOSE_S)
        return not self.is_writing

    def _result(self) -> Kept:
        path = self._writer.path
        if self._failure is not None and not isinstance(self._failure, OSError):
            # A bug of ours, with its own traceback.
            raise self._failure
        if self._failure is not None:
            raise MarsEdgeError(
                f"{path}: {self.failure}; recorded up to decision {self._written}, {self._dropped} lost"
            )
        return Kept(path=path, written=self._written, dropped=self._dropped)

    def _run(self) -> None:
        self._write()
        if self._then is not None:
            try:
                self._then(self._result())
            except MarsEdgeError as error:
                self._then(error)

    def _write(self) -> None:
        try:
            while (job := self._next()) is not None:
                job(self._writer)
                self._written += 1
            self._writer.close()
        except Exception as error:  # noqa: BLE001 - handed to whoever closes the recording
            self._failure = error
            self._writer.abandon()
            with self._news:
                self._jobs.clear()
                self._queued_bytes = 0

    def _next(self) -> _Job | None:
        """The next job; None when it is closing and all is written."""
        with self._news:
            while not self._jobs:
                if self._closing:
                    return None
                if not self._news.wait(_FLUSH_S):
                    self._writer.flush()
            size, job = self._jobs.popleft()
            self._queued_bytes -= size
        return job


def weight(tick: Tick) -> int:
    """About how many bytes a tick keeps in memory."""
    samples = (delivery.sample for delivery in tick.deliveries.values())
    return _OVERHEAD_BYTES + sum(sample.frame.data.nbytes for sample in samples if sample is not None)
