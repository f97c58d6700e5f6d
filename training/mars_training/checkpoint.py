"""A run directory: what one training left behind.

    RUN/run.json               recipe, seed, data source, versions
    RUN/last.safetensors       weights after the latest epoch
    RUN/selected.safetensors   weights of the epoch with the lowest validation mean error
    RUN/metrics.json           one entry per epoch; the selected and the last one
    RUN/resume.pt              optimiser and generator state; removed when training ends

Every file is written beside its place and renamed, so a kill never leaves half a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mars_edge
from mars_edge.errors import UsageError
from mars_training.data.split import Source
from mars_training.methods import build_model, deployed_of
from mars_training.model.deployable import Deployable
from mars_training.recipe import Recipe, recipe_from_dict

Which = Literal["selected", "last"]


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What was trained, on what, with which seed."""

    recipe: Recipe
    seed: int
    source: Source


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`path` holds either what it held before or all of what `write` wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(partial)
    partial.replace(path)


def write_json(path: Path, value: object) -> None:
    """Indented JSON, atomically."""
    text = json.dumps(value, indent=1) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def save_info(run: Path, info: RunInfo) -> None:
    """Write RUN/run.json."""
    write_json(
        run / "run.json",
        {
            "recipe": info.recipe.to_dict(),
            "seed": info.seed,
            "source": info.source.to_dict(),
            "versions": {"mars_edge": mars_edge.__version__, "torch": torch.__version__},
        },
    )


def load_info(run: Path) -> RunInfo:
    """What RUN/run.json says.

    Raises:
        UsageError: `run` is not a run directory.
    """
    try:
        table = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run} is not a run directory: it has no run.json; `mars-edge train` makes one") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{run / 'run.json'} is not JSON: {error}") from None
    return RunInfo(
        recipe=recipe_from_dict(table["recipe"]), seed=table["seed"], source=Source.from_dict(table["source"])
    )


def save_weights(path: Path, model: nn.Module, *, epoch: int) -> None:
    """All parameters and buffers, with the epoch in the metadata."""
    state = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
    write_atomically(path, lambda p: save_file(state, p, metadata={"epoch": str(epoch)}))


def load_weights(run: Path, which: Which) -> dict[str, Tensor]:
    """The weights of RUN/selected.safetensors or RUN/last.safetensors.

    Raises:
        UsageError: training has not written them.
    """
    path = run / f"{which}.safetensors"
    if not path.exists():
        raise UsageError(f"{run} has no {path.name}: training has not finished an epoch")
    weights: dict[str, Tensor] = load_file(path)
    return weights


def load_model(run: Path, which: Which = "selected") -> tuple[nn.Module, RunInfo]:
    """The trained model, what is privileged included, and what it was trained on."""
    info = load_info(run)
    model = build_model(info.recipe, info.source.modalities, len(info.source.labels), info.source.task)
    model.load_state_dict(load_weights(run, which))
    return model, info


def load_deployed(run: Path, which: Which = "selected") -> tuple[Deployable, RunInfo]:
    """The model as a device runs it: without anything privileged."""
    model, info = load_model(run, which)
    return deployed_of(model), info


def load_metrics(run: Path) -> Mapping[str, Any]:
    """RUN/metrics.json; empty before the first epoch has ended."""
    path = run / "metrics.json"
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return metrics
