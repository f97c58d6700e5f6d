"""What SIGTERM does to a command: it unwinds as Ctrl-C does, so that what was opened is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_BY_SIGNAL = 128


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit with exit code 143 within it; nothing changes outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(stop: KeyboardInterrupt | SystemExit) -> int:
    """What a shell reports of a command that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return _BY_SIGNAL + signal.SIGINT if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(_BY_SIGNAL + number)
