"""A driver in a process of its own, for libraries that can hang where no thread can be stopped.

OpenCV's captures, PortAudio and vendors' kits block in C for as long as their device or server pleases. A process can
be killed whatever it does; a read here never outlasts its time-out, and nothing of a killed child is left.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

from mars_edge.errors import SensorError
from mars_runtime.interpreter import environment
from mars_runtime.sensors.bundle import Bundle
from mars_runtime.sensors.driver import Driver, Frame, SourceEndedError, Traits
from mars_runtime.sensors.worker import READY, Failure, Memory, Reply

OPEN_TIMEOUT_S = 5.0
# Importing OpenCV on a small, loaded device; not the device's fault, so not part of the bound of an open.
START_TIMEOUT_S = 20.0
_CLOSE_TIMEOUT_S = 0.5
_KILL_TIMEOUT_S = 2.0
_SLICE_S = 0.05
_BOOT = "from mars_runtime.sensors.worker import main; main()"


class Child:
    """One worker process and the three things shared with it; used by one thread at a time."""

    def __init__(self, make: Callable[[], Driver | Bundle]) -> None:
        with ExitStack() as theirs:
            self.connection, other = Pipe()
            theirs.callback(other.close)
            self._memory_fd = os.memfd_create("mars-edge-frame")
            lifeline, self._lifeline_fd = os.pipe()
            theirs.callback(os.close, lifeline)
            shared = (other.fileno(), self._memory_fd, lifeline)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, *map(str, shared)],
                pass_fds=shared,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is meant for the parent, which ends the child in its own time.
                start_new_session=True,
                env=environment(),
            )
        self.memory = Memory(self._memory_fd)
        # A child that has died already is found by the next receive.
        with suppress(OSError):
            self.connection.send_bytes(pickle.dumps(make))

    def end(self, *, politely: bool) -> None:
        """Ask it to close its driver and wait a moment, or not; then it is killed, reaped, and all is released."""
        if politely:
            with suppress(OSError):
                self.connection.send(("close",))
            self._wait(_CLOSE_TIMEOUT_S)
        self.process.kill()
        self._wait(_KILL_TIMEOUT_S)
        self.connection.close()
        self.memory.close()
        os.close(self._memory_fd)
        os.close(self._lifeline_fd)

    def _wait(self, timeout_s: float) -> None:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel; it is reaped by a later start of a process.
            return


class IsolatedDriver:
    """The driver, or the bundle, that `make` makes, run in a child process: one per open, ended by close.

    Args:
        make: picklable, e.g. `functools.partial(NetworkCamera, url)`; also called here, for the traits before `open`.
        check: what can be found out here before a process is started; raises SensorError.
        open_timeout_s: an open that takes longer is ended and counts as failed.

    Attributes:
        interrupted: ends an open while it is set; who shares this driver may put another in its place.
        channels, refused: of a bundle, as it told when it was opened.
    """

    def __init__(
        self,
        make: Callable[[], Driver | Bundle],
        *,
        check: Callable[[], None] | None = None,
        open_timeout_s: float = OPEN_TIMEOUT_S,
    ) -> None:
        self._make = make
        self._check = check
        self._open_timeout_s = open_timeout_s
        self._child: Child | None = None
        self._asked = False
        self._identity = ""
        self._end: SourceEndedError | None = None
        self.interrupted = threading.Event()
        here = make()
        self.traits: Traits = here.traits
        self.channels: Mapping[str, Traits] = dict(here.channels) if isinstance(here, Bundle) else {}
        self.refused: Mapping[str, str] = {}

    @property
    def process_id(self) -> int | None:
        """Of the child; None while closed."""
        return None if self._child is None else self._child.process.pid

    def open(self) -> None:
        """Start the child and open the driver in it; a source that has ended stays ended and needs none.

        Raises:
            SensorError: the driver's own reason, no answer within the bound, interrupted, or not the device it was.
        """
        self.close()
        if self._end is not None:
            return
        if self._check is not None:
            self._check()
        self._child = Child(self._make)
        try:
            self._expect(READY, START_TIMEOUT_S, "its process did not start")
            self._ask_to_open()
        except BaseException:
            self.close()
            raise

    def open_refused(self) -> None:
        """Let an open bundle try its refused channels again; nothing where it still owes the answer to a read.

        Raises:
            SensorError: as `open`; it is closed then.
        """
        if self._asked or self._end is not None:
            return
        try:
            self._ask_to_open()
        except BaseException:
            self.close()
            raise

    def _ask_to_open(self) -> None:
        assert self._child is not None
        # A child that has died already is found by the receive.
        with suppress(OSError):
            self._child.connection.send(("open",))
        reply = self._receive(self._open_timeout_s, "did not open")
        self._accept(reply)
        self._know(reply.traits)
        self.channels, self.refused = reply.channels, reply.refused

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, or None; a driver that hangs is silent here, and a request it has not answered stays open.

        Raises:
            SourceEndedError, SensorError: as the driver; `.gone` when its process has died.
        """
        taken = self.read_any(timeout_s)
        return None if taken is None else taken[1]

    def read_any(self, timeout_s: float) -> tuple[str, Frame] | None:
        """As `read`, with the channel the frame is of; "" where the driver is no bundle."""
        child = self._child
        if self._end is not None:
            raise self._end
        if child is None:
            raise SensorError(f"{self.traits.description}: read before open")
        try:
            if not self._asked:
                child.connection.send(("read", timeout_s))
                self._asked = True
            if not child.connection.poll(timeout_s):
                return None
            reply: Reply = child.connection.recv()
        except (EOFError, OSError) as error:
            raise SensorError(self._death(child), gone=True) from error
        self._asked = False
        self._accept(reply)
        return None if reply.written is None else (reply.channel, child.memory.read(reply.written))

    def close(self) -> None:
        """End the child: politely unless it owes an answer."""
        child, self._child = self._child, None
        owing, self._asked = self._asked, False
        if child is not None:
            child.end(politely=not owing and not self.interrupted.is_set())

    def interrupt(self) -> None:
        """Make an `open` in progress, and every later one, fail within 0.1 s; any thread may ask."""
        self.interrupted.set()

    def _expect(self, word: str, timeout_s: float, what: str) -> None:
        answer = self._receive(timeout_s, what)
        assert answer == word

    def _receive(self, timeout_s: float, what: str) -> Any:
        """The next message of the child while it opens."""
        assert self._child is not None
        connection: Connection = self._child.connection
        self._asked = True
        until_s = time.monotonic() + timeout_s
        try:
            while not connection.poll(_SLICE_S):
                if self.interrupted.is_set():
                    raise SensorError(f"{self.traits.description}: interrupted while it opened")
                if time.monotonic() >= until_s:
                    raise SensorError(f"{self.traits.description}: {what} within {timeout_s:g} s")
            answer = connection.recv()
        except (EOFError, OSError) as error:
            raise SensorError(self._death(self._child), gone=True) from error
        self._asked = False
        return answer

    def _accept(self, reply: Reply) -> None:
        self.traits = reply.traits
        if reply.failure is None:
            return
        error = _raised(reply.failure)
        if isinstance(error, SourceEndedError):
            self._end = error
        raise error

    def _know(self, traits: Traits) -> None:
        """A source that names a place (`/dev/video0`, microphone 2) may be another device after it was plugged in."""
        if self._identity and traits.identity != self._identity:
            raise SensorError(
                f"{traits.description}: is another device now ({traits.identity}); waiting for {self._identity}",
                gone=True,
            )
        self._identity = traits.identity

    def _death(self, child: Child) -> str:
        try:
            code = child.process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"{self.traits.description}: its process does not answer"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{self.traits.description}: its process ended ({how})"


def _raised(failure: Failure) -> SensorError:
    if failure.ended:
        return SourceEndedError(failure.message)
    return SensorError(failure.message, gone=failure.gone)
