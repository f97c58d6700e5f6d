"""The training loop, shared by MARS, the baseline and quantization-aware training.

What differs between them is an `Update`: from a batch to the losses. Selection reads the validation
split only, through the deployed path, over every subset of modalities.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mars_edge.errors import MarsEdgeError
from mars_training import checkpoint
from mars_training.augment import augment
from mars_training.checkpoint import RunInfo
from mars_training.data.split import Batch, Data, Split
from mars_training.evaluate import SubsetScore, mean_error, score_subsets
from mars_training.methods import METHODS, build_model, deployed_of
from mars_training.methods.step import Terms
from mars_training.model.backbones import ProjectionEncoder
from mars_training.recipe import Recipe, ScheduleRecipe
from mars_training.sampling import MaskSampler

TrainingModel = nn.Module
"""The model of any method: a module whose `deployed` is what a device runs."""


class Update(Protocol):
    """From a batch to its losses; may record what it saw in the sampler."""

    def __call__(self, batch: Batch, sampler: MaskSampler, epoch: int) -> Terms:
        """Scalars on the graph; "loss" is minimised."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One epoch as numbers.

    Attributes:
        terms: mean of every loss term over the epoch's steps.
        scores: validation, every subset; empty on epochs without validation.
        sampling: by incomplete combination: its discrepancy in this epoch and its probability in the next.
    """

    epoch: int
    epochs: int
    rate: float
    seconds: float
    eta_s: float
    samples_per_s: float
    terms: dict[str, float]
    scores: list[SubsetScore]
    sampling: dict[str, tuple[float, float]]

    @property
    def validation_error(self) -> float:
        """Mean error over subsets; infinite without validation."""
        return mean_error(self.scores) if self.scores else math.inf


@dataclass(kw_only=True)
class Hooks:
    """Where a caller joins the loop.

    Attributes:
        before_epoch: called with the model and the epoch (from 0), in training mode: freeze batch norm here.
        after_epoch: called with every report.
    """

    before_epoch: Callable[[TrainingModel, int], None] = lambda model, epoch: None
    after_epoch: Callable[[EpochReport], None] = lambda report: None


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How training went; the model passed in holds the last epoch's weights, `selected_state` the selected ones."""

    last: EpochReport
    selected: EpochReport
    selected_state: dict[str, Tensor]
    history: list[EpochReport]


def update_for(model: nn.Module, recipe: Recipe) -> Update:
    """The update of the recipe's method: draws a mask per row, and credits router agreement to what was drawn."""
    take_step = METHODS[recipe.method].step

    def update(batch: Batch, sampler: MaskSampler, epoch: int) -> Terms:
        drawn = sampler.draw(len(batch))
        step = take_step(model, batch, sampler.masks(drawn), recipe.loss, epoch)
        if step.agreement is not None:
            sampler.record(drawn, step.agreement)
        return step.terms

    return update


def optimiser_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Every trainable parameter once: matrices and kernels decay, biases and batch-norm scales do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]


def build_optimiser(model: nn.Module, recipe: ScheduleRecipe) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum."""
    groups = optimiser_groups(model, recipe.weight_decay)
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.rate)
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def rate_factor(recipe: ScheduleRecipe, epoch: float) -> float:
    """The factor on the base rate at `epoch` (real): linear warm-up, then a cosine down to 0.01, or steps of 0.1."""
    if epoch < recipe.warmup_epochs:
        return max(epoch, 0.1) / recipe.warmup_epochs if recipe.warmup_epochs > 0.1 else 1.0
    if recipe.schedule == "step":
        return float(0.1 ** sum(epoch >= m * recipe.epochs for m in recipe.milestones))
    progress = (epoch - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1e-9)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def balanced_order(labels: Tensor) -> Tensor:
    """A random order of about len(labels) samples in which every class comes equally often.

    A class is gone through completely before any of its samples repeats.
    """
    classes = torch.unique(labels)
    each = max(len(labels) // len(classes), 1)
    parts = [_repeat_shuffled(torch.nonzero(labels == c).flatten(), each) for c in classes.tolist()]
    order = torch.cat(parts)
    return order[torch.randperm(len(order))]


def _repeat_shuffled(indices: Tensor, count: int) -> Tensor:
    rounds = -(-count // len(indices))
    return torch.cat([indices[torch.randperm(len(indices))] for _ in range(rounds)])[:count]


def batches(split: Split, size: int) -> Iterator[Tensor]:
    """Indices of label-balanced batches; an incomplete last batch is left out, for batch norm's sake."""
    order = balanced_order(split.class_labels)
    size = min(size, len(order))
    yield from (order[i : i + size] for i in range(0, len(order) - size + 1, size))


