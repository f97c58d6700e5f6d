"""The C++ runner beside Python's native engine: size of the programs, peak resident memory, time of a decision.

    runtime/native/build.sh && python benchmarks/native_runner.py build/native-x86_64

A round starts each once in a fresh process, in turn: load, self-test, then N decisions with everything present, on one
thread. Memory is the process's own VmHWM. Sizes are of the programs when stripped; the libraries are the wheel's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mars_edge.manifest import Manifest
from mars_runtime.engines import open_engine
from mars_runtime.machine import this_machine
from mars_runtime.models import find_model

_PYTHON = """
import json, sys, time
import numpy as np
from mars_runtime.engines import open_engine
model, folder, repeat = sys.argv[1], sys.argv[2], int(sys.argv[3])
engine = open_engine(model, threads=1, engine="executorch-native")
names = {m.name: m.shape for m in engine.manifest.modalities}
inputs = {name: np.fromfile(f"{folder}/{name}.f32", np.float32).reshape(shape) for name, shape in names.items()}
times = []
for _ in range(repeat):
    begin = time.perf_counter()
    engine.infer(inputs, {})
    times.append((time.perf_counter() - begin) * 1e3)
with open("/proc/self/status") as status:
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"latency_ms": {"total": sorted(times)[repeat // 2]}, "peak_kib": peak_kib}))
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One fresh process: the median time of its decisions, and the most memory it ever held."""

    median_ms: float
    peak_mib: float


def run(command: Sequence[str]) -> Run:
    """Runs the command to its end and reads its JSON line.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    line = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return Run(median_ms=line["latency_ms"]["total"], peak_mib=line["peak_kib"] / 1024)


def write_samples(manifest: Manifest, folder: Path) -> list[str]:
    """One random sample per modality, and the runner's flags that name them."""
    random = np.random.default_rng(0)
    flags = []
    for modality in manifest.modalities:
        path = folder / f"{modality.name}.f32"
        path.write_bytes(random.random(modality.shape, dtype=np.float32).tobytes())
        flags += ["--sample", f"{modality.name}={path}"]
    return flags


def stripped_bytes(path: Path, strip: str) -> int:
    """Size of the program or library without symbols; the file stays as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copy(path, scratch))
        subprocess.run([strip, "--strip-unneeded", str(copy)], check=True)
        return copy.stat().st_size


def libraries(runner: Path) -> list[Path]:
    """The ExecuTorch libraries the runner loads, as the linker finds them."""
    listed = subprocess.run(["ldd", str(runner)], capture_output=True, text=True, check=True).stdout
    found = [line.split()[2] for line in listed.splitlines() if "libexecutorch" in line]
    return sorted(map(Path, found))


def print_sizes(runner: Path, strip: str) -> None:
    """What has to be copied to a device besides the model."""
    print("\n| file | stripped, KiB |\n|---|---|")
    total = 0
    for path in (runner, *libraries(runner)):
        size = stripped_bytes(path, strip)
        total += size
        print(f"| {path.name} | {size / 1024:.0f} |")
    print(f"| together | {total / 1024:.0f} |")


def row(name: str, model: str, runs: Iterable[Run]) -> str:
    """One line of the table: medians over the rounds, and the largest memory."""
    listed = list(runs)
    time_ms = statistics.median(run.median_ms for run in listed)
    return f"| {model} | {name} | {time_ms:.3f} | {max(run.peak_mib for run in listed):.1f} |"


def main() -> int:
    """Prints two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, metavar="BUILD_DIR", help="what runtime/native/build.sh was given")
    parser.add_argument("--model", action="append", metavar="FILE", help="repeatable (default: the bundled .pte files)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="fresh processes per row (default 5)")
    parser.add_argument("--repeat", type=int, default=500, metavar="N", help="decisions per process (default 500)")
    options = parser.parse_args()
    runner = options.build / "mars_runner"
    machine = this_machine()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}{', busy with other work' if machine.is_busy else ''}\n")
    print("| model | engine | decision p50, ms | peak resident, MiB |\n|---|---|---|---|")
    for model in options.model or ["face_antispoof.pte", "spoken_digits.pte"]:
        measure(runner, model, options.rounds, options.repeat)
    print_sizes(runner, "strip")
    return 0


def measure(runner: Path, model: str, rounds: int, repeat: int) -> None:
    """Prints the two rows of one model."""
    engine = open_engine(model)
    engine.close()
    path = str(find_model(model))
    with tempfile.TemporaryDirectory() as scratch:
        flags = write_samples(engine.manifest, Path(scratch))
        ours = [str(runner), "--model", path, *flags, "--threads", "1", "--repeat", str(repeat), "--memory"]
        python = [sys.executable, "-c", _PYTHON, path, scratch, str(repeat)]
        pairs = [(run(ours), run(python)) for _ in range(rounds)]
    print(row("mars_runner (C++)", model, [pair[0] for pair in pairs]), flush=True)
    print(row("executorch-native (Python)", model, [pair[1] for pair in pairs]), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
