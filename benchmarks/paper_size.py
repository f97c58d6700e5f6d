"""The paper's CASIA-SURF network, 139 M parameters, as artifacts: size, parity, time against PyTorch eager.

    python benchmarks/paper_size.py export runs/paper_size -o int8.pte -o int8.onnx
    python benchmarks/paper_size.py export runs/paper_size -o fp32.pte -o fp32.onnx --precision fp32
    python benchmarks/paper_size.py time runs/paper_size int8.pte int8.onnx fp32.pte fp32.onnx

Axes: R rounds.
The network is that of training/recipes/casia_surf.toml at its own 112 x 112 pixels. CASIA-SURF is not here, so its
weights are those of a run of face_antispoof_paper_size.toml: the same network, trained on the simulated rig at 48 x 48;
all of it but the pooled head is convolutions, so that they fit any size, and its routing is that of a trained model.
No accuracy is claimed. int8 is post-training quantization: ranges from a few rig samples at 112 x 112. `time` takes
turns, one decision of each contestant a round in an order that changes, everything present, nothing cached: "eager,
dense" runs all 16 experts, the others the 5 that are routed to.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from subset_cost import Share, share_of, times

from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.options import OneLineParser, positive
from mars_export import bundle, quantize
from mars_export.hush import hushed
from mars_export.pieces import float_pieces
from mars_runtime.engines import open_engine
from mars_runtime.engines.protocol import Engine
from mars_runtime.machine import this_machine
from mars_training.checkpoint import RunInfo, load_model
from mars_training.data.load import describe, load_data, load_split
from mars_training.model.mars import DeployedMars, TrainingMars
from mars_training.recipe import DataRecipe, Recipe, load_recipe

RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "casia_surf.toml"
# Enough for ranges, operating points of no claim, and parity; every one of them costs seconds.
DATA = DataRecipe(reader="rig", train=128, validation=64, test=100)
PARITY_SAMPLES = 20
MOST_TIME = 0.4
DENSE = "PyTorch eager, dense"
SPARSE = "PyTorch eager, 5 of 16 experts"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant: `size_bytes` of its file, the worst subset of its parity report, its time.

    Attributes:
        ms: median.
        time: over that of `DENSE`.
        parity: None for PyTorch itself.
    """

    name: str
    size_bytes: int | None
    ms: float
    time: Share
    parity: str | None


def paper_recipe() -> Recipe:
    """CASIA-SURF's recipe on rig samples of the same size, calibrated in small batches."""
    recipe = load_recipe(RECIPE)
    schedule = dataclasses.replace(recipe.schedule, batch_size=16)
    return dataclasses.replace(recipe, data=DATA, schedule=schedule)


def load(run: Path) -> tuple[TrainingMars, RunInfo]:
    """The run's weights as the network of `paper_recipe`.

    Raises:
        UsageError: it is another network.
    """
    model, info = load_model(run)
    recipe = paper_recipe()
    if dataclasses.replace(info.recipe.model, dispatch=recipe.model.dispatch) != recipe.model:
        raise UsageError(f"{run} holds another network than {RECIPE.name}; train face_antispoof_paper_size.toml")
    assert isinstance(model, TrainingMars)
    return model, RunInfo(recipe=recipe, seed=info.seed, source=describe(recipe.data))


def export(run: Path, outputs: Sequence[Path], precision: str) -> None:
    """Writes the artifacts, each proven in its engine as `mars-edge export` does."""
    bundle.expected_files(outputs)
    model, info = load(run)
    data, test = load_data(info.recipe), load_split(info.recipe, "test")
    parity = bundle.held_out(test, PARITY_SAMPLES, {"train": data.train, "validation": data.validation})
    splits = bundle.Splits(validation=data.validation, test=test, parity=parity)
    provenance = {"weights": "trained at 48 x 48 on the simulated rig; no accuracy is claimed"}
    if precision == "fp32":
        ready = bundle.Model(
            deployed=float_pieces(model.deployed), precision="fp32", info=info, provenance=provenance
        )  # fmt: skip
    else:
        deployed = quantize.quantize(model, data, info.recipe, seed=0, report=lambda epoch: None, ptq=True)
        provenance["quantization"] = "post-training, int8"
        ready = bundle.Model(deployed=deployed, precision="int8", info=info, provenance=provenance)
    del model
    for path in outputs:
        bundle.write(path, ready, splits, note=lambda text: print(text, file=sys.stderr, flush=True))


