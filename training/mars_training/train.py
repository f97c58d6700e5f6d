"""The training loop, shared by MARS, the baseline and quantization-aware training.

What differs between them is an `Update`: from a batch to the losses. Selection reads the validation
split only, through the deployed path, over every subset of modalities.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from mars_edge.errors import MarsEdgeError, UsageError
from mars_training import checkpoint, device, distributed, draws, state
from mars_training.augment import augment
from mars_training.batch_norm import over_whole_batch
from mars_training.checkpoint import RunInfo
from mars_training.data.batches import batches, read_ahead
from mars_training.data.split import Batch, Data
from mars_training.epoch import EpochReport as EpochReport
from mars_training.epoch import StepReport
from mars_training.evaluate import SubsetScore, score_subsets
from mars_training.lock import sole_user
from mars_training.methods import METHODS, TakeStep, build_model, deployed_of
from mars_training.methods.step import Step, Terms
from mars_training.model.encoders.projection import ProjectionEncoder
from mars_training.optimiser import build_optimiser, rate_factor, set_rate
from mars_training.recipe import LossRecipe, Recipe, ScheduleRecipe
from mars_training.sampling import MaskSampler
from mars_training.state import State

TrainingModel = nn.Module
"""The model of any method: a module whose `deployed` is what a device runs."""


class Update(Protocol):
    """From a batch to its losses; may record what it saw in the sampler."""

    def __call__(self, batch: Batch, sampler: MaskSampler, epoch: int) -> Terms:
        """Scalars on the graph; "loss" is minimised."""


@dataclass(kw_only=True)
class Hooks:
    """Where a caller joins the loop.

    Attributes:
        before_epoch: called with the model and the epoch (from 0), in training mode: freeze batch norm here. A run
            that goes on within an epoch calls it again.
        after_step: called with how far the epoch is.
        after_epoch: called with every report.
    """

    before_epoch: Callable[[TrainingModel, int], None] = lambda model, epoch: None
    after_step: Callable[[StepReport], None] = lambda report: None
    after_epoch: Callable[[EpochReport], None] = lambda report: None


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How training went; the model passed in holds the last epoch's weights, `selected_state` the selected ones."""

    last: EpochReport
    selected: EpochReport
    selected_state: dict[str, Tensor]
    history: list[EpochReport]


def update_for(model: nn.Module, recipe: Recipe, *, compiled: bool = False) -> Update:
    """The update of the recipe's method: draws each row's masks, and credits router agreement to what was drawn."""
    take_step = METHODS[recipe.method].step
    if compiled:
        take_step = _compiled(take_step)

    def update(batch: Batch, sampler: MaskSampler, epoch: int) -> Terms:
        drawn = sampler.draw(len(batch) * recipe.sampling.masks_per_row)
        masks = sampler.masks(drawn).to(batch.present.device)
        step = take_step(model, batch, masks, recipe.loss, epoch)
        if step.agreement is not None:
            sampler.record(drawn, step.agreement)
        return step.terms

    return update


def _compiled(take_step: TakeStep) -> TakeStep:
    """The step as code that torch.compile makes; it draws the random numbers that the plain step draws."""
    made: TakeStep = torch.compile(take_step, options={"fallback_random": True})

    def step(model: nn.Module, batch: Batch, partial: Tensor, loss: LossRecipe, epoch: int) -> Step:
        with warnings.catch_warnings():
            # While it traces, torch asks intermediate results for their gradient and warns itself of that.
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor")
            return made(model, batch, partial, loss, epoch)

    return step


class NotFiniteError(MarsEdgeError):
    """A loss or gradient was NaN or infinite; the last good checkpoint is still in the run directory."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a training is, as long as it runs."""

    model: TrainingModel
    data: Data
    recipe: Recipe
    seed: int
    run: Path | None
    hooks: Hooks
    update: Update

    @property
    def schedule(self) -> ScheduleRecipe:
        return self.recipe.schedule


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
    """Train `model` in place, where its parameters are, for `recipe.schedule.epochs` epochs.

    With `run`, weights, metrics and resume state are written there after every epoch, and within one as often as
    the recipe says. A run that was killed goes on from there, to the same weights as an uninterrupted one.

    Raises:
        NotFiniteError: a loss or gradient was NaN or infinite; the model in memory is spoilt, the files are good.
    """
    job = _Job(
        model=model,
        data=data,
        recipe=recipe,
        seed=seed,
        run=run,
        hooks=hooks or Hooks(),
        update=update or update_for(model, recipe),
    )
    now = State(model=model, optimiser=build_optimiser(model, recipe.schedule), sampler=_sampler(data, recipe))
    if distributed.size() > 1:
        model.load_state_dict(distributed.tensors_from_main(model.state_dict()))
    if run is not None:
        state.load(run, now)
    with over_whole_batch(model):
        while not _is_over(now, recipe.schedule):
            _train_epoch(job, now)
    if run is not None and distributed.is_main():
        checkpoint.remove_resume(run)
    return _result(now)


