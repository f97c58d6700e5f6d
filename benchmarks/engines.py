"""One decision in every engine: ours, PyTorch eager and compiled, and one dense graph in onnxruntime and OpenVINO.

    python benchmarks/engines.py --threads 1 2
    python benchmarks/engines.py --threads 2 --what subsets
    python benchmarks/engines.py --network casia_surf --fp32-only --what sizes

Axes: R rounds. From preprocessed samples to logits, batch of 1, nothing cached, weights and samples the same for all,
answers compared before anything is timed. "Dense" is one graph without branches: all encoders and all experts run,
zeros stand for a missing picture and a mask takes its feature out; "gathered" computes only the experts that were
chosen, from gathered weights. "int8 unrolled" is our own quantized graph without its branches, "int8 by onnxruntime"
the fp32 graph through onnxruntime's quantizer. Contestants take turns as in `turns.py`; each number of threads has a
process of its own. With --what subsets each decision has one, two or all sensors; a time is then the mean over the
subsets of that size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import contestants
import networks
import numpy as np
import torch
import turns
from common import (
    FOLDER,
    Duel,
    Row,
    Table,
    Who,
    best_of,
    environment,
    note,
    part_parser,
    print_tables,
    row_from,
    table_of,
)
from contestants import ORT_DENSE, Contestant
from networks import Network
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import MarsEdgeError
from mars_edge.options import positive
from mars_training.model.build import parameter_count

What = Literal["all", "subsets", "sizes"]
_COMPARED = 6


def write_all(
    network: Network, folder: Path, *, int8: bool = True, litert_python: Path | None = None
) -> dict[str, Path]:
    """Every file that a contestant reads, by what it is; those that `folder` already has are kept.

    Experts that are not plain convolutions cannot be gathered: there is no such file then.
    """
    found: dict[str, Path] = {}
    for precision in ("fp32", "int8") if int8 else ("fp32",):
        paths = {f"{suffix} {precision}": folder / f"ours-{precision}.{suffix}" for suffix in ("pte", "onnx")}
        if not all(path.exists() for path in paths.values()):
            note(f"  lowering {precision}")
            networks.write_ours(network, folder, [precision])
        found |= paths
    found["litert"] = folder / "dense.tflite"
    if litert_python is not None and not found["litert"].with_suffix(".failed").exists():
        written(found["litert"], lambda path: _convert(network, path.parent, litert_python))
    found["dense"] = written(folder / "dense.onnx", lambda path: networks.write_dense(network, path))
    if all(networks.is_plain(expert) for expert in network.model.deployed.experts):
        found["gathered"] = written(
            folder / "gathered.onnx", lambda path: networks.write_dense(network, path, gathered=True)
        )
    if int8:
        found["static"] = written(
            folder / "static-int8.onnx", partial(networks.write_static, network, found["dense"])
        )  # fmt: skip
        found["unrolled"] = written(
            folder / "unrolled-int8.onnx",
            lambda path: networks.write_unrolled(found["onnx int8"], network.names, path),
        )
    return found


def _convert(network: Network, folder: Path, python: Path) -> None:
    networks.write_plain(network, folder)
    command = [str(python), str(FOLDER / "to_litert.py"), str(folder)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        note(f"  to_litert.py failed: {said}")
        (folder / "dense.failed").write_text(said, encoding="utf-8")


def written(path: Path, write: Callable[[Path], object]) -> Path:
    """`path`, made by `write` where it is not there yet."""
    if not path.exists():
        note(f"  writing {path.name}")
        write(path)
    return path


def field(network: Network, paths: Mapping[str, Path], threads: int) -> tuple[list[Contestant], list[Row]]:
    """All contestants that can take part, and a reason for each that cannot; ours are first."""
    makers: dict[Who, Callable[[], Contestant]] = {}
    for precision in ("fp32", "int8"):
        for suffix in ("pte", "onnx"):
            key = f"{suffix} {precision}"
            if key in paths:
                who = Who(name=f"ours, .{suffix}, {precision}", ours=True, precision=precision)
                makers[who] = partial(contestants.ours, paths[key], precision, threads)
    makers[Who(name="PyTorch eager, dense, fp32")] = partial(contestants.eager, network, skipping=False)
    makers[Who(name="PyTorch eager, skipping, fp32")] = partial(contestants.eager, network, skipping=True)
    makers[Who(name="torch.compile, dense, fp32")] = partial(contestants.compiled, network)
    found, skipped = contestants.made(makers | _graphs(network, paths, threads))
    return found, [*skipped, *_ungathered(paths)]


def _ungathered(paths: Mapping[str, Path]) -> list[Row]:
    if "gathered" in paths:
        return []
    reason = "no graph gathers experts that are not plain convolutions"
    return [Row(who=Who(name=f"{name}, gathered, fp32"), reason=reason) for name in ("onnxruntime", "OpenVINO")]


def _graphs(network: Network, paths: Mapping[str, Path], threads: int) -> dict[Who, Callable[[], Contestant]]:
    """The contestants that run one dense graph."""
    modalities, makers = network.info.source.modalities, {}
    graphs = [
        ("dense", "dense, fp32", "fp32"),
        ("gathered", "gathered, fp32", "fp32"),
        ("static", "dense, int8 by onnxruntime", "int8"),
        ("unrolled", "dense, int8 unrolled", "int8"),
    ]
    for key, form, precision in (one for one in graphs if one[0] in paths):
        for name, make in (("onnxruntime", contestants.onnxruntime), ("OpenVINO", contestants.openvino)):
            title = f"{name}, {form}"
            makers[Who(name=title)] = partial(make, paths[key], modalities, threads, title, precision)
    makers[Who(name="LiteRT, dense, fp32")] = partial(contestants.litert, paths["litert"], modalities, threads)
    if "unrolled" in paths:
        title = "OpenVINO, dense, bf16"
        makers[Who(name=title)] = partial(
            contestants.openvino, paths["dense"], modalities, threads, title, "bf16"
        )  # fmt: skip
    return makers


@dataclass(frozen=True, kw_only=True)
class Field:
    """The contestants of one number of threads and their times (R, S, W), W the `wanted` subsets in their order."""

    threads: int
    who: Sequence[Who]
    skipped: Sequence[Row]
    measured: NDArray[np.float64]

    @property
    def counted(self) -> str:
        """For a reader."""
        return f"{self.threads} {'thread' if self.threads == 1 else 'threads'}"

    def reduced(self, columns: Sequence[int]) -> NDArray[np.float64]:
        """(R, S): means over some of the subsets."""
        return np.mean(self.measured[:, :, list(columns)], axis=2)


def wanted_subsets(network: Network, what: What) -> Sequence[subsets.Subset]:
    """Those that are timed."""
    return subsets.all_subsets(network.names) if what == "subsets" else [network.names]


def prepared(
    network: Network, paths: Mapping[str, Path], what: What, threads: int
) -> tuple[Any, Sequence[turns.Calls]]:
    """Who takes part and who does not, and of each a call per subset: what a process of `turns` serves."""
    torch.set_num_threads(threads)
    samples = networks.samples_of(network.info.source.modalities, _COMPARED)
    taking, skipped = field(network, paths, threads)
    note("  comparing answers")
    taking, wrong = contestants.judged(taking, samples, subsets.all_subsets(network.names))
    inputs = [{name: samples[0][name] for name in subset} for subset in wanted_subsets(network, what)]
    found = {"who": [asdict(one.who) for one in taking], "skipped": [asdict(row) for row in (*skipped, *wrong)]}
    return found, [[partial(one.decide, given) for given in inputs] for one in taking]


def measure(commands: Mapping[int, Sequence[str]], rounds: int) -> list[Field]:
    """One field per number of threads, from processes that take turns.

    Raises:
        MarsEdgeError: a process failed.
    """
    note(f"  timing {rounds} rounds, threads: {', '.join(map(str, commands))}")
    played = turns.play([(command, environment(threads)) for threads, command in commands.items()], rounds)
    return [
        Field(
            threads=threads,
            who=[Who(**who) for who in one.found["who"]],
            skipped=[row_from(row) for row in one.found["skipped"]],
            measured=one.measured,
        )
        for threads, one in zip(commands, played, strict=True)
    ]


def tables(network: Network, fields: Sequence[Field], what: What) -> list[Table]:
    """For each number of threads the tables of one size of subset each; the last number's say the best over all."""
    wanted = wanted_subsets(network, what)
    columns = {
        size: [i for i, subset in enumerate(wanted) if len(subset) == size] for size in sorted(set(map(len, wanted)))
    }
    return [
        replace(
            _table(network, one, what, size, chosen),
            overall=_overall(fields, chosen) if one is fields[-1] and len(fields) > 1 else None,
        )
        for one in fields
        for size, chosen in columns.items()
    ]


