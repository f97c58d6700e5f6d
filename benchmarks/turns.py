"""Processes that take turns, each with contestants of its own: for what no single process can hold.

Axes: R rounds, C calls of a process.
How many threads a pool has is fixed when a process loads it, so that two numbers need two processes. They are prepared
one after another and then time a round each in turn, in an order that changes: whatever else the machine does meets
all of them, and a round of one may be compared with the same round of another. While one works the others wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from subset_cost import WARM_UP, one_round

from mars_edge.errors import MarsEdgeError


def serve(prepare: Callable[[], tuple[Any, Sequence[Callable[[], object]]]], *, pause_s: float) -> None:
    """A process's side: says what `prepare` found, then times its calls once whenever a line arrives, until none does.

    What anything else prints goes to stderr.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        found, calls = prepare()
        print(json.dumps(found), file=answers, flush=True)
        rng = np.random.default_rng(0)
        for _ in sys.stdin:
            print(json.dumps(one_round(calls, rng, pause_s=pause_s).tolist()), file=answers, flush=True)


@dataclass(frozen=True, kw_only=True)
class Played:
    """What one process said of itself, and its times in milliseconds (R, C)."""

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
        measured: list[list[list[float]]] = [[] for _ in started]
        rng = np.random.default_rng(1)
        for at in range(-WARM_UP, rounds):
            for i in rng.permutation(len(started)).tolist():
                times = started[i].next_round()
                if at >= 0:
                    measured[i].append(times)
    return [Played(found=one.found, measured=np.array(times)) for one, times in zip(started, measured, strict=True)]


class Player:
    """A process that has been started, from the outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._requests, self._answers = process, process.stdin, process.stdout
        self.found = self._answer()

    def next_round(self) -> list[float]:
        """The times of one round."""
        self._requests.write("\n")
        self._requests.flush()
        times: list[float] = self._answer()
        return times

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