def use_bf16(recipe: ScheduleRecipe) -> bool:
    """Whether to train in bfloat16: as the recipe says; "auto" asks the processor for AVX512-BF16 or AMX."""
    if recipe.precision == "auto":
        return bool(torch.cpu._is_avx512_bf16_supported())  # torch has no public query for this
    return recipe.precision == "bf16"


class NotFiniteError(MarsEdgeError):
    """A loss was NaN or infinite; the last good checkpoint is still in the run directory."""


@dataclass(kw_only=True)
class _State:
    """What moves during training, all of it in a resume file."""

    optimiser: torch.optim.Optimizer
    sampler: MaskSampler
    history: list[EpochReport] = field(default_factory=list)
    selected: EpochReport | None = None
    selected_state: dict[str, Tensor] = field(default_factory=dict)


def fit(
    model: TrainingModel,
    data: Data,
    recipe: Recipe,
    *,
    seed: int,
    run: Path | None = None,
    hooks: Hooks | None = None,
    update: Update | None = None,
) -> FitResult:
    """Train `model` in place for `recipe.schedule.epochs` epochs.

    With `run`, weights, metrics and resume state are written there after every epoch, and a run that was
    interrupted goes on after its last complete epoch, to the same weights as an uninterrupted one.

    Raises:
        NotFiniteError: a loss was NaN or infinite.
    """
    hooks = hooks or Hooks()
    update = update or update_for(model, recipe)
    torch.manual_seed(seed)
    state = _State(
        optimiser=build_optimiser(model, recipe.schedule),
        sampler=MaskSampler(
            data.source.names,
            start=recipe.sampling.start if recipe.sampling.guided and recipe.method == "mars" else 10**9,
            tau=recipe.sampling.tau,
            floor=recipe.sampling.floor,
        ),
    )
    if run is not None:
        _resume(run, model, state)
    for epoch in range(len(state.history), recipe.schedule.epochs):
        model.train()
        hooks.before_epoch(model, epoch)
        report = _epoch(model, data, recipe, state, update, epoch)
        _select(model, state, report, recipe.schedule)
        if run is not None:
            _save(run, model, state, epoch)
        hooks.after_epoch(report)
    return _finish(run, state)


def _epoch(model: TrainingModel, data: Data, recipe: Recipe, state: _State, update: Update, epoch: int) -> EpochReport:
    started = time.monotonic()
    schedule, optimiser = recipe.schedule, state.optimiser
    rows = list(batches(data.train, schedule.batch_size))
    sums: dict[str, float] = {}
    for step, indices in enumerate(rows):
        _set_rate(optimiser, schedule.rate * rate_factor(schedule, epoch + step / len(rows)))
        batch = augment(data.train.training_batch(indices), data.source.modalities, recipe.augment)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=use_bf16(schedule)):
            terms = update(batch, state.sampler, epoch)
        _step(model, optimiser, terms["loss"], schedule.clip_norm, epoch)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(rows)
    trained_s = time.monotonic() - started
    validates = (epoch + 1) % schedule.validate_every == 0 or epoch + 1 == schedule.epochs
    scores = score_subsets(deployed_of(model), data.validation, data.source) if validates else []
    sampling = _sampling_report(state.sampler, data.source.names, epoch)
    seconds = time.monotonic() - started
    return EpochReport(
        epoch=epoch,
        epochs=schedule.epochs,
        rate=schedule.rate * rate_factor(schedule, epoch),
        seconds=seconds,
        eta_s=seconds * (schedule.epochs - epoch - 1),
        samples_per_s=sum(map(len, rows)) / trained_s,
        terms=sums,
        scores=scores,
        sampling=sampling,
    )


