"""Three cameras at 30 frames per second to decisions: how old they are, and what they cost, ours and written by hand.

    python benchmarks/streaming.py --rounds 3 --seconds 5

Axes: R rounds. A round runs every contestant of `streaming_worker.py` once, in a new order and in a process of its own.
Most of an age is how long the oldest picture waited for the decision's turn, which the cameras' phases decide: with
phases that stay as they are, a run says little but which ones it had. So the cameras' clocks run free, as real ones do,
only faster: during a run they gain or lose whole periods (`TURNS`) on the processor's clock and on each other, and
every run meets all phases. Where they begin and which camera gains how much is drawn anew for each round, and is the
same for all contestants of a round.

The age is from the moment at which the oldest picture used was due at its camera to the decision in the application's
hands; the load is processor time over time, of one core, cameras included. MediaPipe is not here: its wheels for Python
hold finished tasks, no graphs of own nodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import engines
import numpy as np
from common import FOLDER, Row, Table, Who, note, part_parser, print_tables, table_of

from mars_edge.errors import MarsEdgeError
from mars_edge.options import positive

_RATE_HZ = 30.0
_PERIOD_MS = 1000.0 / _RATE_HZ
# Periods that a camera gains during a run; no two differ by none, nor any from the clock of a fixed rate.
TURNS = (-2.0, 1.0, 3.0)
PLAIN = "OpenCV + onnxruntime, dense, fp32"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A contestant and the arguments of its process; `file` is one of `engines.write_all`."""

    who: Who
    kind: str
    file: str
    options: Sequence[str] = ()


JOBS = (
    Job(who=Who(name="ours, .pte, int8, fixed rate", ours=True, precision="int8"), kind="ours", file="pte int8"),
    Job(
        who=Who(name="ours, .pte, int8, newest sample", ours=True, precision="int8"),
        kind="ours",
        file="pte int8",
        options=["--pace", "newest"],
    ),
    Job(who=Who(name="ours, .pte, fp32, fixed rate", ours=True, precision="fp32"), kind="ours", file="pte fp32"),
    Job(who=Who(name=PLAIN, precision="fp32"), kind="plain", file="dense"),
    Job(who=Who(name="OpenCV + onnxruntime, dense, int8", precision="int8"), kind="plain", file="static"),
    Job(
        who=Who(name="OpenCV + onnxruntime, dense, int8, fixed rate", precision="int8"),
        kind="plain",
        file="static",
        options=["--pace", "fixed"],
    ),
    Job(
        who=Who(name="GStreamer + OpenCV + onnxruntime, dense, fp32", precision="fp32"), kind="gstreamer", file="dense"
    ),
)
_COLUMNS = {
    "age_ms": ("Age at decision", "ms, median"),
    "age_p95_ms": ("Age at decision, 95th percentile", "ms, median"),
    "cpu_percent": ("Processor load", "% of a core, median"),
}
_CELLS = {"rate_hz": "decisions per second", "whole_percent": "on all cameras, %"}


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """When each camera has its first picture, and how many a second from then on."""

    phases_ms: Sequence[float]
    rates_hz: Sequence[float]


def clocks_of(rng: np.random.Generator, seconds: float) -> Clocks:
    """Any phases, and `TURNS` in any order over `seconds`."""
    rates_hz = _RATE_HZ + rng.permutation(TURNS) / seconds
    return Clocks(phases_ms=rng.uniform(0.0, _PERIOD_MS, len(TURNS)).tolist(), rates_hz=rates_hz.tolist())


def run(job: Job, paths: Mapping[str, Path], clocks: Clocks, seconds: float) -> dict[str, float] | str:
    """What one process found, or the last line of its complaint."""
    command = [sys.executable, str(FOLDER / "streaming_worker.py"), job.kind, str(paths[job.file]), *job.options]
    command += ["--seconds", str(seconds), "--phases", *map(str, clocks.phases_ms)]
    command += ["--rates", *map(str, clocks.rates_hz)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1].removeprefix("streaming: ")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def able(paths: Mapping[str, Path]) -> tuple[list[Job], list[Row]]:
    """The contestants that a short run can start, and a row for each of the others."""
    found, skipped = [], []
    for job in JOBS:
        answer = run(job, paths, Clocks(phases_ms=[0.0, 11.0, 22.0], rates_hz=[_RATE_HZ] * len(TURNS)), 0.2)
        if isinstance(answer, str):
            skipped.append(Row(who=job.who, reason=answer))
        else:
            found.append(job)
    return found, skipped


def measure(paths: Mapping[str, Path], rounds: int, seconds: float) -> list[Table]:
    """One table per column of `_COLUMNS`.

    Raises:
        MarsEdgeError: a contestant that could be started failed later.
    """
    jobs, skipped = able(paths)
    rng = np.random.default_rng(0)
    measured = {column: np.zeros((rounds, len(jobs))) for column in (*_COLUMNS, *_CELLS)}
    for at in range(rounds):
        note(f"  streaming: round {at + 1} of {rounds}")
        clocks = clocks_of(rng, seconds)
        for i in rng.permutation(len(jobs)).tolist():
            found = run(jobs[i], paths, clocks, seconds)
            # A contestant that has run before and fails now would leave a hole in the table.
            if isinstance(found, str):
                raise MarsEdgeError(f"{jobs[i].who.name}: {found}")
            for column, values in measured.items():
                values[at, i] = found[column]
    cells = {
        job.who.name: {title: f"{np.median(measured[column][:, i]):.1f}" for column, title in _CELLS.items()}
        for i, job in enumerate(jobs)
    }
    return [
        table_of(title, unit, [job.who for job in jobs], measured[column], base=PLAIN, skipped=skipped, more=cells)
        for column, (title, unit) in _COLUMNS.items()
    ]


def main() -> int:
    """Print the tables."""
    parser = part_parser("streaming.py", __doc__, rounds=8)
    parser.add_argument("--seconds", type=positive(float), default=5.0, help="of every process; default: 5")
    engines.add_network_options(parser)
    try:
        options = parser.parse_args()
        with tempfile.TemporaryDirectory(prefix="mars-edge-") as folder:
            _, paths = engines.exported(options, Path(folder))
            tables = measure(paths, options.rounds, options.seconds)
    except MarsEdgeError as error:
        print(f"streaming: {error}", file=sys.stderr)
        return error.exit_code
    print_tables(tables, as_json=options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
