"""Three cameras at 30 frames per second to decisions: how old they are, and what they cost, ours and written by hand.

    python benchmarks/streaming.py --rounds 3 --seconds 5

Axes: R rounds. A round runs every contestant of `streaming_worker.py` once, in a new order and in a process of its own,
with cameras that are out of phase by other times than in the round before, the same for all. The age is from the
receipt of the oldest frame used to the decision in the application's hands; the load is processor time over time, of
one core, cameras included. MediaPipe is not here: its wheels for Python hold finished tasks, no graphs of own nodes.
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

_PERIOD_MS = 1000.0 / 30.0
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
        options=["--newest"],
    ),
    Job(who=Who(name="ours, .pte, fp32, fixed rate", ours=True, precision="fp32"), kind="ours", file="pte fp32"),
    Job(who=Who(name=PLAIN, precision="fp32"), kind="plain", file="dense"),
    Job(who=Who(name="OpenCV + onnxruntime, dense, int8", precision="int8"), kind="plain", file="static"),
    Job(
        who=Who(name="GStreamer + OpenCV + onnxruntime, dense, fp32", precision="fp32"), kind="gstreamer", file="dense"
    ),
)
_COLUMNS = {
    "age_ms": ("Age at decision", "ms, median"),
    "age_p95_ms": ("Age at decision, 95th percentile", "ms, median"),
    "cpu_percent": ("Processor load", "% of a core, median"),
}


def run(job: Job, paths: Mapping[str, Path], phases_ms: Sequence[float], seconds: float) -> dict[str, float] | str:
    """What one process found, or the last line of its complaint."""
    command = [sys.executable, str(FOLDER / "streaming_worker.py"), job.kind, str(paths[job.file]), *job.options]
    command += ["--seconds", str(seconds), "--phases", *map(str, phases_ms)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1].removeprefix("streaming: ")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def able(paths: Mapping[str, Path]) -> tuple[list[Job], list[Row]]:
    """The contestants that a short run can start, and a row for each of the others."""
    found, skipped = [], []
    for job in JOBS:
        answer = run(job, paths, [0.0, 11.0, 22.0], 0.2)
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
    measured = {column: np.zeros((rounds, len(jobs))) for column in (*_COLUMNS, "rate_hz")}
    for at in range(rounds):
        note(f"  streaming: round {at + 1} of {rounds}")
        phases_ms = [0.0, *rng.uniform(0.0, _PERIOD_MS, 2).tolist()]
        for i in rng.permutation(len(jobs)).tolist():
            found = run(jobs[i], paths, phases_ms, seconds)
            # A contestant that has run before and fails now would leave a hole in the table.
            if isinstance(found, str):
                raise MarsEdgeError(f"{jobs[i].who.name}: {found}")
            for column, values in measured.items():
                values[at, i] = found[column]
    rates = {
        job.who.name: {"decisions per second": f"{np.median(measured['rate_hz'][:, i]):.1f}"}
        for i, job in enumerate(jobs)
    }
    return [
        table_of(title, unit, [job.who for job in jobs], measured[column], base=PLAIN, skipped=skipped, more=rates)
        for column, (title, unit) in _COLUMNS.items()
    ]


def main() -> int:
    """Print the tables."""
    parser = part_parser("streaming.py", __doc__, rounds=5)
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
