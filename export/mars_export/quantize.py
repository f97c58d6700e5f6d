"""Quantization of a trained model: ranges from the training split, then training with quantizers in place.

Axes: B batch.
Design decision: quantization-aware training is the training recipe with another model inside, another schedule and,
where it learns from the float model, another `Update`; the loop is `fit`. What it starts from, which is post-training
quantization, is one of the candidates that validation chooses among: training on never makes an artifact worse there.
Ranges are learned from training samples alone; scoring moves none.
Source: Krishnamoorthi, arXiv 1806.08342, sections 3.1 (ranges) and 3.2 (training).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mars_edge.errors import ParityError, UsageError
from mars_export.biases import round_biases
from mars_export.distill import distilling, frozen_copy
from mars_export.fake_quantize import LinearRouter as LinearRouter
from mars_export.fake_quantize import (
    freeze_observers,
    make_traceable,
    prepare,
)
from mars_export.fold import fold_batch_norms as fold_batch_norms
from mars_export.hush import hushed
from mars_export.pieces import Piece, one_dequantizer_each, pieces_of, replace_piece
from mars_export.ranges import Ranges
from mars_training.data.split import Data, Source, Split
from mars_training.epoch import StepReport
from mars_training.evaluate import batch_size_for, mean_error, score_subsets
from mars_training.methods.step import own_partial
from mars_training.model.mars import DeployedMars, TrainingMars
from mars_training.model.rows import encode_rows
from mars_training.recipe import Recipe
from mars_training.sampling import MaskSampler
from mars_training.train import EpochReport, Hooks, NotFiniteError, fit, update_for

# Raised when equal settings no longer give equal pieces.
_REVISION = 3
_OBSERVED_ROWS = 1024
# Of the way from its range so far to that of the step's values.
_RANGE_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A converted model and how it came about.

    Attributes:
        epoch: the epoch of quantization-aware training whose weights these are; 0 for post-training quantization.
        errors: mean validation error of what was chosen among, by epoch from 0.
        float_error: that of the float model.
        notes: what had to be done differently, a line each.
    """

    deployed: DeployedMars
    epoch: int
    errors: tuple[float, ...]
    float_error: float
    notes: tuple[str, ...]


def convert(prepared: DeployedMars) -> DeployedMars:
    """A copy whose pieces compute with int8 weights, int32 biases and quantize-dequantize pairs; float32 between."""
    with hushed():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        converted = copy.deepcopy(prepared)
        for method, piece in pieces_of(converted).items():
            assert isinstance(piece, Piece)
            traced = convert_pt2e(piece.traced)
            round_biases(traced)
            replace_piece(converted, method, Piece(one_dequantizer_each(traced)))
    return converted


def settings(recipe: Recipe, *, ptq: bool = False, float_layers: Sequence[str] = ()) -> dict[str, Any]:
    """All that decides the pieces beside weights, data and seed, as JSON types: equal settings give equal pieces."""
    export, layers = recipe.export, sorted({*recipe.export.float_layers, *float_layers})
    common: dict[str, Any] = {"revision": _REVISION, "observed_rows": _OBSERVED_ROWS, "float_layers": layers}
    if ptq or not export.qat_epochs:
        return common | {"epochs": 0}
    return common | {
        "epochs": export.qat_epochs,
        "rate": export.qat_rate,
        "warmup": export.qat_warmup,
        "freeze": export.qat_freeze,
        "distill": export.qat_distill,
        "temperature": recipe.loss.distill_temperature,
    }


def quantization_schedule(recipe: Recipe, source: Source | None = None) -> Recipe:
    """The training recipe with the schedule of quantization-aware training.

    A piece is traced for samples of one size: where training cuts crops, this sees whole samples of `source`, as many
    pixels per step.
    """
    export = recipe.export
    schedule = dataclasses.replace(
        recipe.schedule,
        epochs=export.qat_epochs,
        rate=recipe.schedule.rate * export.qat_rate,
        schedule="cosine",
        warmup_epochs=export.qat_warmup * export.qat_epochs,
        # Batch norms are folded: decay would no longer leave what a layer computes alone.
        weight_decay=0.0,
        validate_every=1,
        select_from=0.0,
        patience=0,
        precision="fp32",
        batch_size=_batch_size(recipe, source),
    )
    return dataclasses.replace(
        recipe,
        schedule=schedule,
        loss=dataclasses.replace(recipe.loss, imitate_start=0),
        augment=dataclasses.replace(recipe.augment, crop_px=0),
    )


