"""The child process of an isolated driver: it does what it is asked, and dies with whoever asks.

Frames go through an anonymous shared memory, all else through a socket; neither has a name that could be left behind.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import select
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np

from mars_edge.errors import MarsEdgeError, SensorError
from mars_runtime.sensors.bundle import Bundle
from mars_runtime.sensors.driver import Driver, Frame, SourceEndedError, Traits

READY = "ready"


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where a frame lies in the shared memory, and all of it but its data."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    sequence: int | None
    last: bool
    captured_s: float | None
    flags: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a driver raised."""

    message: str
    gone: bool = False
    ended: bool = False


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to one request; `written` is None where no frame came.

    Attributes:
        channel: of a bundle, whose frame it is.
        channels, refused: of a bundle that was opened.
    """

    traits: Traits
    written: Written | None = None
    channel: str = ""
    channels: Mapping[str, Traits] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    failure: Failure | None = None


class Memory:
    """The shared memory of one child, from either side; it only grows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    def write(self, frame: Frame) -> Written:
        """Lay a frame down; it stays until the next one."""
        data = np.ascontiguousarray(frame.data)
        target = np.frombuffer(self._mapped(data.nbytes, grow=True), np.uint8, data.nbytes)
        target[:] = data.reshape(-1).view(np.uint8)
        return Written(
            dtype=data.dtype.str,
            shape=frame.data.shape,
            size_bytes=data.nbytes,
            sequence=frame.sequence,
            last=frame.last,
            captured_s=frame.captured_s,
            flags=frame.flags,
        )

    def read(self, written: Written) -> Frame:
        """A copy of what was laid down."""
        flat = np.frombuffer(self._mapped(written.size_bytes, grow=False), np.uint8, written.size_bytes).copy()
        return Frame(
            data=flat.view(written.dtype).reshape(written.shape),
            sequence=written.sequence,
            last=written.last,
            captured_s=written.captured_s,
            flags=written.flags,
        )

    def _mapped(self, size_bytes: int, *, grow: bool) -> mmap.mmap:
        if self._map is None or len(self._map) < size_bytes:
            self.close()
            length = max(size_bytes, mmap.PAGESIZE)
            if grow:
                os.ftruncate(self._descriptor, length)
            self._map = mmap.mmap(self._descriptor, length)
        return self._map

    def close(self) -> None:
        """Unmap; the descriptor is the owner's to close."""
        mapped, self._map = self._map, None
        if mapped is not None:
            mapped.close()


def main() -> None:
    """Serve the one driver whose maker comes first, until told to close or until the other side is gone."""
    socket, memory, lifeline = map(int, sys.argv[1:])
    die_with_parent(lifeline)
    connection = Connection(socket)
    try:
        _serve(connection, Memory(memory))
    except (EOFError, OSError):
        pass
    finally:
        # Vendors' libraries leave threads that would keep the interpreter from ending.
        os._exit(0)


def die_with_parent(lifeline: int) -> None:
    """The kernel ends this process when the other end of the pipe `lifeline` is closed, whatever it is doing.

    SIGIO's default action needs no thread and no interpreter lock, which a hung library may hold; unlike
    PR_SET_PDEATHSIG it does not fire when only the thread that started us ends.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0.0)[0]:
        os._exit(0)


def _serve(connection: Connection, memory: Memory) -> None:
    make: Callable[[], Driver | Bundle] = pickle.loads(connection.recv_bytes())
    driver = make()
    connection.send(READY)
    while True:
        verb, *arguments = connection.recv()
        if verb == "close":
            driver.close()
            return
        connection.send(_answer(driver, memory, verb, *arguments))


def _answer(driver: Driver | Bundle, memory: Memory, verb: str, timeout_s: float = 0.0) -> Reply:
    try:
        return _opened(driver) if verb == "open" else _read(driver, memory, timeout_s)
    except SourceEndedError as error:
        return Reply(traits=driver.traits, failure=Failure(message=str(error), ended=True))
    except SensorError as error:
        return Reply(traits=driver.traits, failure=Failure(message=str(error), gone=error.gone))
    except MarsEdgeError as error:
        return Reply(traits=driver.traits, failure=Failure(message=str(error)))
    except Exception as error:  # noqa: BLE001 - a bug of a driver, told to whoever reads from it
        message = f"{driver.traits.description}: {type(error).__name__}: {error}"
        return Reply(traits=driver.traits, failure=Failure(message=" ".join(message.split())))


def _opened(driver: Driver | Bundle) -> Reply:
    driver.open()
    if isinstance(driver, Bundle):
        return Reply(traits=driver.traits, channels=dict(driver.channels), refused=dict(driver.refused))
    return Reply(traits=driver.traits)


def _read(driver: Driver | Bundle, memory: Memory, timeout_s: float) -> Reply:
    if isinstance(driver, Bundle):
        taken = driver.read_any(timeout_s)
        channel, frame = ("", None) if taken is None else taken
    else:
        channel, frame = "", driver.read(timeout_s)
    return Reply(traits=driver.traits, written=None if frame is None else memory.write(frame), channel=channel)
