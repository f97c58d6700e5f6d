"""How the time of a decision grows: with modalities, experts, and faces per decision.

    python benchmarks/scaling.py --threads 1 --rounds 50

Axes: M modalities, N experts, F faces. The network of face_antispoof.toml, made larger and smaller: M from 1 to 4 (the
fourth is a copy of infrared), N from 4 to 32, of which 2 run. Weights are random. F faces are F decisions of ours, one
after another, as of the gathered graph; a dense graph takes them as one batch.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import contestants
import engines
import networks
import numpy as np
import torch
import turns
from common import Row, Table, Who, note, part_parser, print_tables, table_of
from contestants import ORT_DENSE, Contestant
from networks import RECIPES, Network, Samples

from mars_edge import rig
from mars_edge.errors import MarsEdgeError
from mars_edge.options import positive
from mars_training.data.load import describe
from mars_training.data.split import Source
from mars_training.recipe import AugmentRecipe, load_recipe

_MODALITIES = (1, 2, 3, 4)
_EXPERTS = (4, 8, 16, 32)
_FACES = (1, 2, 4, 8)
_USUAL = (3, 8)
GATHERED = "onnxruntime, gathered, fp32"


def network_with(modalities: int, experts: int) -> Network:
    """The edge network with another number of modalities and experts."""
    recipe = load_recipe(RECIPES / "face_antispoof.toml")
    # Nothing is trained, and augmentation names modalities that a small network lacks.
    recipe = dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, experts=experts), augment=AugmentRecipe()
    )
    given = tuple(rig.modalities())
    wanted = (*given, dataclasses.replace(given[-1], name="thermal"))[:modalities]
    described = describe(recipe.data)
    return networks.random_network(recipe, Source(**{**vars(described), "modalities": wanted}))


def files(network: Network, folder: Path) -> dict[str, Path]:
    """Our fp32 artifacts and the dense graphs of a network, in a folder of their own."""
    own = folder / f"scaling-{len(network.names)}-{len(network.model.deployed.experts)}"
    own.mkdir(exist_ok=True)
    return engines.write_all(network, own, int8=False)


def field(network: Network, paths: dict[str, Path], threads: int) -> tuple[list[Contestant], list[Row]]:
    """Ours and the dense graphs that can take part, and a row with the reason of every other; ours are first."""
    modalities = network.info.source.modalities
    dense = partial(contestants.onnxruntime, modalities=modalities, threads=threads, precision="fp32")
    own = {
        Who(name=f"ours, .{suffix}, fp32", ours=True, precision="fp32"): partial(
            contestants.ours, paths[f"{suffix} fp32"], "fp32", threads
        )
        for suffix in ("pte", "onnx")
    }
    graphs = {ORT_DENSE: paths["dense"], GATHERED: paths["gathered"]}
    return contestants.made(
        own | {Who(name=name, precision="fp32"): partial(dense, path, name=name) for name, path in graphs.items()}
    )


def sized(network: Network, folder: Path, title: str, group: str, threads: int, rounds: int) -> Table:
    """One network, everything present."""
    note(f"  scaling: {title}, {threads} threads")
    samples = networks.samples_of(network.info.source.modalities, 3)
    taking, absent = field(network, files(network, folder), threads)
    taking, wrong = contestants.judged(taking, samples, [network.names])
    calls = [[partial(one.decide, samples[0])] for one in taking]
    measured = turns.times(calls, rounds, threads=threads)[:, :, 0]
    return table_of(
        title,
        "ms, median",
        [one.who for one in taking],
        measured,
        base=ORT_DENSE,
        skipped=[*absent, *wrong],
        group=group,
    )


def faces(network: Network, folder: Path, count: int, group: str, threads: int, rounds: int) -> Table:
    """One decision on each of `count` faces."""
    title = f"{count} {'face' if count == 1 else 'faces'}"
    note(f"  scaling: {title}, {threads} threads")
    paths, samples = files(network, folder), networks.samples_of(network.info.source.modalities, count)
    taking, absent = field(network, paths, threads)
    taking, wrong = contestants.judged(taking, samples, [network.names])
    expected = np.stack(_one_by_one(taking[0], samples))
    who, calls, skipped = [], [], [*absent, *wrong]
    for one in taking:
        call: Callable[[], object] = partial(_one_by_one, one, samples)
        if one.who.name == ORT_DENSE:
            path = paths["dense"].with_name(f"dense-{count}.onnx")
            engines.written(path, partial(networks.write_dense, network, batch=count))
            decide = contestants.batched(path, network.info.source.modalities, threads)
            if (off := _apart(decide(samples), expected)) is not None:
                skipped.append(Row(who=one.who, reason=f"a batch is not answered as one by one: {off}"))
                continue
            call = partial(decide, samples)
        who.append(one.who)
        calls.append([call])
    measured = turns.times(calls, rounds, threads=threads)[:, :, 0]
    return table_of(title, "ms, median", who, measured, base=ORT_DENSE, skipped=skipped, group=group)


def _apart(answers: Sequence[np.ndarray], expected: np.ndarray) -> str | None:
    off = float(np.abs(np.stack(answers) - expected).max())
    return None if off <= contestants.FLOAT_TOLERANCE else f"off by {off:.3g}"


def _one_by_one(one: Contestant, samples: Samples) -> Sequence[np.ndarray]:
    return [np.array(one.decide(sample)) for sample in samples]


def measure(folder: Path, threads: int, rounds: int) -> list[Table]:
    """All tables of one number of threads, in three groups."""
    torch.set_num_threads(threads)
    counted = f"{threads} {'thread' if threads == 1 else 'threads'}"
    usual_m, usual_n = _USUAL
    tables = [
        sized(network_with(m, usual_n), folder, f"{m} of them", f"Modalities ({counted})", threads, rounds)
        for m in _MODALITIES
    ]
    tables += [
        sized(network_with(usual_m, n), folder, f"{n} of them", f"Experts ({counted})", threads, rounds)
        for n in _EXPERTS
    ]
    network = network_with(usual_m, usual_n)
    tables += [faces(network, folder, count, f"Faces ({counted})", threads, rounds) for count in _FACES]
    return tables


def main() -> int:
    """Print the tables of one number of threads."""
    parser = part_parser("scaling.py", __doc__, rounds=100)
    parser.add_argument("--threads", type=positive(int, most=256), default=1, help="of every contestant; default: 1")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the files here, and take those that are there")
    try:
        options = parser.parse_args()
        with tempfile.TemporaryDirectory(prefix="mars-edge-") as folder:
            tables = measure(options.work or Path(folder), options.threads, options.rounds)
    except MarsEdgeError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return error.exit_code
    print_tables(tables, as_json=options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
