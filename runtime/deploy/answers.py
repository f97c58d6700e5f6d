"""Prints what one machine answers to recorded raw samples, bit for bit: one JSON line per frame and subset.

    python answers.py MODEL SAMPLES.npz           run the model on the samples
    python answers.py MODEL SAMPLES.npz --record  first write 20 frames of raw samples there
    python answers.py A.jsonl B.jsonl --compare   whether two machines agree: exit code 1 if they do not

Two machines agree when the logits are the same bits, and the same experts ran with gates within 2^-20: the router is
float32, and its kernels add in another order on another processor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mars_edge.manifest import Manifest
from mars_edge.subsets import all_subsets, label
from mars_runtime.engines import Engine, open_engine

FRAMES = 20


def record(manifest: Manifest, path: Path) -> None:
    """Random raw samples of every modality, as its sensor would hand them out."""
    random = np.random.default_rng(0)
    raw: dict[str, Any] = {}
    for modality in manifest.modalities:
        low, high = modality.range
        shape = modality.shape
        if modality.kind == "audio":
            shape = (modality.window_samples,)
        elif modality.kind == "image":
            shape = (*shape[1:], shape[0]) if shape[0] > 1 else shape[1:]
        elif modality.kind == "sequence":
            shape = shape[::-1]
        values = random.uniform(low, high, size=(FRAMES, *shape))
        raw[modality.name] = _titles(values) if modality.kind == "text" else values.astype(modality.dtype)
    with path.open("wb") as file:
        np.savez(file, **raw)


def _titles(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One text of words per frame."""
    return np.array([" ".join(f"word{int(100 * value)}" for value in frame[0]) for frame in values])


def show(engine: Engine, path: Path) -> None:
    """Every subset of every frame; floats as the hexadecimal text that names their bits."""
    names = engine.manifest.names
    with np.load(path) as raw:
        arrays = {name: raw[name] for name in names}
    for frame in range(FRAMES):
        inputs = {name: engine.manifest.modality(name).preprocess(arrays[name][frame]) for name in names}
        for subset in all_subsets(names):
            result = engine.infer({name: inputs[name] for name in subset}, {})
            line = {
                "frame": frame,
                "subset": label(subset, names),
                "logits": [float(v).hex() for v in result.logits],
                "experts": [[index, gate.hex()] for index, gate in result.experts],
            }
            print(json.dumps(line), flush=True)


def differing(one: Sequence[str], other: Sequence[str]) -> int:
    """How many answers of two machines disagree; lines that one of them lacks do."""
    pairs = list(zip(map(json.loads, one), map(json.loads, other), strict=False))
    return abs(len(one) - len(other)) + sum(not _agree(a, b) for a, b in pairs)


def _agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    gates = [[float.fromhex(gate) for _, gate in answer["experts"]] for answer in (one, other)]
    exact = [
        (answer["frame"], answer["subset"], answer["logits"], [index for index, _ in answer["experts"]])
        for answer in (one, other)
    ]
    return exact[0] == exact[1] and all(abs(a - b) <= 2.0**-20 for a, b in zip(*gates, strict=True))


def main() -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("samples", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    if options.compare:
        one, other = (Path(path).read_text().splitlines() for path in (options.model, options.samples))
        count = differing(one, other)
        print(f"{count} of {len(one)} answers differ")
        return 1 if count or not one else 0
    engine = open_engine(options.model)
    if options.record:
        record(engine.manifest, options.samples)
    show(engine, options.samples)
    engine.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
