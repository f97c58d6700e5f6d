"""What each engine costs before its first answer and beside it: start-up, memory, size on disk.

    python benchmarks/footprint.py --rounds 5

Axes: R rounds. A round starts every contestant once in a fresh process, in a new order: imports, load, one decision
with everything present. Memory is the most that was ever resident. Files are in the page cache, and the compiler's
cache is filled. Size is that of the installed packages and all that they require, without byte code; OpenCV is counted
for everyone, because frames have to come from somewhere.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import engines
import networks
import numpy as np
from common import FOLDER, Row, Table, Who, note, part_parser, print_tables, table_of
from contestants import not_converted
from packaging.requirements import Requirement

from mars_edge.errors import MarsEdgeError

BASE = "onnxruntime, dense, fp32"
_MIB = 2.0**20
_PACKAGES = ("mars_edge", "mars_runtime", "mars_training", "mars_export")
_OURS = """
import sys
import numpy as np
from mars_runtime.engines import open_engine
engine = open_engine(sys.argv[1], threads=1)
engine.infer({m.name: np.zeros(m.shape, np.float32) for m in engine.manifest.modalities}, {})
"""
_ONNXRUNTIME = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
kinds = {"tensor(bool)": bool, "tensor(float)": np.float32}
session.run(None, {i.name: np.ones(i.shape, kinds[i.type]) for i in session.get_inputs()})
"""
_OPENVINO = """
import sys
import numpy as np
import openvino
settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
model = openvino.Core().compile_model(sys.argv[1], "CPU", settings)
model({i.any_name: np.ones(i.shape, i.element_type.to_dtype()) for i in model.inputs})
"""
_LITERT = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
for given in interpreter.get_input_details():
    interpreter.set_tensor(given["index"], np.ones(given["shape"], np.float32))
interpreter.invoke()
"""
_TORCH = """
import sys
from pathlib import Path
import torch
from to_litert import load
torch.set_num_threads(1)
module, source = load(Path(sys.argv[1]))
module = torch.compile(module) if sys.argv[2:] else module
with torch.inference_mode():
    module(torch.ones(1, len(source.names)), *(torch.ones(1, *m.shape) for m in source.modalities))
