"""A run directory: what one training left behind.

    RUN/run.json               recipe, seed, data source, versions
    RUN/last.safetensors       weights after the latest epoch
    RUN/selected.safetensors   weights of the epoch with the lowest validation mean error
    RUN/metrics.json           one entry per epoch; the selected and the last one
    RUN/resume.safetensors     all that a killed run goes on with; removed when training ends

Every file is written beside its place and renamed, so a kill never leaves half a file. The resume file holds
everything that the others are made of and is written before them: whatever a kill leaves, it is the truth.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mars_edge
from mars_edge.errors import UsageError
from mars_training.data.split import Source
from mars_training.methods import build_model, deployed_of
from mars_training.model.deployable import Deployable
from mars_training.recipe import Recipe, recipe_from_dict

Which = Literal["selected", "last"]
Taken = TypeVar("Taken")
_PARTIAL = ".tmp"
_RESUME = "resume.safetensors"
_RUN_KEYS = ("recipe", "seed", "source")
_REPORT_KEYS = ("epoch", "rate", "terms", "scores", "sampling")
_RESTORE = "put a copy of it back, or train again into another directory"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What was trained, on what, with which seed."""

    recipe: Recipe
    seed: int
    source: Source


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`path` holds either what it held before or all of what `write` wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    write(partial)
    # Without this a power cut may keep the new name and lose what it names.
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(path)


def remove_partials(run: Path) -> None:
    """Delete what a killed process was writing in `run`; nobody else may be writing there."""
    # The second are safetensors': it writes to a file of its own beside the one it is given.
    for partial in (*run.glob(f".*{_PARTIAL}"), *run.glob(f"{_PARTIAL}??????")):
        partial.unlink(missing_ok=True)


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
        UsageError: `run` is not a run directory, or its run.json is damaged.
    """
    path = run / "run.json"
    try:
        table = _read_table(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run} is not a run directory: it has no run.json; `mars-edge train` makes one") from None
    lacking = [key for key in _RUN_KEYS if key not in table]
    if lacking:
        raise _damaged(path, f"it lacks {lacking[0]!r}")
    try:
        source = Source.from_dict(table["source"])
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its source cannot be read: {error!r}") from None
    return RunInfo(recipe=recipe_from_dict(table["recipe"]), seed=table["seed"], source=source)


def _read_table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, f"it is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise _damaged(path, "it is not a JSON object")
    return table


def _damaged(path: Path, reason: object, remedy: str = _RESTORE) -> UsageError:
    """One line about a file of a run that is not what training wrote."""
    return UsageError(f"{path} is damaged: {' '.join(str(reason).split())}; {remedy}")


def refuse_another_run(run: Path, info: RunInfo) -> None:
    """Nothing, unless `run` holds a finished training, or an interrupted one of something else.

    Raises:
        UsageError: it does, or its files are damaged.
    """
    if not (run / "run.json").exists():
        return
    if is_finished(run):
        raise UsageError(f"{run} holds a finished run; choose another directory with -o")
    if load_info(run) != info:
        raise UsageError(f"{run} holds an interrupted run of another recipe or seed; choose another directory with -o")


def save_weights(path: Path, weights: Mapping[str, Tensor], *, epoch: int) -> None:
    """All parameters and buffers of a state dict, with the epoch in the metadata."""
    _save_tensors(path, weights, {"epoch": str(epoch)})


def _save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    plain = {name: t.detach().contiguous() for name, t in tensors.items()}
    write_atomically(path, lambda p: save_file(plain, p, metadata=metadata))


def save_resume(run: Path, tensors: Mapping[str, Tensor], facts: object) -> None:
    """RUN/resume.safetensors: tensors, and `facts` as JSON in its metadata: one file, so that they always agree."""
    _save_tensors(run / _RESUME, tensors, {"facts": json.dumps(facts)})


def load_resume(run: Path) -> tuple[dict[str, Tensor], Any] | None:
    """The tensors and the facts that a killed run left; None when there is nothing to go on with.

    Raises:
        UsageError: the file is damaged.
    """

    def everything(stored: Any, facts: Any) -> tuple[dict[str, Tensor], Any]:
        return {name: stored.get_tensor(name) for name in stored.keys()}, facts  # noqa: SIM118 - no mapping

    return _from_resume(run, everything)


def _from_resume(run: Path, take: Callable[[Any, Any], Taken]) -> Taken | None:
    """`take(stored, facts)` of the open resume file; None when there is none."""
    path = run / _RESUME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            return take(stored, _facts_of(stored.metadata()))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise damaged_resume(run, error) from None


def _facts_of(metadata: Mapping[str, str] | None) -> Any:
    if "facts" not in (metadata or {}):
        raise ValueError("it is not of a training of mars-edge")
    assert metadata is not None
    return json.loads(metadata["facts"])


def load_progress(run: Path) -> tuple[int, int] | None:
    """Whole epochs, and steps of the next one, that the same command goes on after; None with nothing to go on with.

    Raises:
        UsageError: the file is damaged.
    """
    return _from_resume(run, lambda stored, facts: (len(facts["history"]), facts["step"]))


def damaged_resume(run: Path, reason: object) -> UsageError:
    """What to say when the training cannot go on from RUN/resume.safetensors."""
    remedy = "delete it to start again from the first epoch"
    if (run / "metrics.json").exists():
        remedy = (
            "this training cannot go on: delete the whole directory to start again, "
            "or only that file to keep the weights of the last whole epoch as the result"
        )
    return _damaged(run / _RESUME, reason, remedy)


def remove_resume(run: Path) -> None:
    """The training has ended: nothing is left to go on with."""
    (run / _RESUME).unlink(missing_ok=True)


def is_finished(run: Path) -> bool:
    """Whether the training in `run` ended by itself, instead of being interrupted."""
    # Metrics are first written when there is a resume file, which is removed last.
    return (run / "metrics.json").exists() and not (run / _RESUME).exists()


def load_weights(run: Path, which: Which) -> dict[str, Tensor]:
    """The weights of RUN/selected.safetensors or RUN/last.safetensors.

    Raises:
        UsageError: training has not written them, or the file is damaged.
    """
    path = run / f"{which}.safetensors"
    if not path.exists():
        raise UsageError(f"{run} has no {path.name}: training has not finished an epoch")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return weights


def misfit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first name or shape in which `tensors` are not those of a state dict `wanted`; empty when they are."""
    for name in {**wanted, **tensors}:
        if name not in tensors or name not in wanted:
            return f"{name} is {'missing' if name in wanted else 'not of this model'}"
        if tensors[name].shape != wanted[name].shape:
            return f"{name} is {tuple(tensors[name].shape)}; the model has {tuple(wanted[name].shape)}"
    return ""