def _sampler(data: Data, recipe: Recipe) -> MaskSampler:
    return MaskSampler(
        data.source.names,
        start=recipe.sampling.start if recipe.sampling.guided and recipe.method == "mars" else 10**9,
        tau=recipe.sampling.tau,
        floor=recipe.sampling.floor,
        always_present=recipe.data.always_present,
    )


def _is_over(now: State, schedule: ScheduleRecipe) -> bool:
    """Whether all epochs are done, or validation has just told for the `patience`-th epoch that it gets no better."""
    if now.epoch >= schedule.epochs:
        return True
    if not schedule.patience or not now.history or not now.history[-1].scores or now.step:
        return False
    assert now.selected is not None
    return now.epoch - 1 - now.selected.epoch >= schedule.patience


def _result(now: State) -> FitResult:
    assert now.selected is not None
    return FitResult(
        last=now.history[-1], selected=now.selected, selected_state=now.selected_weights, history=now.history
    )


def _train_epoch(job: _Job, now: State) -> None:
    job.model.train()
    job.hooks.before_epoch(job.model, now.epoch)
    samples = _take_steps(job, now)
    report = _validated(job, now, samples)
    if now.selected is None or _rank(report, job.schedule) < _rank(now.selected, job.schedule):
        now.select(report)
    now.end_epoch(report)
    if job.run is not None:
        state.save(job.run, now)
    job.hooks.after_epoch(report)


def _rank(report: EpochReport, recipe: ScheduleRecipe) -> tuple[bool, float]:
    """Least is best: an epoch from before `select_from` counts only until there is a later one."""
    return report.epoch + 1 < recipe.select_from * recipe.epochs, report.validation_error


def _take_steps(job: _Job, now: State) -> int:
    """Take the steps of the epoch that are not done yet; returns the samples of all its steps."""
    rows = batches(job.data.train, job.schedule.batch_size, draws.generator(job.seed, now.epoch))
    saved = time.monotonic()
    started = saved - now.seconds
    own = [distributed.own(indices) for indices in rows[now.step :]]
    with closing(read_ahead(job.data.train.training_batch, own)) as ready:
        for batch in ready:
            values = _step(job, now, batch, len(rows))
            for name, value in values.items():
                now.sums[name] = now.sums.get(name, 0.0) + value / len(rows)
            now.step += 1
            now.seconds = time.monotonic() - started
            job.hooks.after_step(_progress(job, now, rows))
            if now.step < len(rows) and _is_due(job, time.monotonic() - saved):
                assert job.run is not None
                state.save(job.run, now)
                saved = time.monotonic()
    return sum(map(len, rows))


def _is_due(job: _Job, since_saved_s: float) -> bool:
    every_s = job.schedule.checkpoint_every_s
    if job.run is None or not every_s:
        return False
    # One clock decides for all processes.
    return distributed.from_main(lambda: since_saved_s >= every_s)


def _step(job: _Job, now: State, batch: Batch, steps: int) -> dict[str, float]:
    """One step of the optimiser; returns the value of every loss term."""
    where = device.of(job.model)
    set_rate(now.optimiser, job.schedule.rate * rate_factor(job.schedule, now.epoch + now.step / steps))
    draws.reseed(job.seed, now.epoch, now.step)
    batch = device.moved(augment(batch, job.data.source.modalities, job.recipe.augment), where)
    with device.autocast(job.schedule.precision, where):
        terms = job.update(batch, now.sampler, now.epoch)
    now.optimiser.zero_grad(set_to_none=True)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    distributed.average_gradients(job.model)
    norm = nn.utils.clip_grad_norm_(job.model.parameters(), job.schedule.clip_norm)
    now.optimiser.step()
    # One read at the end of the step: on a GPU each would wait for all work that is under way.
    *values, gradient = distributed.average(torch.stack([*(t.detach().float() for t in terms.values()), norm])).tolist()
    read = dict(zip(terms, values, strict=True))
    _require_finite("loss", read["loss"], now.epoch)
    _require_finite("gradient", gradient, now.epoch)
    return read


