"""Decisions of several processes in turns: what `methods.py` times, each process with its own pool of threads.

Axes: R rounds, P processes. Each round every process has one turn, in a new order, while the others sleep. A turn is a
few decisions with everything present and with each modality alone, each after a pause.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from subset_cost import sample_of

from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.manifest import Manifest
from mars_runtime.engines import Engine, open_engine
from mars_runtime.machine import usable_cores

_WARM_UP, _CALLS, _PAUSE_S = 2, 5, 0.005
# Of the cores' time, by other processes; /proc/stat counts in steps of 10 ms.
_OTHERS = 0.1
_WAIT_S = 0.1
_STAT = Path("/proc/stat")
WHOLE = "decision, all present"


@dataclass(frozen=True, kw_only=True)
class Process:
    """What one process runs.

    Attributes:
        precision: the artifact's.
    """

    path: str
    precision: str
    threads: int


def turn(
    engine: Engine, samples: Mapping[str, NDArray[np.float32]], *, pause_s: float, fastest: bool
) -> dict[str, float]:
    """Milliseconds of every method and decision: medians over a few calls, or the fastest one."""
    for _ in range(_WARM_UP):
        engine.infer(samples, {})
    found: dict[str, list[float]] = {}
    for _ in range(_CALLS):
        for present in (tuple(samples), *((name,) for name in samples)):
            given = {name: samples[name] for name in present}
            time.sleep(pause_s)
            begin = time.perf_counter()
            inference = engine.infer(given, {})
            elapsed_ms = 1e3 * (time.perf_counter() - begin)
            if len(present) == len(samples):
                for stage, ms in inference.latency_ms.items():
                    name, share = _method(stage, engine.manifest)
                    found.setdefault(name, []).append(ms / share)
            found.setdefault(decision(present, engine.manifest), []).append(elapsed_ms)
    return {name: float(np.min(values) if fastest else np.median(values)) for name, values in found.items()}


def _method(stage: str, manifest: Manifest) -> tuple[str, int]:
    """The name of a stage's method, and how often the stage runs it."""
    if stage == "experts":
        return "an expert", manifest.active_experts + manifest.shared_expert
    return {"fuse": "route", "graph": "graph"}.get(stage, stage.replace("encode.", "encode_")), 1


def decision(present: Sequence[str], manifest: Manifest) -> str:
    """How the tables call a decision with `present`."""
    return WHOLE if len(present) == len(manifest.names) else f"decision, {present[0]} alone"


def serve(path: str, threads: int, fastest: bool) -> None:
    """A turn for every line of stdin, as a line of JSON on stdout."""
    engine = open_engine(path, threads=threads, self_test=False)
    samples = sample_of(engine.manifest)
    print(json.dumps(engine.name), flush=True)
    for _ in sys.stdin:
        begin = time.process_time()
        found = turn(engine, samples, pause_s=_PAUSE_S, fastest=fastest)
        print(json.dumps({"ms": found, "cpu_s": time.process_time() - begin}), flush=True)


def _busy_s() -> float:
    """Seconds that all cores together were not idle since the start of the system (proc_stat(5)); 0 elsewhere."""
    if not _STAT.is_file():
        return 0.0
    user, nice, system, _idle, _waiting, *interrupts = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _busy_share() -> float:
    """Of the cores' time, over a moment in which nothing of ours runs."""
    busy_s = _busy_s()
    time.sleep(_WAIT_S)
    return (_busy_s() - busy_s) / (usable_cores() * _WAIT_S)


class Turns:
    """The processes of one model; each sleeps until it is its turn."""

    def __init__(self, processes: Sequence[Process], *, fastest: bool) -> None:
        """Starts them all and waits until they have opened their files."""
        flags = ["--fastest"] if fastest else []
        self._running = [
            subprocess.Popen(
                [sys.executable, __file__, p.path, str(p.threads), *flags],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for p in processes
        ]  # fmt: skip
        self.engines = [str(self._read(i)) for i in range(len(processes))]

    def take(self, index: int) -> tuple[dict[str, float], float]:
        """One turn of one of them, and the share of the cores' time that other processes used meanwhile."""
        stdin = self._running[index].stdin
        assert stdin is not None
        begin, busy_s = time.perf_counter(), _busy_s()
        stdin.write("turn\n")
        stdin.flush()
        found = self._read(index)
        available_s = usable_cores() * (time.perf_counter() - begin)
        return found["ms"], max(0.0, _busy_s() - busy_s - found["cpu_s"]) / available_s

    def quiet(self, index: int, until: float) -> tuple[dict[str, float], bool]:
        """One turn that nothing disturbed, or with False the one that was taken last when the time was over."""
        while True:
            while time.monotonic() < until and _busy_share() > _OTHERS:
                pass
            found, others = self.take(index)
            if others <= _OTHERS or time.monotonic() > until:
                return found, others <= _OTHERS

    def close(self) -> None:
        """Ends them."""
        for process in self._running:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def _read(self, index: int) -> Any:
        process = self._running[index]
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UsageError(f"a process that was timed ended with exit code {process.wait()}; its words are above")
        return json.loads(line)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """All turns of one model.

    Attributes:
        names: what was timed.
        ms: (R, P, names).
        disturbed: how many of the R x P turns other work disturbed.
    """

    engine: str
    names: Sequence[str]
    ms: NDArray[np.float64]
    disturbed: int


def measure(processes: Sequence[Process], rounds: int, *, fastest: bool, patience_s: float) -> Taken:
    """Every process has a turn in every round.

    Raises:
        UsageError: a file cannot be run.
    """
    rng = np.random.default_rng(0)
    turns = Turns(processes, fastest=fastest)
    disturbed, until = 0, time.monotonic() + patience_s
    try:
        # The first turns load methods.
        names = [list(turns.take(i)[0]) for i in range(len(processes))][0]  # noqa: RUF015
        ms = np.zeros((rounds, len(processes), len(names)))
        for at in range(rounds):
            for i in rng.permutation(len(processes)).tolist():
                taken, quiet = turns.quiet(i, until)
                ms[at, i] = [taken[name] for name in names]
                disturbed += not quiet
    finally:
        turns.close()
    return Taken(engine=turns.engines[0], names=names, ms=ms, disturbed=disturbed)


def main(path: str, threads: str, *flags: str) -> int:
    """One process of `Turns`."""
    try:
        serve(path, int(threads), "--fastest" in flags)
    except MarsEdgeError as error:
        print(f"method_turns: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
