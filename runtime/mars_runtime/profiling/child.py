"""A fresh process that does one thing for this one and dies with it.

Memory, start-up and where a process's memory happens to lie are properties of a process: what is said about them is
measured in several.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any

from mars_edge.errors import EngineError, MarsEdgeError
from mars_runtime.interpreter import environment

_BOOT = "import sys; from mars_runtime.profiling.child import obey; obey(int(sys.argv[1]))"
_SILENCE_S = 300.0

# Told the share that is done, 0..1.
Progress = Callable[[float], None]
Task = Callable[[Progress], Any]


def in_child(task: Task, *, progress: Progress | None = None, silence_s: float = _SILENCE_S) -> Any:
    """What `task` returns, called in a fresh interpreter that is gone when this returns or raises.

    Args:
        task: picklable, as its result is; it is given where to tell its progress.
        progress: is told what the task tells.
        silence_s: a child that says nothing for so long is given up.

    Raises:
        MarsEdgeError: as the task raised it.
        EngineError: the process died, or fell silent.
    """
    ours, theirs = Pipe()
    with ours, tempfile.TemporaryFile() as said:
        process = _started(theirs, said)
        try:
            ours.send_bytes(pickle.dumps(task))
            return _answer(ours, progress or (lambda _: None), silence_s)
        except (EOFError, OSError) as error:
            raise EngineError(f"profile: a process of its own failed: {_last_line(process, said)}") from error
        finally:
            process.kill()
            process.wait()


def part(progress: Progress, index: int, count: int) -> Progress:
    """Where the child `index` of `count`, one after the other, tells its share of the whole."""
    return lambda share: progress((index + share) / count)


def _started(theirs: Connection, said: IO[bytes]) -> subprocess.Popen[bytes]:
    with theirs:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            # Ctrl-C is meant for the parent, which ends the child.
            start_new_session=True,
            env=environment(),
        )


def _answer(ours: Connection, progress: Progress, silence_s: float) -> Any:
    while ours.poll(silence_s):
        what, told = ours.recv()
        if what == "done":
            return told
        if what == "failed":
            raise told
        progress(told)
    raise EngineError(f"profile: a process of its own said nothing for {silence_s:g} s")


def _last_line(process: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    code = process.wait()
    said.seek(0)
    lines = said.read().decode("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"


def obey(descriptor: int) -> None:
    """The child: do what comes through the pipe, and send back what came of it."""
    connection = Connection(descriptor)
    task: Task = pickle.loads(connection.recv_bytes())
    threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
    try:
        connection.send(("done", task(lambda share: connection.send(("share", share)))))
    except MarsEdgeError as error:
        connection.send(("failed", error))


def _die_with(connection: Connection) -> None:
    """The parent sends nothing more: what can be read is the end of it."""
    connection.poll(None)
    os._exit(1)
