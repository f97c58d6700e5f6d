"""What SIGINT, SIGTERM and SIGHUP do to a command that does not take them itself: it ends without a traceback.

The exit code is 128 and the signal's number, as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM, 129 for a hang-up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

# Until this module is loaded a signal is a traceback: what only the annotations need would double that time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

# A closed terminal hangs up.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BY_SIGNAL = 128


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End the process at once; for a time in which nothing was opened and an exception could be swallowed."""
    os._exit(_BY_SIGNAL + number)


def unwind(number: int, frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt for Ctrl-C, SystemExit for the others, so that what was opened is closed."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(_BY_SIGNAL + number)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """The signals call `handler` within it, but for a hang-up that is ignored: `nohup` means it.

    Nothing changes outside the main thread. A script's background jobs ignore SIGINT without meaning it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    taken = [number for number in ENDING if not (ignored and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
