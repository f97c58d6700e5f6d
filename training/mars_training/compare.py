"""Running a grid: every cell trained and evaluated once, in worker processes; what is finished is never done again.

    DIR/<row>/seed<S>[-fold<F>]/        a run directory, as `mars-edge train` leaves it
        evaluation-<split>.json         both checkpoints on every subset, with the digests of the weights it is of
        failure.json                    why the last attempt failed, if it did

An oracle's folder holds no run: it is evaluated from the run it is the oracle of.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mars_edge.errors import UsageError
from mars_training.checkpoint import Which, is_finished, load_info, load_metrics, load_model, write_json
from mars_training.commands.evaluate import Result, results_as_dict
from mars_training.costs import costs
from mars_training.data.load import load_data, load_split
from mars_training.data.split import Data, Split
from mars_training.evaluate import evaluate
from mars_training.grid import Cell
from mars_training.methods import deployed_of
from mars_training.methods.oracle import oracle_of
from mars_training.model.deployable import Deployable
from mars_training.recipe import Recipe, SplitName
from mars_training.train import Hooks, train
from mars_training.workers import Event, RefusedError, Report, run_tasks

State = Literal["finished", "to evaluate", "interrupted", "failed", "to train", "changed"]
_CHECKPOINTS: tuple[Which, ...] = ("selected", "last")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a grid runs and what it is measured on.

    Attributes:
        output: the folder of all runs.
        folder: the data set's, for readers that need one.
    """

    output: Path
    split: SplitName
    folder: Path | None = None

    def run(self, cell: Cell) -> Path:
        """The cell's own folder."""
        return self.output / cell.folder

    def weights(self, cell: Cell) -> Path:
        """The run whose weights the cell is about."""
        return self.output / cell.source

    def evaluation(self, cell: Cell) -> Path:
        """Where the cell's scores are."""
        return self.run(cell) / f"evaluation-{self.split}.json"


def state_of(cell: Cell, place: Place) -> State:
    """How far a cell is, from its files alone."""
    if change_of(cell, place):
        return "changed"
    if read_evaluation(cell, place) is not None:
        return "finished"
    if failure_of(cell, place):
        return "failed"
    if is_finished(place.weights(cell)):
        return "to evaluate"
    return "interrupted" if (place.run(cell) / "run.json").exists() else "to train"


def change_of(cell: Cell, place: Place) -> str:
    """What differs between the cell and the run in its folder; empty when nothing does or there is no run."""
    run = place.weights(cell)
    if not (run / "run.json").exists():
        return ""
    try:
        info = load_info(run)
    except UsageError as error:
        return str(error)
    if info.seed != cell.seed:
        return f"seed is {info.seed} there and {cell.seed} in the grid"
    return _first_difference(info.recipe.to_dict(), cell.recipe.to_dict())