def _batch_size(recipe: Recipe, source: Source | None) -> int:
    whole, side = recipe.schedule.batch_size, recipe.augment.crop_px
    if not side or source is None:
        return whole
    pixels = max(m.shape[-1] * m.shape[-2] for m in source.modalities if m.kind == "image")
    # A modality that one row alone has is run without observing it.
    return max(2, min(whole, whole * side * side // pixels))


def quantize(
    model: TrainingMars,
    data: Data,
    recipe: Recipe,
    *,
    seed: int,
    report: Callable[[EpochReport], None],
    ptq: bool = False,
    float_layers: Sequence[str] = (),
) -> DeployedMars:
    """The deployed model of `quantized`."""
    return quantized(model, data, recipe, seed=seed, report=report, ptq=ptq, float_layers=float_layers).deployed


def quantized(
    model: TrainingMars,
    data: Data,
    recipe: Recipe,
    *,
    seed: int,
    report: Callable[[EpochReport], None] = lambda epoch: None,
    ptq: bool = False,
    float_layers: Sequence[str] = (),
) -> Quantized:
    """The converted deployed model, of the candidate with the least validation error; `model` is changed in place.

    Candidates are post-training quantization and the epochs of quantization-aware training; of equal ones the
    first. Equal arguments give equal pieces.

    Args:
        ptq: post-training quantization only: ranges are observed, nothing is trained.
        float_layers: stay float32, beside those of the recipe ("METHOD/MODULE.PATH").

    Raises:
        UsageError: a layer is unknown, a batch norm cannot be folded, or training diverged.
        ParityError: int8 costs more of the validation error than the recipe allows.
    """
    float_error = _error(model, data, recipe)
    notes = make_traceable(model.deployed)
    trains = not ptq and recipe.export.qat_epochs > 0
    teacher = frozen_copy(model) if trains and recipe.export.qat_distill else None
    shapes = {m.name: m.shape for m in data.source.modalities}
    notes += prepare(model.deployed, shapes, float_layers=(*recipe.export.float_layers, *float_layers))
    torch.manual_seed(seed)
    observe(model.deployed, data.train, recipe)
    best = _Best(model, _error(model, data, recipe))
    if trains:
        _train(model, teacher, data, recipe, seed, best, report)
        model.load_state_dict(best.state)
    freeze_observers(model.deployed)
    converted = convert(model.deployed)
    _require_kept(float_error, _deployed_error(converted, data, recipe), recipe.export.most_lost)
    return Quantized(
        deployed=converted, epoch=best.epoch, errors=tuple(best.errors), float_error=float_error, notes=notes
    )


def _require_kept(float_error: float, error: float, most: float) -> None:
    """Passes when int8 is at most `most` worse; parity cannot see it, which compares int8 with itself."""
    if not error - float_error <= most:
        raise ParityError(
            f"int8 costs {100.0 * (error - float_error):.2f} points of validation error ({100.0 * float_error:.2f} % "
            f"in float, {100.0 * error:.2f} % in int8), export.most_lost allows {100.0 * most:g}; see --sensitivity"
        )


class _Best:
    """The candidate of least validation error so far, with its weights and ranges."""

    def __init__(self, model: TrainingMars, error: float) -> None:
        self.errors = [error]
        self._keep(model)

    def offer(self, model: TrainingMars, error: float) -> None:
        """Take the model as the next epoch."""
        better = error < min(self.errors)
        self.errors.append(error)
        if better:
            self._keep(model)

    def _keep(self, model: TrainingMars) -> None:
        self.epoch = len(self.errors) - 1
        self.state = {name: t.detach().clone() for name, t in model.state_dict().items()}


def _error(model: TrainingMars, data: Data, recipe: Recipe) -> float:
    return _deployed_error(model.deployed, data, recipe)


def _deployed_error(deployed: DeployedMars, data: Data, recipe: Recipe) -> float:
    always = recipe.data.always_present
    return mean_error(score_subsets(deployed, data.validation, data.source, always_present=always))


def _train(
    model: TrainingMars,
    teacher: TrainingMars | None,
    data: Data,
    recipe: Recipe,
    seed: int,
    best: _Best,
    report: Callable[[EpochReport], None],
) -> None:
    # The feature router has learned to route long ago.
    model.router_warmup = 0
    ranges = Ranges(model.deployed)
    schedule = quantization_schedule(recipe, data.source)
    freeze_from = recipe.export.qat_freeze * recipe.export.qat_epochs

    def after_step(step: StepReport) -> None:
        if step.epoch + step.step / step.steps >= freeze_from:
            ranges.frozen = True
        ranges.learn(_RANGE_RATE)

    def after_epoch(epoch: EpochReport) -> None:
        best.offer(model, epoch.validation_error)
        report(epoch)

    update = update_for(model, schedule)
    if teacher is not None:
        update = distilling(update, model, teacher, schedule)
    try:
        with ranges.watched():
            hooks = Hooks(after_step=after_step, after_epoch=after_epoch)
            fit(model, data, schedule, seed=seed, hooks=hooks, update=update)
    except NotFiniteError as error:
        raise UsageError(
            f"quantization-aware training diverged ({error}); lower export.qat_rate, "
            f"which is {recipe.export.qat_rate}, or set export.qat_epochs to 0"
        ) from error


@torch.no_grad()
def observe(deployed: DeployedMars, train: Split, recipe: Recipe) -> None:
    """Gives every activation its range in the float model: the mean over batches of training rows of their extremes.

    The batches are as large as evaluation's: the extremes of a few rows would cut off what others hold. Each row is met
    as it is and with one incomplete mask, through the path that a device runs. A row that lacks a modality does not
    enter that modality's ranges.
    """
    deployed.train()
    sampler = MaskSampler(deployed.modalities, start=1, tau=1.0, floor=0.0, always_present=recipe.data.always_present)
    rows = torch.randperm(len(train))[:_OBSERVED_ROWS]
    ranges = Ranges(deployed)
    ranges.round(False)
    with ranges.watched():
        for number, indices in enumerate(torch.split(rows, max(batch_size_for(train), 2))):
            present = train.presence[indices]
            features = encode_rows(deployed.encoders, train.batch(indices), present)
            partial = own_partial(sampler.masks(sampler.draw(len(indices))), present)
            deployed.classify([torch.cat([f, f]) for f in features], torch.cat([present, partial]))
            ranges.learn(1.0 / (number + 1))
    ranges.round(True)
    deployed.eval()
