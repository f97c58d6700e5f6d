"""Trains the toy, kills it with SIGKILL and goes on, again and again: `python killed_training.py FOLDER`.

    FOLDER/whole        never killed
    FOLDER/random       killed at random moments until it got through
    FOLDER/N            killed just before its N-th file got its name, then run once more

Prints the number of kills as JSON. Children are forks of this process, which itself trains nothing: what takes
seconds, importing torch, is done once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # an optimiser imports it: seconds, in every child
from toy_training import RECIPE, toy_data

from mars_training.checkpoint import is_finished
from mars_training.train import train

EVERY_STEP = dataclasses.replace(RECIPE, schedule=dataclasses.replace(RECIPE.schedule, checkpoint_every_s=1e-9))


def start(folder: Path, *, die_at_file: int = 0) -> int:
    """The process id of a child that trains into `folder`."""
    child = os.fork()
    if child:
        return child
    try:
        if die_at_file:
            _die_at(die_at_file)
        torch.set_num_threads(1)
        # A kill may come between the end of training and that of the process.
        if not is_finished(folder):
            train(EVERY_STEP, toy_data(), folder, seed=0)
        os._exit(0)
    finally:
        os._exit(1)


def _die_at(number: int) -> None:
    replace, seen = Path.replace, 0

    def dying(path: Path, target: Path) -> Path:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.replace = dying  # type: ignore[method-assign]


def killed(child: int) -> bool:
    """Waits for the child: whether it was killed; a child that failed ends everything."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        sys.exit("a training failed")
    return False


def kill_at_random(folder: Path) -> int:
    """Kills after random delays, each a little longer than the one before, until a child gets through."""
    delays = random.Random(0)
    kills = 0
    while True:
        child = start(folder)
        time.sleep(delays.uniform(0.0, 0.02 * (2 + kills)))
        os.kill(child, signal.SIGKILL)
        if not killed(child):
            return kills
        kills += 1


def kill_at_every_file(folder: Path) -> int:
    """One training killed at each file that a whole one writes."""
    for number in itertools.count(1):
        run = folder / str(number)
        if not killed(start(run, die_at_file=number)):
            return number - 1
        if killed(start(run)):
            sys.exit("nobody killed this one")
    raise AssertionError


def main() -> None:
    """Runs all three and prints the counts."""
    folder = Path(sys.argv[1])
    if killed(start(folder / "whole")):
        sys.exit("nobody killed this one")
    print(json.dumps({"random": kill_at_random(folder / "random"), "files": kill_at_every_file(folder)}))


if __name__ == "__main__":
    main()
