"""Time from process start to the first decision, and peak resident memory, per engine.

    python benchmarks/startup.py --model face_antispoof.pte --model face_antispoof.onnx

Each run is a fresh process. "stream" is `mars-edge run` on its default sensors up to the first decision line;
"engine" is only opening the artifact, its self-test, and one inference on the golden input.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mars_edge.artifact import verify
from mars_runtime.engines import ENGINES, engine_status
from mars_runtime.models import find_model

ENGINE_ONLY = """
import sys
from mars_runtime.engines import open_engine
engine = open_engine(sys.argv[1], engine=sys.argv[2])
golden = engine.manifest.golden
engine.infer({name: tensor.array() for name, tensor in golden.inputs.items()}, {})
print("done", flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One fresh process.

    Attributes:
        first_line_s: wall time from its start to its first line on stdout.
        cpu_s: processor time of the whole process, which a busy machine does not stretch much.
        peak_mib: the most resident memory it ever held.
    """

    first_line_s: float
    cpu_s: float
    peak_mib: float


def measure(command: Sequence[str]) -> Start:
    """Runs the command to its end.

    Raises:
        subprocess.CalledProcessError: it failed or printed nothing.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    line = process.stdout.readline()
    first_line_s = time.perf_counter() - begin
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or not line:
        raise subprocess.CalledProcessError(process.returncode, command)
    cpu_s = usage.ru_utime + usage.ru_stime
    return Start(first_line_s=first_line_s, cpu_s=cpu_s, peak_mib=usage.ru_maxrss / 1024)


def commands(model: str) -> Iterator[tuple[str, str, list[str]]]:
    """Scenario, engine and command line for every engine of this machine that fits the model."""
    fitting = ENGINES[verify(find_model(model)).format]
    for status in engine_status():
        if status.name not in fitting:
            continue
        if not status.available:
            print(f"{status.name}: {status.detail}", file=sys.stderr)
            continue
        run = ["run", "--model", model, "--engine", status.name, "--max-decisions", "1", "--quiet"]
        yield "stream", status.name, [sys.executable, "-m", "mars_edge", *run]
        yield "engine", status.name, [sys.executable, "-c", ENGINE_ONLY, model, status.name]


def main() -> int:
    """Prints one Markdown table of medians, with the slowest first line in brackets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="FILE", help="repeatable")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="fresh processes per row (default 5)")
    options = parser.parse_args()
    print("| model | engine | what | first line, s (slowest) | processor time, s | peak resident, MiB |")
    print("|---|---|---|---|---|---|")
    for model in options.model:
        for scenario, engine, command in commands(model):
            measure(command)  # fills the page cache and the bytecode cache
            starts = [measure(command) for _ in range(options.repeats)]
            seconds = [start.first_line_s for start in starts]
            peak = max(start.peak_mib for start in starts)
            times = f"{statistics.median(seconds):.2f} ({max(seconds):.2f})"
            cpu_s = statistics.median(start.cpu_s for start in starts)
            print(f"| {model} | {engine} | {scenario} | {times} | {cpu_s:.2f} | {peak:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