def load_model(run: Path, which: Which = "selected") -> tuple[nn.Module, RunInfo]:
    """The trained model, what is privileged included, and what it was trained on.

    Raises:
        UsageError: not a run directory, no epoch has ended, or a file is damaged.
    """
    info = load_info(run)
    model = build_model(info.recipe, info.source.modalities, len(info.source.labels), info.source.task)
    weights = load_weights(run, which)
    reason = misfit(weights, model.state_dict())
    if reason:
        raise _damaged(run / f"{which}.safetensors", reason)
    model.load_state_dict(weights)
    return model, info


def load_deployed(run: Path, which: Which = "selected") -> tuple[Deployable, RunInfo]:
    """The model as a device runs it: without anything privileged."""
    model, info = load_model(run, which)
    return deployed_of(model), info


def load_metrics(run: Path) -> Mapping[str, Any]:
    """RUN/metrics.json; empty before the first epoch has ended.

    Raises:
        UsageError: the file is damaged.
    """
    path = run / "metrics.json"
    if not path.exists():
        return {}
    metrics = _read_table(path)
    history = metrics.get("history")
    reports = [metrics.get("selected"), metrics.get("last"), *(history if isinstance(history, list) else [None])]
    if not history or not all(isinstance(r, dict) and all(key in r for key in _REPORT_KEYS) for r in reports):
        raise _damaged(path, "it does not hold the epochs of a training")
    return metrics
