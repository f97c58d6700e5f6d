"""The converted pieces of a run, kept in RUN/qat/KEY so that every artifact of it has the same scales.

<method>.pt2   one exported program per piece, any batch
made.json      how: the candidates, which was chosen, what was done differently
key.json       what they were made from; written last

KEY is a digest of what they were made from: other options get a folder of their own and replace nothing. What is
damaged counts as not there.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mars_export.hush import hushed
from mars_export.parity import sample_ids
from mars_export.pieces import Piece, example_inputs, one_dequantizer_each, pieces_of, replace_piece, trace
from mars_training.checkpoint import write_atomically, write_json
from mars_training.data.split import Split
from mars_training.model.mars import DeployedMars

_ROWS = 64
# What reading a cut or changed file raises, in json, zipfile and torch.
_DAMAGED = (ValueError, zipfile.BadZipFile, RuntimeError, OSError, KeyError, EOFError, pickle.UnpicklingError)


def key(
    run: Path, settings: Mapping[str, Any], seed: int, *, data: Split, experts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Equal keys give equal pieces: weights, `quantize.settings`, seed, training data, pruning, torch's version."""
    versions = {"torch": torch.__version__, "torchao": metadata.version("torchao")}
    return {
        "weights": checkpoint_digest(run),
        "settings": dict(settings),
        "seed": seed,
        "data": _data(data),
        "experts": experts,
        **versions,
    }


def checkpoint_digest(run: Path) -> str:
    """SHA-256 of the weights that are exported; every artifact of a run names the same one."""
    return hashlib.sha256((run / "selected.safetensors").read_bytes()).hexdigest()


def _data(split: Split) -> dict[str, Any]:
    """The number of rows, and a digest of some of them."""
    some = split.take(torch.linspace(0, len(split) - 1, min(len(split), _ROWS)).long())
    return {"rows": len(split), "some": hashlib.sha256("".join(sample_ids(some)).encode()).hexdigest()}


def folder_of(run: Path, wanted: Mapping[str, Any]) -> Path:
    """Where the pieces of a key lie."""
    text = json.dumps(dict(wanted), sort_keys=True)
    return run / "qat" / hashlib.sha256(text.encode()).hexdigest()[:12]


def save(
    folder: Path,
    wanted: Mapping[str, Any],
    converted: DeployedMars,
    shapes: Mapping[str, Any],
    said: Mapping[str, Any],
) -> None:
    """Writes every converted piece of the model, and what is to be `said` of their making, in JSON types."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.json").unlink(missing_ok=True)
    examples = example_inputs(converted, shapes, batch=2)
    for method, piece in pieces_of(converted).items():
        with hushed(), torch.no_grad():
            program = trace(piece, examples[method])
            _write_program(folder / f"{method}.pt2", program)
    write_json(folder / "made.json", dict(said))
    write_json(folder / "key.json", dict(wanted))


def _write_program(path: Path, program: torch.export.ExportedProgram) -> None:
    # torch.export.save insists on the suffix .pt2, which the temporary name lacks: it gets an open file.
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            torch.export.save(program, file)

    write_atomically(path, write)


def load(folder: Path, wanted: Mapping[str, Any], deployed: DeployedMars) -> tuple[DeployedMars, dict[str, Any]] | None:
    """`deployed` with the stored pieces in place of its own, and what was said of them.

    None when they are of another key, incomplete or damaged.
    """
    try:
        return _load(folder, wanted, deployed)
    except _DAMAGED:
        return None


def _load(
    folder: Path, wanted: Mapping[str, Any], deployed: DeployedMars
) -> tuple[DeployedMars, dict[str, Any]] | None:
    # torch.export.load knows the quantization operators only once they are registered, by this import.
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    stored = folder / "key.json"
    if not stored.exists() or json.loads(stored.read_text(encoding="utf-8")) != json.loads(json.dumps(wanted)):
        return None
    converted = copy.deepcopy(deployed)
    for method in pieces_of(deployed):
        path = folder / f"{method}.pt2"
        if not path.exists():
            return None
        with hushed(), path.open("rb") as file:
            program = torch.export.load(file)
        # Exporting may merge equal dequantizers again.
        replace_piece(converted, method, Piece(one_dequantizer_each(program.module())))
    said: dict[str, Any] = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    return converted, said
