"""The converted pieces of a run, kept in RUN/qat so that every artifact of it has the same scales.

RUN/qat/<method>.pt2   one exported program per piece, any batch
RUN/qat/made.json      how: the candidates, which was chosen, what was done differently
RUN/qat/key.json       what they were made from; written last
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mars_export.hush import hushed
from mars_export.pieces import Piece, example_inputs, one_dequantizer_each, pieces_of, replace_piece, trace
from mars_training.checkpoint import write_atomically, write_json
from mars_training.model.mars import DeployedMars


def key(
    run: Path, settings: Mapping[str, Any], seed: int, *, experts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Equal keys give equal pieces: the weights, `quantize.settings`, the seed, pruning, and torch's version."""
    weights = hashlib.sha256((run / "selected.safetensors").read_bytes()).hexdigest()
    versions = {"torch": torch.__version__, "torchao": metadata.version("torchao")}
    return {"weights": weights, "settings": dict(settings), "seed": seed, "experts": experts, **versions}


def save(
    folder: Path,
    wanted: Mapping[str, Any],
    converted: DeployedMars,
    shapes: Mapping[str, Any],
    said: Mapping[str, Any],
) -> None:
    """Writes every converted piece of the model, and what is to be `said` of their making, in JSON types."""
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

    None when they are of another key or incomplete.
    """
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
