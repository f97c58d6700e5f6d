"""How a command that runs for ever is ended: in good order by the first signal, at once by the second."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from mars_edge.signals import ENDING


class Signals:
    """Whether a signal came, and what it ends; `stop` may be given later than the signal."""

    def __init__(self, stop: Callable[[], object] | None = None) -> None:
        self.came = False
        self._stop = stop

    def end_by(self, stop: Callable[[], object]) -> None:
        """Call `stop` when a signal comes, now if one has come already."""
        self._stop = stop
        if self.came:
            stop()

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler: the first signal calls `stop`, the second one kills as usual."""
        signal.signal(number, signal.SIG_DFL)
        self.came = True
        if self._stop is not None:
            self._stop()


@contextlib.contextmanager
def stopping_on_signals(stop: Callable[[], object] | None = None) -> Iterator[Signals]:
    """The first SIGINT, SIGTERM or SIGHUP calls `stop`, the second one kills as usual; `nohup` keeps its meaning."""
    signals = Signals(stop)
    # Signals reach Python's main thread only; a caller elsewhere has its own way to stop.
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    taken = [number for number in ENDING if not (ignored and number == signal.SIGHUP)]
    before = {number: signal.signal(number, signals.take) for number in taken}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
