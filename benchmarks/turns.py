"""Contestants that take turns, in one process or, with pools of different sizes, in several.

Axes: R rounds, S contestants, W calls of each.
A turn is a few calls that are not counted, so that the contestant's pool is awake and its weights are in the cache, as
on a device that runs nothing else; then each of its W calls once, after a pause as between decisions. Pools spin after
a call: onnxruntime's, as it is installed, for 35 ms here, which keeps it fast and takes a core from whoever is next.
So nobody's turn begins before that is over.

How many threads a pool has is fixed when a process loads it, so that two numbers need two processes. They are prepared
one after another and then do a round each, in an order that changes: whatever else the machine does meets all of them,
and a round of one may be compared with the same round of another. While one works the others wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import MarsEdgeError

Calls = Sequence[Callable[[], object]]

WARM_UP = 3
"""Rounds that are not counted."""
_UNCOUNTED = 3
_PAUSE_S = 0.002
_SPINNING_S = 0.05


def times(contestants: Sequence[Calls], rounds: int, *, threads: int) -> NDArray[np.float64]:
    """Milliseconds (R, S, W); every round takes all contestants in a new order."""
    rng = np.random.default_rng(0)
    return np.array([one_round(contestants, rng, threads=threads) for _ in range(WARM_UP + rounds)])[WARM_UP:]


def one_round(contestants: Sequence[Calls], rng: np.random.Generator, *, threads: int) -> NDArray[np.float64]:
    """Milliseconds (S, W) of a turn of each, in the order that `rng` draws."""
    found = np.zeros((len(contestants), len(contestants[0])))
    for i in rng.permutation(len(contestants)).tolist():
        # With one thread there is no pool that could spin.
        time.sleep(_SPINNING_S if threads > 1 else 0.0)
        for at in range(_UNCOUNTED):
            _timed(contestants[i][at % len(contestants[i])])
        for at in rng.permutation(len(contestants[i])).tolist():
            found[i, at] = _timed(contestants[i][at])
    return found


def _timed(call: Callable[[], object]) -> float:
    time.sleep(_PAUSE_S)
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def serve(prepare: Callable[[], tuple[Any, Sequence[Calls]]], *, threads: int) -> None:
    """A process's side: says what `prepare` found, then does a round whenever a line arrives, until none does.

    What anything else prints goes to stderr.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        found, contestants = prepare()
        print(json.dumps(found), file=answers, flush=True)
        rng = np.random.default_rng(0)
        for _ in sys.stdin:
            measured = one_round(contestants, rng, threads=threads)
            print(json.dumps(measured.tolist()), file=answers, flush=True)


@dataclass(frozen=True, kw_only=True)
class Played:
    """What one process said of itself, and its times in milliseconds (R, S, W)."""

    found: Any
    measured: NDArray[np.float64]


def play(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], rounds: int) -> list[Played]:
    """`rounds` rounds of every process that `serve`s, after some that are not counted.

    Args:
        commands: of each process its command and its environment.

    Raises:
        MarsEdgeError: a process ended; its own words were on stderr.
    """
    with ExitStack() as stack:
        # One is ready before the next one begins: preparing is not to meet anyone's first rounds.
        started = [stack.enter_context(_started(*each)) for each in commands]
        measured: list[list[list[list[float]]]] = [[] for _ in started]
        rng = np.random.default_rng(1)
        for at in range(-WARM_UP, rounds):
            for i in rng.permutation(len(started)).tolist():
                found = started[i].next_round()
                if at >= 0:
                    measured[i].append(found)
    return [Played(found=one.found, measured=np.array(each)) for one, each in zip(started, measured, strict=True)]


class Player:
    """A process that has been started, from the outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._requests, self._answers = process, process.stdin, process.stdout
        self.found = self._answer()

    def next_round(self) -> list[list[float]]:
        """The times (S, W) of one round."""
        self._requests.write("\n")
        self._requests.flush()
        found: list[list[float]] = self._answer()
        return found

    def end(self) -> None:
        """Wait until it has ended: there is nothing more to read for it."""
        self._requests.close()
        self._process.wait()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise MarsEdgeError(f"a process of this benchmark ended with exit code {self._process.wait()}")
        return json.loads(line)


@contextmanager
def _started(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Player]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        try:
            player = Player(process)
            yield player
            player.end()
        finally:
            process.kill()