def _first_difference(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> str:
    for key in {**there, **here}:
        a, b = there.get(key), here.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            return _first_difference(a, b, f"{prefix}{key}.")
        return f"{prefix}{key} is {a!r} there and {b!r} in the grid"
    return ""


def refuse_changed(cells: Sequence[Cell], place: Place) -> None:
    """Nothing, unless a cell's folder holds a run of another recipe.

    Raises:
        UsageError: it names the cell, the key, and how to go on.
    """
    for cell in cells:
        change = change_of(cell, place)
        if change:
            raise UsageError(
                f"{place.weights(cell)} holds another run ({change}); "
                "give --redo to replace it, or another folder with -o"
            )


def discard_changed(cells: Sequence[Cell], place: Place) -> list[Cell]:
    """The cells whose folders held a run of another recipe; the folders are gone."""
    changed = [cell for cell in cells if not cell.row.oracle_of and change_of(cell, place)]
    for cell in changed:
        shutil.rmtree(place.run(cell))
    return changed


def read_evaluation(cell: Cell, place: Place) -> dict[str, Any] | None:
    """The cell's scores; None when there are none of the cell's recipe and of the weights that are there now."""
    stored = _read_json(place.evaluation(cell))
    if stored is None or stored["weights"] != _digests(place.weights(cell)) or change_of(cell, place):
        return None
    return stored


def failure_of(cell: Cell, place: Place) -> str:
    """Why the last attempt at a cell failed; empty when it did not."""
    stored = _read_json(place.run(cell) / "failure.json")
    return stored["reason"] if stored else ""


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def _digests(run: Path) -> dict[str, str]:
    """SHA-256 of each checkpoint that is there."""
    paths = {which: run / f"{which}.safetensors" for which in _CHECKPOINTS}
    return {which: hashlib.sha256(path.read_bytes()).hexdigest() for which, path in paths.items() if path.exists()}


def run_cells(cells: Sequence[Cell], place: Place, *, jobs: int, threads: int) -> Generator[Event, None, None]:
    """Train and evaluate what is not finished of `cells`; failures are recorded and the others go on.

    Event tasks are indices into `cells`. An oracle waits for its source's cell if that is among them.
    """
    indices = {cell.folder: i for i, cell in enumerate(cells)}
    after = [indices.get(cell.source) if cell.row.oracle_of else None for cell in cells]
    for event in run_tasks(cells, RunCell(place), jobs=jobs, threads=threads, after=after):
        if event.kind == "failed":
            record = {"reason": event.value, "traceback": event.trace}
            write_json(place.run(cells[event.task]) / "failure.json", record)
        yield event


@dataclass(frozen=True)
class RunCell:
    """What a worker does with a cell."""

    place: Place

    def __call__(self, cell: Cell, report: Report) -> None:
        """Train unless that is done, then evaluate; reports (epoch, epochs)."""
        run = self.place.run(cell)
        (run / "failure.json").unlink(missing_ok=True)
        if not cell.row.oracle_of and not is_finished(run):
            _train(cell, self.place, report)
        write_json(self.place.evaluation(cell), _evaluate(cell, self.place))


def _train(cell: Cell, place: Place, report: Report) -> None:
    data = _LOADED.data(cell.recipe, place)
    hooks = Hooks(after_epoch=lambda epoch: report((epoch.epoch + 1, epoch.epochs)))
    train(cell.recipe, data, place.run(cell), seed=cell.seed, hooks=hooks)


def _evaluate(cell: Cell, place: Place) -> dict[str, Any]:
    run = place.weights(cell)
    if not is_finished(run):
        raise UsageError(f"{run} has no finished run to evaluate with its residual router")
    split = _LOADED.split(cell.recipe, place, place.split)
    loaded = {which: load_model(run, which) for which in _CHECKPOINTS}
    epochs = load_metrics(run)
    results: dict[str, Result] = {
        which: Result(
            evaluation=evaluate(
                _measured(cell, model), split, info.source, always_present=cell.recipe.data.always_present
            )
        )
        for which, (model, info) in loaded.items()
    }
    model, info = loaded["selected"]
    cost = costs(deployed_of(model), info.source.modalities, info.source.task)
    return {
        "split": place.split,
        "note": info.source.note,
        "parameters": cost.parameters,
        "macs": cost.macs(info.source.names),
        "weights": _digests(run),
        "epochs": {which: epochs[which]["epoch"] + 1 for which in _CHECKPOINTS},
        **results_as_dict(results),
    }


def _measured(cell: Cell, model: nn.Module) -> Deployable:
    # The only way to the privileged router, and only a row that says so takes it.
    return oracle_of(model) if cell.row.oracle_of else deployed_of(model)


@dataclass(kw_only=True)
class _Loaded:
    """The data of the cell before, which is mostly that of the next."""

    key: str = ""
    splits: dict[str, Split] = field(default_factory=dict)
    training: Data | None = None

    def data(self, recipe: Recipe, place: Place) -> Data:
        """What training may see."""
        self._turn_to(recipe)
        if self.training is None:
            self.training = _alone(place, lambda: load_data(recipe, folder=place.folder))
        return self.training

    def split(self, recipe: Recipe, place: Place, name: SplitName) -> Split:
        """One split."""
        self._turn_to(recipe)
        if name == "validation" and self.training is not None:
            return self.training.validation
        if name not in self.splits:
            self.splits[name] = _alone(place, lambda: load_split(recipe, name, folder=place.folder))
        return self.splits[name]

    def _turn_to(self, recipe: Recipe) -> None:
        key = json.dumps(recipe.to_dict()["data"], sort_keys=True)
        if key != self.key:
            self.key, self.splits, self.training = key, {}, None


_LOADED = _Loaded()
"""One per process, empty in a parent."""


def _alone(place: Place, load: Callable[[], Any]) -> Any:
    """What `load` gives, one process at a time: a cache that is filled once is not filled by every worker.

    Raises:
        RefusedError: the data cannot be read, which no other cell would do better.
    """
    with (place.output / ".data.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            return load()
        except UsageError as error:
            raise RefusedError(str(error)) from error