"""
# Not the peak that the parent is told of: that begins with the parent's own.
_SAY_PEAK = """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A contestant, its program, and the file of `engines.write_all` that it loads."""

    who: Who
    code: str
    file: str
    package: str = ""
    options: Sequence[str] = ()


STARTS = (
    Start(who=Who(name="ours, .pte, fp32", ours=True, precision="fp32"), code=_OURS, file="pte fp32"),
    Start(who=Who(name="ours, .pte, int8", ours=True, precision="int8"), code=_OURS, file="pte int8"),
    Start(who=Who(name="ours, .onnx, fp32", ours=True, precision="fp32"), code=_OURS, file="onnx fp32"),
    Start(who=Who(name="ours, .onnx, int8", ours=True, precision="int8"), code=_OURS, file="onnx int8"),
    Start(who=Who(name=BASE, precision="fp32"), code=_ONNXRUNTIME, file="dense", package="onnxruntime"),
    Start(
        who=Who(name="onnxruntime, dense, int8", precision="int8"),
        code=_ONNXRUNTIME,
        file="static",
        package="onnxruntime",
    ),
    Start(who=Who(name="OpenVINO, dense, fp32", precision="fp32"), code=_OPENVINO, file="dense", package="openvino"),
    Start(who=Who(name="LiteRT, dense, fp32", precision="fp32"), code=_LITERT, file="litert", package="ai_edge_litert"),
    Start(who=Who(name="PyTorch eager, dense, fp32", precision="fp32"), code=_TORCH, file="plain"),
    Start(
        who=Who(name="torch.compile, dense, fp32", precision="fp32"), code=_TORCH, file="plain", options=["compiled"]
    ),
)
# What is installed for a device that has cameras.
INSTALLS: Mapping[Who, Sequence[str]] = {
    Who(name="ours, for .pte", ours=True): ["mars-edge", "numpy", "opencv-python-headless"],
    Who(name="ours, for .onnx too", ours=True): ["mars-edge", "numpy", "opencv-python-headless", "onnxruntime"],
    Who(name="onnxruntime + OpenCV"): ["onnxruntime", "opencv-python-headless"],
    Who(name="OpenVINO + OpenCV"): ["openvino", "opencv-python-headless"],
    Who(name="LiteRT + OpenCV"): ["ai-edge-litert", "opencv-python-headless"],
    Who(name="PyTorch for CPUs + OpenCV"): ["torch", "opencv-python-headless"],
}


def processes(paths: Mapping[str, Path], rounds: int) -> list[Table]:
    """Start-up and memory."""
    jobs, skipped = _able(paths)
    seconds, memory = np.zeros((rounds, len(jobs))), np.zeros((rounds, len(jobs)))
    rng = np.random.default_rng(0)
    for at in range(rounds):
        note(f"  footprint: round {at + 1} of {rounds}")
        for i in rng.permutation(len(jobs)).tolist():
            seconds[at, i], memory[at, i] = start(jobs[i], paths)
    who = [job.who for job in jobs]
    return [
        table_of("Start to first answer", "s, median", who, seconds, base=BASE, skipped=skipped),
        table_of("Peak resident memory", "MiB, median", who, memory, base=BASE, skipped=skipped),
    ]


def _able(paths: Mapping[str, Path]) -> tuple[list[Start], list[Row]]:
    """Those that run, once and untimed, and a row for each of the others."""
    found, skipped = [], []
    for job in STARTS:
        try:
            _refuse_absent(job, paths)
            start(job, paths)
        except MarsEdgeError as error:
            skipped.append(Row(who=job.who, reason=str(error)))
        else:
            found.append(job)
    return found, skipped


def _refuse_absent(job: Start, paths: Mapping[str, Path]) -> None:
    if job.package and importlib.util.find_spec(job.package) is None:
        raise MarsEdgeError(f"not installed: {job.package}")
    if not paths[job.file].exists():
        raise MarsEdgeError(not_converted(paths[job.file]))


def start(job: Start, paths: Mapping[str, Path]) -> tuple[float, float]:
    """Seconds to the first answer of a fresh process, and its peak resident MiB.

    Raises:
        MarsEdgeError: it failed; the message is the last line of what it said.
    """
    command = [sys.executable, "-c", job.code + _SAY_PEAK, str(paths[job.file]), *job.options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])}
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - begin
    _, complaint = process.communicate()
    if process.returncode != 0:
        raise MarsEdgeError(complaint.strip().splitlines()[-1])
    return seconds, int(line) / 1024


def installs() -> Table:
    """Bytes on disk of what each needs; a contestant that is not installed is a row with its reason."""
    sizes: dict[Who, float] = {}
    skipped = []
    for who, names in INSTALLS.items():
        try:
            sizes[who] = sum(map(size_bytes, closure(names))) / _MIB
        except metadata.PackageNotFoundError as error:
            skipped.append(Row(who=who, reason=f"not installed: {error.name}"))
    measured = np.array([list(sizes.values())])
    return table_of("Installed size", "MiB", list(sizes), measured, base="onnxruntime + OpenCV", skipped=skipped)


def closure(names: Sequence[str]) -> set[str]:
    """Distributions and all that they require on this machine, without extras; mars-edge requires what is listed."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        if name == "mars-edge":
            continue
        wanted = map(Requirement, metadata.requires(name) or ())
        pending += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def size_bytes(name: str) -> int:
    """Of a distribution's files; of mars-edge, which may be installed in place, its packages'."""
    if name == "mars-edge":
        specs = [importlib.util.find_spec(package) for package in _PACKAGES]
        folders = [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]
        files = [file for folder in folders for file in folder.rglob("*")]
    else:
        files = [Path(str(file.locate())) for file in metadata.files(name) or ()]
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")


def main() -> int:
    """Print the tables."""
    parser = part_parser("footprint.py", __doc__, rounds=5)
    engines.add_network_options(parser)
    try:
        options = parser.parse_args()
        with tempfile.TemporaryDirectory(prefix="mars-edge-") as folder:
            network, paths = engines.exported(options, Path(folder))
            paths["plain"] = paths["dense"].parent
            networks.write_plain(network, paths["plain"])
            tables = [*processes(paths, options.rounds), installs()]
    except MarsEdgeError as error:
        print(f"footprint: {error}", file=sys.stderr)
        return error.exit_code
    print_tables(tables, as_json=options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