def eager(deployed: DeployedMars, sample: dict[str, NDArray[np.float32]], *, dense: bool) -> Callable[[], object]:
    """A decision of the float model on everything in `sample`, every expert computed or those routed to."""
    inputs = {name: torch.from_numpy(x)[None] for name, x in sample.items()}
    present = torch.ones(1, len(inputs), dtype=torch.bool)

    @torch.inference_mode()
    def decide() -> object:
        deployed.always_dense = dense
        return deployed(inputs, present)

    return decide


def compare(run: Path, artifacts: Sequence[str], rounds: int, threads: int) -> list[Row]:
    """All contestants in one run; both eager ones first."""
    torch.set_num_threads(threads)
    model, info = load(run)
    deployed = model.deployed.eval()
    rng = np.random.default_rng(0)
    sample = {m.name: rng.random(m.shape, dtype=np.float32) for m in info.source.modalities}
    engines = [open_engine(path, threads=threads) for path in artifacts]
    calls = [eager(deployed, sample, dense=True), eager(deployed, sample, dense=False)]
    measured = times([*calls, *(_decision(engine, sample) for engine in engines)], rounds)
    against = [np.stack([column, measured[:, 0]], axis=1) for column in measured.T]
    facts: list[tuple[str, int | None, str | None]] = [(DENSE, _float_bytes(deployed), None), (SPARSE, None, None)]
    facts += [
        (f"{engine.name}, {engine.manifest.precision}", Path(path).stat().st_size, _parity(engine))
        for path, engine in zip(artifacts, engines, strict=True)
    ]
    return [
        Row(
            name=name,
            size_bytes=size,
            ms=float(np.median(pair[:, 0])),
            time=share_of(pair, [0], np.mean),
            parity=parity,
        )
        for (name, size, parity), pair in zip(facts, against, strict=True)
    ]


def _decision(engine: Engine, sample: dict[str, NDArray[np.float32]]) -> Callable[[], object]:
    return lambda: engine.infer(sample, {})


def _float_bytes(deployed: DeployedMars) -> int:
    return sum(t.numel() * t.element_size() for t in deployed.state_dict().values())


def _parity(engine: Engine) -> str:
    """What the manifest says of the worst subset."""
    report = engine.manifest.parity or {}
    rows = list(report.get("subsets", {}).values())
    if not rows:
        return "not in the manifest"
    return (
        f"{report['samples']} x {len(rows)} subsets: same label {min(r['label_agreement'] for r in rows):.1%}, "
        f"at most {max(r['max_steps'] for r in rows):.2f} steps"
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """The table, a line per contestant."""
    head = ["", "file, MB", "ms per decision, median", "of eager dense (95 % interval)", "parity at worst"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        size = "-" if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f}"
        lines.append("| " + " | ".join([row.name, size, f"{row.ms:.1f}", str(row.time), row.parity or "-"]) + " |")
    best = min(rows[2:], key=lambda row: row.ms)
    return "\n".join([*lines, "", f"best: {best.name}, {best.time.value:.2f} of eager dense (aim at most {MOST_TIME})"])


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="benchmarks/paper_size.py",
        description=__doc__,
        epilog="example: python benchmarks/paper_size.py export runs/paper_size -o int8.pte -o int8.onnx",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_subparsers(dest="what", required=True)
    writer = what.add_parser("export", help="write artifacts")
    writer.add_argument("run", type=Path, metavar="RUN")
    writer.add_argument("-o", "--output", type=Path, action="append", required=True, metavar="FILE", help="may repeat")
    writer.add_argument("--precision", choices=("int8", "fp32"), default="int8", help="default: int8")
    writer.add_argument("--threads", type=positive(int, most=256), default=1, help="default: 1")
    timer = what.add_parser("time", help="measure artifacts beside PyTorch eager")
    timer.add_argument("run", type=Path, metavar="RUN")
    timer.add_argument("artifact", nargs="+", metavar="FILE")
    timer.add_argument("--rounds", type=positive(int, most=100_000), default=30, help="default: 30")
    timer.add_argument("--threads", type=positive(int, most=256), default=1, help="of every contestant; default: 1")
    timer.add_argument("--json", action="store_true", help="print one JSON list instead")
    return parser


def main() -> int:
    """Write the artifacts, or print the table and where it was measured."""
    try:
        options = _parser().parse_args()
        with hushed():
            if options.what == "export":
                torch.set_num_threads(options.threads)
                export(options.run, options.output, options.precision)
                return 0
            rows = compare(options.run, options.artifact, options.rounds, options.threads)
    except MarsEdgeError as error:
        print(f"paper_size: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    print(as_markdown(rows))
    machine = this_machine()
    where = f"{machine}, load {machine.load or 0.0:.1f}, torch {torch.__version__}"
    print(f"\n{options.rounds} rounds, {options.threads} threads each, {datetime.now(UTC):%Y-%m-%d}, {where}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