def _sampling_report(sampler: MaskSampler, names: tuple[str, ...], epoch: int) -> dict[str, tuple[float, float]]:
    discrepancy = sampler.end_epoch(epoch)
    labels = ["+".join(n for n, on in zip(names, row, strict=True) if on) for row in sampler.combinations.tolist()]
    pairs = zip(discrepancy.tolist(), sampler.probabilities.tolist(), strict=True)
    return dict(zip(labels, pairs, strict=True))


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, clip_norm: float, epoch: int) -> None:
    if not bool(torch.isfinite(loss)):
        raise NotFiniteError(f"the loss became {float(loss.detach())} in epoch {epoch + 1}; lower schedule.rate")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimiser.step()


def _select(model: nn.Module, state: _State, report: EpochReport, recipe: ScheduleRecipe) -> None:
    """Keep the epoch of least validation error; one from before `select_from` only until there is a later one."""
    state.history.append(report)
    if state.selected is None or _rank(report, recipe) < _rank(state.selected, recipe):
        state.selected = report
        state.selected_state = {name: t.detach().clone() for name, t in model.state_dict().items()}


def _rank(report: EpochReport, recipe: ScheduleRecipe) -> tuple[bool, float]:
    return report.epoch + 1 < recipe.select_from * recipe.epochs, report.validation_error


def _finish(run: Path | None, state: _State) -> FitResult:
    assert state.selected is not None
    if run is not None:
        (run / "resume.pt").unlink(missing_ok=True)
    return FitResult(
        last=state.history[-1], selected=state.selected, selected_state=state.selected_state, history=state.history
    )


def _save(run: Path, model: nn.Module, state: _State, epoch: int) -> None:
    assert state.selected is not None
    checkpoint.save_weights(run / "last.safetensors", model, epoch=epoch)
    if state.selected.epoch == epoch:
        checkpoint.save_weights(run / "selected.safetensors", model, epoch=epoch)
    checkpoint.write_json(
        run / "metrics.json",
        {
            "selected": dataclasses.asdict(state.selected),
            "last": dataclasses.asdict(state.history[-1]),
            "history": [dataclasses.asdict(report) for report in state.history],
        },
    )
    # Written last: a resume file never speaks of weights that are not there yet.
    checkpoint.write_atomically(run / "resume.pt", lambda path: torch.save(_snapshot(model, state), path))


def _snapshot(model: nn.Module, state: _State) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "probabilities": state.sampler.probabilities,
        "generator": torch.get_rng_state(),
        "history": [dataclasses.asdict(report) for report in state.history],
        "selected": None if state.selected is None else dataclasses.asdict(state.selected),
        "selected_state": state.selected_state,
    }


def _resume(run: Path, model: nn.Module, state: _State) -> None:
    path = run / "resume.pt"
    if not path.exists():
        return
    stored = torch.load(path, weights_only=True)
    model.load_state_dict(stored["model"])
    state.optimiser.load_state_dict(stored["optimiser"])
    state.sampler.probabilities = stored["probabilities"]
    torch.set_rng_state(stored["generator"])
    state.history = [_report(table) for table in stored["history"]]
    state.selected = _report(stored["selected"])
    state.selected_state = stored["selected_state"]


def _report(table: Mapping[str, Any]) -> EpochReport:
    return EpochReport(**{**table, "scores": [SubsetScore(**score) for score in table["scores"]]})


def prepare(recipe: Recipe, data: Data, *, seed: int) -> TrainingModel:
    """The untrained model of a recipe; frozen projections are fitted on the training split.

    The same seed gives the same weights.
    """
    torch.manual_seed(seed)
    model = build_model(recipe, data.source.modalities, len(data.source.labels), data.source.task)
    encoders = deployed_of(model).encoders
    for name, module in encoders.items():
        if isinstance(module, ProjectionEncoder):
            module.fit(data.train.batch(torch.arange(len(data.train)))[name])
    return model


def train(recipe: Recipe, data: Data, run: Path, *, seed: int, hooks: Hooks | None = None) -> FitResult:
    """Train a recipe from scratch, or go on where an interrupted run of the same recipe and seed stopped."""
    model = prepare(recipe, data, seed=seed)
    checkpoint.save_info(run, RunInfo(recipe=recipe, seed=seed, source=data.source))
    return fit(model, data, recipe, seed=seed, run=run, hooks=hooks)
