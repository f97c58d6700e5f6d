"""A few worker processes that take one task after the other; a worker that dies costs its task and nothing else.

`concurrent.futures` gives up on every task when one process is killed, so the hand-over is here: a pipe per worker,
read by the parent. A worker ends when its pipe closes, on SIGTERM, or as soon as its parent is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Literal

from mars_edge.errors import MarsEdgeError, UsageError

_JOIN_S = 5.0

Report = Callable[[Any], None]
"""Tells the parent how far a task is; any picklable value."""
Work = Callable[[Any, Report], None]
"""What a worker does with a task; picklable: a function of a module, or a frozen dataclass with `__call__`."""


class RefusedError(UsageError):
    """A mistake that every task shares: the parent stops instead of trying the others."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something a worker said about task number `task`.

    Attributes:
        kind: "started", "progress" (value: what was reported), "done", "failed" or "refused".
        value: for "failed" and "refused" the one-line reason.
        trace: for "failed": the traceback of an error nobody raised on purpose.
    """

    task: int
    kind: Literal["started", "progress", "done", "failed", "refused"]
    value: Any = None
    trace: str = ""


@dataclass(kw_only=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: int | None = None


def run_tasks(
    tasks: Sequence[Any], work: Work, *, jobs: int, threads: int, after: Sequence[int | None] = ()
) -> Generator[Event, None, None]:
    """What happens while `jobs` processes of `threads` threads each work through the tasks, in order.

    `after[i]` is the number of a task that must have ended, well or not, before task i starts.
    Closing the iterator, or an exception in its reader, ends the workers.

    Raises:
        RefusedError: a task raised it; the workers are ended first.
    """
    waits = list(after) or [None] * len(tasks)
    pending = list(range(len(tasks)))
    workers: list[_Worker] = []
    try:
        while pending or any(w.task is not None for w in workers):
            unfinished = {*pending, *(w.task for w in workers if w.task is not None)}
            ready = [i for i in pending if waits[i] not in unfinished]
            for task in ready[: jobs - sum(w.task is not None for w in workers)]:
                pending.remove(task)
                _hand_over(_idle(workers, work, threads), task, tasks[task])
                yield Event(task=task, kind="started")
            yield from _heard(workers)
    finally:
        _end(workers)


def _idle(workers: list[_Worker], work: Work, threads: int) -> _Worker:
    for worker in workers:
        if worker.task is None:
            return worker
    workers.append(_start(work, threads))
    return workers[-1]


def _start(work: Work, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work))
    with _interrupt_ignored(), _thread_limit(threads):
        process.start()
    # Only the worker may hold its end: its death then closes the pipe.
    theirs.close()
    return _Worker(process=process, pipe=ours)


@contextmanager
def _interrupt_ignored() -> Iterator[None]:
    """Ctrl-C reaches the whole process group; workers are ended by their parent, in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _thread_limit(threads: int) -> Iterator[None]:
    """OpenMP reads its limit once, when torch is imported: before a worker's first line runs."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _hand_over(worker: _Worker, number: int, task: Any) -> None:
    worker.task = number
    # A worker that died while idle is noticed as any other death is: its pipe is at its end.
    try:
        worker.pipe.send((number, task))
    except BrokenPipeError:
        return


def _heard(workers: list[_Worker]) -> Iterator[Event]:
    """The next events of busy workers; waits for at least one."""
    busy = [w for w in workers if w.task is not None]
    spoken = wait([w.pipe for w in busy])
    for worker in [w for w in busy if w.pipe in spoken]:
        try:
            event = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            event = _death(worker)
            workers.remove(worker)
        if event.kind == "refused":
            raise RefusedError(event.value)
        if event.kind in ("done", "failed"):
            worker.task = None
        yield event


def _death(worker: _Worker) -> Event:
    worker.process.join(_JOIN_S)
    worker.pipe.close()
    code = worker.process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    assert worker.task is not None
    return Event(task=worker.task, kind="failed", value=f"its process {how}")


def _end(workers: Sequence[_Worker]) -> None:
    """Idle workers leave when their pipe closes; busy ones are told to."""
    for worker in workers:
        worker.pipe.close()
        if worker.task is not None:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(_JOIN_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(_JOIN_S)


def _serve(pipe: Connection, work: Work) -> None:
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            number, task = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(number, task, work, pipe))


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # A killed parent cannot end us, and its successor will train this cell: two may not write to one folder.
    os._exit(1)


def _outcome(number: int, task: Any, work: Work, pipe: Connection) -> Event:
    try:
        work(task, lambda value: pipe.send(Event(task=number, kind="progress", value=value)))
    except RefusedError as error:
        return Event(task=number, kind="refused", value=str(error))
    except MarsEdgeError as error:
        return Event(task=number, kind="failed", value=str(error))
    except Exception as error:  # noqa: BLE001 - whatever breaks one cell is told, and the others go on
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()])
        return Event(task=number, kind="failed", value=reason, trace=traceback.format_exc())
    return Event(task=number, kind="done")
