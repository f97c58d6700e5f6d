"""Two artifacts of one model on the same rendered samples: where their answers differ, by how many output steps.

    python benchmarks/agreement.py face_antispoof.pte face_antispoof.onnx --samples 1000
    qemu-x86_64 -cpu Haswell .venv/bin/python benchmarks/agreement.py face_antispoof.pte face_antispoof.onnx \\
        --inputs samples.npz --samples 200

The second line answers for an x86-64 processor with AVX2 and without VNNI (QEMU 7.2 or later, Debian package
qemu-user). Rendering is slow there: --inputs names a file that the first call writes and later ones read.
Every subset is asked; a sample is encoded once per artifact and its features are reused. A subset whose routing
differs in a sample runs other experts there, which no output step bounds: those samples are counted apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mars_edge import rig, subsets
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import OneLineParser, positive
from mars_edge.preprocess import preprocess
from mars_runtime.engines import open_engine
from mars_runtime.engines.protocol import Engine

Samples = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One engine under one subset: logits (B, ...) float32 and the experts that ran, (B, K), smallest index first."""

    logits: NDArray[np.float32]
    experts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two engines under one subset.

    Attributes:
        identical: share of samples whose logits are equal bit for bit.
        largest_steps: of a logit, over the samples that ran the same experts; 0 where there is none.
        other_experts: share of samples that ran other experts.
        same_label: share of samples with the same largest logit, in every pixel of a segmentation.
    """

    samples: int
    identical: float
    largest_steps: float
    other_experts: float
    same_label: float


def load_samples(manifest: Manifest, count: int, file: Path | None) -> Samples:
    """Preprocessed samples (B, *shape) by modality: those of `file` where it exists, else rendered and kept there.

    Raises:
        UsageError: the model has other modalities than the rig, or the file holds fewer samples.
    """
    if file is not None and file.exists():
        with np.load(file) as stored:
            kept = {name: stored[name][:count] for name in manifest.names}
        if any(len(x) < count for x in kept.values()):
            raise UsageError(f"{file} holds {min(map(len, kept.values()))} samples, {count} are asked for")
        return kept
    known = {m.name for m in rig.modalities()}
    if set(manifest.names) != known:
        raise UsageError(f"{manifest.name} reads {', '.join(manifest.names)}; the rig renders {', '.join(known)}")
    raw = rig.render_split("test", count, seed=1)
    made = {m.name: np.stack([preprocess(m, frame) for frame in raw[m.name]]) for m in manifest.modalities}
    if file is not None:
        with file.open("wb") as out:
            np.savez(out, **made)  # type: ignore[arg-type]
    return made


def ask(engine: Engine, samples: Samples, wanted: Sequence[subsets.Subset]) -> dict[subsets.Subset, Answers]:
    """The engine's answers under each subset."""
    logits: dict[subsets.Subset, list[NDArray[np.float32]]] = {subset: [] for subset in wanted}
    experts: dict[subsets.Subset, list[list[int]]] = {subset: [] for subset in wanted}
    for i in range(len(next(iter(samples.values())))):
        features = engine.infer({name: x[i] for name, x in samples.items()}, {}).features
        for subset in wanted:
            answer = engine.infer({}, {name: features[name] for name in subset})
            logits[subset].append(answer.logits)
            experts[subset].append(sorted(index for index, _ in answer.experts))
    return {s: Answers(logits=np.stack(logits[s]), experts=np.array(experts[s], np.int64)) for s in wanted}


def compare(given: Answers, reference: Answers, step: float) -> Difference:
    """Two answers to the same samples, in steps of the output's quantizer."""
    rows = len(given.logits)
    routed_alike = (given.experts == reference.experts).all(axis=1)
    apart = np.abs(given.logits - reference.logits).reshape(rows, -1).max(axis=1) / step
    labels = (given.logits.argmax(axis=1) == reference.logits.argmax(axis=1)).reshape(rows, -1).all(axis=1)
    return Difference(
        samples=rows,
        identical=float((apart == 0).mean()),
        largest_steps=float(apart[routed_alike].max(initial=0.0)),
        other_experts=float(1.0 - routed_alike.mean()),
        same_label=float(labels.mean()),
    )


def agreement(engines: Sequence[Engine], samples: Samples) -> dict[str, Difference]:
    """By subset label, the second engine beside the first.

    Raises:
        UsageError: they are not of one quantized model.
    """
    first, second = (engine.manifest for engine in engines)
    if (first.names, first.labels, first.logit_step) != (second.names, second.labels, second.logit_step):
        raise UsageError(f"{first.name} and {second.name} are not one model: modalities, labels or output step differ")
    if first.logit_step is None:
        raise UsageError(f"{first.name} has a float output: there are no output steps to count in")
    wanted = subsets.all_subsets(first.names)
    reference, given = (ask(engine, samples, wanted) for engine in engines)
    return {subsets.label(s, first.names): compare(given[s], reference[s], first.logit_step) for s in wanted}


def table(rows: Mapping[str, Difference], what: str) -> str:
    """Markdown, one row per entry."""
    head = f"| {what} | samples | logits identical | largest difference, steps | other experts | same label |"
    lines = [
        f"| {name} | {d.samples} | {d.identical:.2%} | {d.largest_steps:.2f} | {d.other_experts:.2%} "
        f"| {d.same_label:.2%} |"
        for name, d in rows.items()
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *lines])


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/agreement.py face_antispoof.pte face_antispoof.onnx --samples 100",
    )
    parser.add_argument("artifacts", nargs=2, metavar="FILE", help="two artifacts of one model, or bundled names")
    add_sample_options(parser, samples=1000)
    return parser


def add_sample_options(parser: argparse.ArgumentParser, *, samples: int) -> None:
    """How many samples, where from, and what is printed: what every comparison of answers asks."""
    add = parser.add_argument
    add("--samples", type=positive(int, most=1_000_000), default=samples, help=f"default: {samples}")
    add("--inputs", type=Path, metavar="FILE", help="preprocessed samples: read, or rendered and kept")
    add("--json", action="store_true", help="print one JSON object")
    add("--quiet", action="store_true", help="no notes on stderr")


def main() -> int:
    """Prints one line per subset."""
    options = _parser().parse_args()
    engines: list[Engine] = []
    try:
        engines.extend(open_engine(path, threads=1) for path in options.artifacts)
        samples = load_samples(engines[0].manifest, options.samples, options.inputs)
        began = time.monotonic()
        rows = agreement(engines, samples)
        if not options.quiet:
            names = " and ".join(engine.name for engine in engines)
            print(f"{names}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    except MarsEdgeError as error:
        print(f"agreement: {error}", file=sys.stderr)
        return 2
    finally:
        for engine in engines:
            engine.close()
    print(json.dumps({name: asdict(row) for name, row in rows.items()}) if options.json else table(rows, "subset"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
