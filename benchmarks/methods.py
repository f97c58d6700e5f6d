"""Which number of threads and which precision is the faster one, method by method and for the whole decision.

    python benchmarks/methods.py --networks networks
    python benchmarks/methods.py face-fp32.pte face-int8.pte

Axes: R rounds, P processes. Every file runs with every number of threads in a process of its own, as ExecuTorch's pool
belongs to the process. Files of one model and one format but of two precisions are measured together: each round every
process has one turn, in a new order, while the others sleep. A turn is a few decisions with everything present and with
each modality alone, each after a pause. A method's time is the engine's own stage time in those with everything
present, the experts' divided by how many ran: the first encoder of a decision wakes the pool. The median of a turn
counts; with --fastest the fastest call. A turn in which other processes used more than a tenth of the cores is taken
again until --patience is over: a second thread needs a core that nobody else has. Ratios are those of medians
over rounds, with 95 % bootstrap intervals. From how many MACs per decision on two threads win is interpolated between
the models, on a logarithmic scale.

--networks measures random networks of growing size instead: the committed recipes, with larger pictures and with the
paper's encoders. They are written there unless they are there already, which needs PyTorch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import machine_line, note, number, part_parser, ratio_of, shown, today
from method_turns import WHOLE, Process, measure
from numpy.typing import NDArray
from subset_cost import Share, macs_of

from mars_edge.artifact import verify
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import positive
from mars_runtime.engines import read_manifest
from mars_runtime.machine import usable_cores
from mars_runtime.models import find_model

Precision = Literal["fp32", "int8"]
NETWORKS: tuple[tuple[str, int, tuple[Precision, ...]], ...] = (
    ("face_antispoof_small", 0, ("fp32", "int8")),
    ("face_antispoof", 0, ("fp32", "int8")),
    ("face_antispoof", 160, ("fp32", "int8")),
    ("face_antispoof", 224, ("fp32", "int8")),
    ("face_antispoof_paper_size", 24, ("fp32",)),
    ("face_antispoof_paper_size", 32, ("fp32",)),
    ("face_antispoof_paper_size", 0, ("fp32", "int8")),
    ("face_antispoof_paper_size", 72, ("fp32", "int8")),
    ("face_antispoof_paper_size", 112, ("fp32", "int8")),
)
"""Recipe, side of the pictures (0: the recipe's own) and precisions."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method, or one kind of decision.

    Attributes:
        ms: median, by precision and threads.
        threads: time with so many threads over that with one, by precision and threads.
        int8: time in int8 over that in fp32, with one thread and with the fastest number of threads of each; empty
            where the model has one precision.
    """

    name: str
    ms: Mapping[str, Mapping[int, float]]
    threads: Mapping[str, Mapping[int, Share]]
    int8: Sequence[Share]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The files of one model and format.

    Attributes:
        macs: of a decision with everything present; None where the manifest states no costs.
        turns, disturbed: how many there were, and how many of them other work disturbed.
    """

    name: str
    engine: str
    macs: int | None
    lines: Sequence[Line]
    turns: int
    disturbed: int

    @property
    def whole(self) -> Line:
        """Of the decision with everything present."""
        return next(line for line in self.lines if line.name == WHOLE)


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """From how many MACs per decision on more threads win.

    Attributes:
        macs: None where one thread wins everywhere, or nowhere, or the models do not agree.
        below, above: the largest model that is slower and the smallest that is faster with more threads.
    """

    engine: str
    precision: str
    threads: int
    macs: float | None
    below: float | None
    above: float | None


def line_of(name: str, processes: Sequence[Process], measured: NDArray[np.float64]) -> Line:
    """The line of one method from its times (R, P)."""
    at = {(p.precision, p.threads): i for i, p in enumerate(processes)}
    medians = np.median(measured, axis=0)
    ms: dict[str, dict[int, float]] = {}
    for (precision, n), i in at.items():
        ms.setdefault(precision, {})[n] = float(medians[i])
    threads = {
        precision: {n: ratio_of(measured, at[precision, n], at[precision, min(own)]) for n in sorted(own)[1:]}
        for precision, own in ms.items()
    }
    int8 = []
    if {"fp32", "int8"} <= set(ms):
        best = {kind: min(ms[kind], key=lambda n: ms[kind][n]) for kind in ("fp32", "int8")}
        pairs = [(min(ms["int8"]), min(ms["fp32"])), (best["int8"], best["fp32"])]
        int8 = [ratio_of(measured, at["int8", n], at["fp32", m]) for n, m in pairs]
    return Line(name=name, ms=ms, threads=threads, int8=int8)


def crossings(models: Sequence[Model]) -> list[Crossing]:
    """By engine, precision and number of threads; models without costs do not count."""
    points: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for model in models:
        for precision, ratios in model.whole.threads.items() if model.macs else ():
            for threads, ratio in ratios.items():
                points.setdefault((model.engine, precision, threads), []).append((float(model.macs or 0), ratio.value))
    return [crossing(*key, sorted(found)) for key, found in points.items()]


def crossing(engine: str, precision: str, threads: int, points: Sequence[tuple[float, float]]) -> Crossing:
    """Where the ratios of `points` (MACs, ratio), in order of MACs, pass 1."""
    slower = [macs for macs, ratio in points if ratio >= 1.0]
    faster = [macs for macs, ratio in points if ratio < 1.0]
    below, above = max(slower, default=None), min(faster, default=None)
    macs = None
    if below is not None and above is not None and below < above:
        ratio = dict(points)
        share = math.log(ratio[below]) / (math.log(ratio[below]) - math.log(ratio[above]))
        macs = below * (above / below) ** share
    return Crossing(engine=engine, precision=precision, threads=threads, macs=macs, below=below, above=above)


def grouped(paths: Sequence[str], counts: Sequence[int]) -> list[tuple[str, Manifest, list[Process]]]:
    """Files of one model and format together, with every number of threads each.

    Raises:
        MarsEdgeError: a file is not there, damaged, or cannot be run.
    """
    groups: dict[tuple[Any, ...], tuple[str, Manifest, list[Process]]] = {}
    for path in paths:
        sealed = verify(find_model(path))
        manifest = read_manifest(sealed)
        shapes = tuple((m.name, m.shape) for m in manifest.modalities)
        sizes = (manifest.experts, manifest.active_experts, manifest.z_shape, tuple(manifest.feature_shapes.items()))
        title = f"{manifest.name}, {'x'.join(map(str, manifest.modalities[0].shape))}"
        _, _, processes = groups.setdefault((manifest.name, sealed.format, shapes, sizes), (title, manifest, []))
        if any(p.precision == manifest.precision for p in processes):
            raise UsageError(f"{path} is a second {manifest.precision} file of one model and format; give one of each")
        processes += [Process(path=str(path), precision=manifest.precision, threads=n) for n in counts]
    return list(groups.values())


def write_networks(folder: Path) -> list[str]:
    """The files of `NETWORKS`, in order of their size; those that are there are kept."""
    found: list[str] = []
    for recipe, side, precisions in NETWORKS:
        own = folder / (f"{recipe}-{side}" if side else recipe)
        for precision in precisions:
            paths = [own / f"ours-{precision}{suffix}" for suffix in (".pte", ".onnx")]
            if not all(path.exists() for path in paths):
                note(f"  writing {own.name}, {precision}")
                _write(recipe, side, own, precision)
            found += map(str, paths)
    return found


def _write(recipe: str, side: int, folder: Path, precision: Precision) -> None:
    # They need PyTorch, which measuring does not.
    import networks

    from mars_training.data.load import describe
    from mars_training.recipe import DataRecipe, load_recipe

    chosen = load_recipe(networks.RECIPES / f"{recipe}.toml")
    data = DataRecipe(reader="rig", train=64, validation=16, test=16, size=side or chosen.data.size)
    folder.mkdir(parents=True, exist_ok=True)
    network = networks.random_network(replace(chosen, data=data), describe(data))
    networks.write_ours(network, folder, [precision])


def as_markdown(models: Sequence[Model]) -> str:
    """A table per model, what stands out in it, and where more threads begin to win."""
    parts = ["\n".join([*_table(model), "", *_verdicts(model)]) for model in models]
    return "\n\n".join([*parts, "\n".join(map(_crossing_line, crossings(models)))])


def _table(model: Model) -> list[str]:
    macs = "costs unknown" if model.macs is None else f"{model.macs / 1e6:.1f} MMAC"
    head = [f"{model.name}, {model.engine}, {macs}"]
    for precision, ms in model.whole.ms.items():
        first, *more = sorted(ms)
        head += [f"{precision}, {_counted(first)}, ms", *(f"{_counted(n)} of that" for n in more)]
    both = bool(model.whole.int8)
    head += [f"int8 of fp32, {_counted(min(model.whole.ms['fp32']))}", "each at its best"] if both else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in model.lines:
        cells = [line.name]
        for precision, ms in line.ms.items():
            cells += [number(ms[min(ms)]), *(shown(ratio) for ratio in line.threads[precision].values())]
        cells += map(shown, line.int8)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _counted(threads: int) -> str:
    return f"{threads} {'thread' if threads == 1 else 'threads'}"


def _verdicts(model: Model) -> list[str]:
    """Only what intervals leave no doubt about."""
    faster = [line.name for line in model.lines if line.int8 and line.int8[0].low > 1.0]
    gains = [
        f"{line.name} ({precision}, {n})"
        for line in model.lines
        for precision, ratios in line.threads.items()
        for n, ratio in ratios.items()
        if ratio.high < 1.0
    ]
    quiet = f"Other work disturbed {model.disturbed} of {model.turns} turns."
    told = [f"Faster in fp32: {'; '.join(faster) or 'nothing'}."] if model.whole.int8 else []
    return [quiet, *told, f"Faster with more threads: {'; '.join(gains) or 'nothing'}."]


def _crossing_line(found: Crossing) -> str:
    start = f"{found.engine}, {found.precision}, {_counted(found.threads)}: "
    if found.macs is not None:
        return f"{start}faster from about {found.macs / 1e6:.0f} MMAC per decision on."
    if found.above is None or found.below is None:
        what = "slower" if found.above is None else "faster"
        return f"{start}{what} for every model here."
    return (
        f"{start}no one point; slower up to {found.below / 1e6:.0f} MMAC, faster from {found.above / 1e6:.0f} MMAC on."
    )


def main() -> int:
    """Print the tables and where they were measured."""
    parser = part_parser("methods.py", __doc__, rounds=30)
    parser.epilog = "example: python benchmarks/methods.py face_antispoof.pte"
    cores = sorted({1, 2, usable_cores()} if usable_cores() > 1 else {1})
    add = parser.add_argument
    add("artifact", nargs="*", metavar="FILE", help=".pte and .onnx files, or bundled models' names")
    add("--networks", type=Path, metavar="DIR", help="measure random networks of growing size, kept in this folder")
    add(
        "--threads", type=positive(int, most=256), action="append", metavar="N", help="repeatable; default: 1, 2, cores"
    )
    add("--fastest", action="store_true", help="a turn counts with its fastest call: where other work takes cores away")
    add("--patience", type=positive(float, most=86_400), default=60.0, metavar="SECONDS", help="per model; default: 60")
    try:
        options = parser.parse_args()
        paths = write_networks(options.networks) if options.networks else options.artifact
        if not paths:
            raise UsageError("nothing to measure; give a FILE or --networks DIR")
        models = [_measured(*group, options) for group in grouped(paths, sorted(set(options.threads or cores)))]
    except MarsEdgeError as error:
        print(f"methods: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps({"models": [asdict(m) for m in models], "crossings": [asdict(c) for c in crossings(models)]}))
        return 0
    print(as_markdown(models))
    counts = "the fastest call of a turn counts" if options.fastest else "the median call of a turn counts"
    print(f"\n{options.rounds} rounds, {counts}, {today()}, {machine_line()}")
    return 0


def _measured(title: str, manifest: Manifest, processes: Sequence[Process], options: argparse.Namespace) -> Model:
    note(f"  {title}: {len(processes)} processes")
    taken = measure(processes, options.rounds, fastest=options.fastest, patience_s=options.patience)
    return Model(
        name=title,
        engine=taken.engine,
        macs=macs_of(manifest, manifest.names),
        lines=[line_of(name, processes, taken.ms[:, :, i]) for i, name in enumerate(taken.names)],
        turns=options.rounds * len(processes),
        disturbed=taken.disturbed,
    )


if __name__ == "__main__":
    raise SystemExit(main())