def _require_finite(what: str, value: float, epoch: int) -> None:
    if not math.isfinite(value):
        raise NotFiniteError(f"the {what} became {value} in epoch {epoch + 1}; lower schedule.rate")


def _progress(job: _Job, now: State, rows: list[Tensor]) -> StepReport:
    per_step_s = now.seconds / now.step
    left = (job.schedule.epochs - now.epoch) * len(rows) - now.step
    return StepReport(
        epoch=now.epoch,
        epochs=job.schedule.epochs,
        step=now.step,
        steps=len(rows),
        samples_per_s=len(rows[0]) / max(per_step_s, 1e-9),
        eta_s=left * per_step_s,
    )


def _validated(job: _Job, now: State, samples: int) -> EpochReport:
    """The report of the epoch whose steps are done."""
    schedule, source = job.schedule, job.data.source
    started = time.monotonic()
    validates = (now.epoch + 1) % schedule.validate_every == 0 or now.epoch + 1 == schedule.epochs
    scores = distributed.from_main(lambda: _scores(job)) if validates else []
    sampling = _sampling_report(now.sampler, source.names, now.epoch)
    seconds = now.seconds + time.monotonic() - started
    return EpochReport(
        epoch=now.epoch,
        epochs=schedule.epochs,
        rate=schedule.rate * rate_factor(schedule, now.epoch),
        seconds=seconds,
        eta_s=seconds * (schedule.epochs - now.epoch - 1),
        samples_per_s=samples / max(now.seconds, 1e-9),
        terms=now.sums,
        scores=scores,
        sampling=sampling,
    )


def _scores(job: _Job) -> list[SubsetScore]:
    always = job.recipe.data.always_present
    return score_subsets(deployed_of(job.model), job.data.validation, job.data.source, always_present=always)


def _sampling_report(sampler: MaskSampler, names: tuple[str, ...], epoch: int) -> dict[str, tuple[float, float]]:
    sampler.agreement, sampler.drawn = distributed.all_sum(sampler.agreement), distributed.all_sum(sampler.drawn)
    discrepancy = sampler.end_epoch(epoch)
    labels = ["+".join(n for n, on in zip(names, row, strict=True) if on) for row in sampler.combinations.tolist()]
    pairs = zip(discrepancy.tolist(), sampler.probabilities.tolist(), strict=True)
    return dict(zip(labels, pairs, strict=True))


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


def train(
    recipe: Recipe,
    data: Data,
    run: Path,
    *,
    seed: int,
    hooks: Hooks | None = None,
    where: torch.device | None = None,
    compiled: bool = False,
) -> FitResult:
    """Train a recipe from scratch, or go on where an interrupted run of the same recipe and seed stopped.

    On the processor, or on the device `where`; with `compiled`, torch.compile makes the step's code first.

    Raises:
        UsageError: `run` is being trained into, holds another or a finished run, or the data cannot be learned from.
        NotFiniteError: as `fit`.
    """
    _refuse_unlearnable(recipe, data)
    model = prepare(recipe, data, seed=seed).to(where)
    info = RunInfo(recipe=recipe, seed=seed, source=data.source)
    with sole_user(run, busy_message(run)) if distributed.is_main() else nullcontext():
        if distributed.is_main():
            checkpoint.refuse_another_run(run, info)
            checkpoint.save_info(run, info)
        update = update_for(model, recipe, compiled=compiled)
        return fit(model, data, recipe, seed=seed, run=run, hooks=hooks, update=update)


def busy_message(run: Path) -> str:
    """What to say to the second who wants to train into `run`."""
    return f"another training is running in {run}; wait for it, or choose another directory with -o"


def _refuse_unlearnable(recipe: Recipe, data: Data) -> None:
    """Nothing, unless the training rows lack what the method learns from."""
    present, names = data.train.presence, data.source.names
    lacking = {name: int((~there).sum()) for name, there in zip(names, present.T, strict=True)}
    never = [name for name, count in lacking.items() if count == len(present)]
    if never:
        raise UsageError(
            f"none of the {len(present)} training rows has {never[0]!r}; "
            "add rows that have it, or declare the data set without it"
        )
    if recipe.method == "mars" and recipe.model.residual_routing and not bool(present.all(dim=1).any()):
        counts = ", ".join(f"{count} lack {name}" for name, count in lacking.items() if count)
        raise UsageError(
            f"method 'mars' learns its routing from complete rows and none of the {len(present)} training rows is "
            f'one: {counts}; use method = "modality_dropout" or "moe"'
        )