def _table(network: Network, one: Field, what: What, size: int, chosen: Sequence[int]) -> Table:
    title, group = f"all present, {one.counted}", ""
    if what == "subsets":
        title, group = f"{size} of {len(network.names)} present", one.counted
    if what == "sizes":
        title, group = f"{network.info.recipe.name}, {_millions(network)}", f"All present, {one.counted}"
    return table_of(
        title, "ms, median", one.who, one.reduced(chosen), base=ORT_DENSE, skipped=one.skipped, group=group
    )  # fmt: skip


def _overall(fields: Sequence[Field], chosen: Sequence[int]) -> Duel | None:
    """Over all numbers of threads; a round of one process is beside the same round of the others."""
    who = [replace(each, name=f"{each.name}, {one.counted}") for one in fields for each in one.who]
    return best_of(who, np.concatenate([one.reduced(chosen) for one in fields], axis=1))


def _millions(network: Network) -> str:
    return f"{parameter_count(network.model.deployed) / 1e6:.1f} M parameters"


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Where the weights come from, and where files are kept: what every part that exports a network asks."""
    add = parser.add_argument
    add("--network", default="face_antispoof", metavar="RECIPE", help="default: face_antispoof")
    add("--run", type=Path, metavar="DIR", help="weights of this run; random ones without it")
    add("--fp32-only", action="store_true", help="no int8, which takes long for a large network")
    add("--work", type=Path, metavar="DIR", help="keep the files here, and take those that are there")
    add("--litert-python", type=Path, metavar="FILE", help="python with litert-torch, to convert with")


def exported(options: argparse.Namespace, folder: Path) -> tuple[Network, dict[str, Path]]:
    """The network that the options of `add_network_options` ask for, and its files: in --work, else in `folder`.

    Raises:
        UsageError: there is no such recipe or run.
    """
    network = networks.network_of(options.network, options.run)
    # A folder per weights: files that are there are taken as they are.
    own = (options.work or folder) / (options.network if options.run is None else f"{options.network}-trained")
    own.mkdir(parents=True, exist_ok=True)
    return network, write_all(network, own, int8=not options.fp32_only, litert_python=options.litert_python)


def main() -> int:
    """Print the tables, or with --serve be the process of one number of threads."""
    parser = part_parser("engines.py", __doc__, rounds=100)
    parser.add_argument(
        "--threads",
        type=positive(int, most=256),
        nargs="+",
        default=[1],
        metavar="N",
        help="of every contestant; several take turns; default: 1",
    )
    parser.add_argument(
        "--what", choices=get_args(What), default="all", help="all present; subsets; sizes: all, titled by the network"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    add_network_options(parser)
    try:
        options = parser.parse_args()
        with tempfile.TemporaryDirectory(prefix="mars-edge-") as folder:
            network, paths = exported(options, Path(folder))
            if options.serve:
                (threads,) = options.threads
                turns.serve(partial(prepared, network, paths, options.what, threads), threads=threads)
                return 0
            commands = {threads: _command(options, threads, Path(folder)) for threads in options.threads}
            fields = measure(commands, options.rounds)
    except MarsEdgeError as error:
        print(f"engines: {error}", file=sys.stderr)
        return error.exit_code
    print_tables(tables(network, fields, options.what), as_json=options.json)
    return 0


def _command(options: argparse.Namespace, threads: int, folder: Path) -> list[str]:
    """Of the process of one number of threads, which finds all files where they have just been written."""
    given = ["--threads", str(threads), "--what", options.what, "--network", options.network]
    given += ["--work", str(options.work or folder), *(["--fp32-only"] if options.fp32_only else [])]
    given += ["--run", str(options.run)] if options.run else []
    return [sys.executable, str(FOLDER / "engines.py"), *given, "--serve"]


if __name__ == "__main__":
    raise SystemExit(main())
