"""How a command that runs for ever is ended: in good order by the first signal, at once by the second."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from mars_edge.signals import handled_by


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
    with handled_by(signals.take):
        yield signals
