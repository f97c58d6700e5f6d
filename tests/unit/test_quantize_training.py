"""Quantization-aware training: ranges from training rows alone, the best candidate kept, a teacher that stays."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_export import fake_quantize, quantize
from mars_export.distill import distilling, frozen_copy
from mars_export.fake_quantize import fake_quantized
from mars_export.hush import hushed
from mars_export.pieces import Piece, pieces_of, trace
from mars_export.ranges import Ranges, activation_quantizers
from mars_training.data.split import Data, Split
from mars_training.evaluate import mean_error, score_subsets
from mars_training.model.mars import DeployedMars
from mars_training.recipe import AugmentRecipe, Recipe, SamplingRecipe, ScheduleRecipe
from mars_training.sampling import MaskSampler
from mars_training.train import NotFiniteError, update_for
from tests.helpers.tiny_mars import NAMES, SHAPES, SOURCE, model, recipe, split

DATA = Data(source=SOURCE, train=split(48, 1), validation=split(40, 2))


def short(**export: object) -> Recipe:
    return dataclasses.replace(recipe(**export), schedule=ScheduleRecipe(batch_size=16, rate=2e-2))


def copied(prepared: DeployedMars) -> DeployedMars:
    with hushed():
        return copy.deepcopy(prepared)


def limits(deployed: DeployedMars) -> list[float]:
    observers = [q.activation_post_process for p in pieces_of(deployed).values() for q in activation_quantizers(p)]
    return [float(x) for o in observers for x in (o.min_val, o.max_val)]


@pytest.fixture(scope="module")
def prepared() -> DeployedMars:
    deployed = model().deployed
    with hushed():
        quantize.prepare(deployed, SHAPES)
        torch.manual_seed(0)
        quantize.observe(deployed, DATA.train, short())
    return deployed


def test_scoring_moves_no_range_and_training_does(prepared: DeployedMars) -> None:
    deployed = copied(prepared)
    before, ranges = limits(deployed), Ranges(deployed)
    with ranges.watched():
        loud = {name: 50.0 * x for name, x in split(40, 3).inputs.items()}
        score_subsets(deployed, dataclasses.replace(DATA.validation, inputs=loud), SOURCE)
        ranges.learn(0.1)
        assert limits(deployed) == before
        deployed.train()
        deployed(loud_batch(), torch.ones(8, len(NAMES), dtype=torch.bool))
        ranges.learn(0.1)
    assert limits(deployed) != before


def loud_batch() -> dict[str, torch.Tensor]:
    return {name: 50.0 * x for name, x in split(8, 3).batch(torch.arange(8)).items()}


def test_frozen_ranges_stay_in_training_while_weights_keep_their_own(prepared: DeployedMars) -> None:
    deployed = copied(prepared)
    before, ranges = limits(deployed), Ranges(deployed)
    ranges.frozen = True
    deployed.train()
    head = deployed.head.traced  # type: ignore[union-attr]
    weight = dict(head.named_parameters())["out.weight"]
    with torch.no_grad(), ranges.watched():
        weight.mul_(3.0)
        deployed(loud_batch(), torch.ones(8, len(NAMES), dtype=torch.bool))
        ranges.learn(0.1)
    assert limits(deployed) == before
    (scales,) = [m.scale for m in head.modules() if getattr(m, "is_per_channel", False)]
    torch.testing.assert_close(scales, weight.detach().abs().amax(dim=1) / 127.5, rtol=1e-2, atol=0)


class Joined(nn.Module):
    """Two maps side by side: int8 gives them one range."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps[::-1], dim=1)


def test_a_quantizer_that_operations_share_covers_the_widest_of_them() -> None:
    x = torch.rand(6, 2, 4, 4)
    with hushed():
        piece = Piece(fake_quantized(trace(Joined(), (x[:2], x[:2].clone())).module(), ()))
    ranges = Ranges(piece)
    with ranges.watched():
        for number in range(3):
            piece(x, 100.0 * x)
            ranges.learn(1.0 / (number + 1))
    (shared,) = {id(q): q for q in activation_quantizers(piece)}.values()
    assert float(shared.activation_post_process.max_val) == pytest.approx(100.0 * float(x.max()))


def test_a_row_that_lacks_a_modality_does_not_enter_its_ranges() -> None:
    deployed = model().deployed
    present = torch.ones(48, len(NAMES), dtype=torch.bool)
    present[::2, 0] = False
    rgb = DATA.train.inputs["rgb"][torch.arange(48)].clone()
    rgb[::2] = 900.0
    spoilt = Split(
        inputs={**DATA.train.inputs, "rgb": rgb},
        labels=DATA.train.labels,
        groups=DATA.train.groups,
        group_names=DATA.train.group_names,
        present=present,
    )
    with hushed():
        quantize.prepare(deployed, SHAPES)
        quantize.observe(deployed, spoilt, short())
    first = activation_quantizers(deployed.encoders["rgb"])
    assert max(float(o.activation_post_process.max_val) for o in first) < 100.0


def test_a_range_is_the_mean_over_batches_of_each_batches_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "batch_size_for", lambda split: 16)
    deployed = model().deployed
    with hushed():
        quantize.prepare(deployed, SHAPES)
        torch.manual_seed(4)
        quantize.observe(deployed, DATA.train, short())
    torch.manual_seed(4)
    batches = torch.split(torch.randperm(48), 16)
    expected = sum(float(DATA.train.batch(rows)["depth"].max()) for rows in batches) / len(batches)
    found = [float(q.activation_post_process.max_val) for q in activation_quantizers(deployed.encoders["depth"])]
    assert min(abs(value - expected) for value in found) < 1e-5


def test_the_candidate_with_the_least_validation_error_is_kept() -> None:
    reports: list[float] = []
    with hushed():
        found = quantize.quantized(
            model(),
            DATA,
            short(qat_epochs=3, qat_rate=1.0),
            seed=0,
            report=lambda epoch: reports.append(epoch.validation_error),
        )
    assert len(found.errors) == 4 and list(found.errors[1:]) == reports
    assert found.errors.index(min(found.errors)) == found.epoch
    error = mean_error(score_subsets(found.deployed, DATA.validation, SOURCE))
    assert error == pytest.approx(min(found.errors), abs=1 / 40)


def test_post_training_quantization_trains_nothing_and_equal_settings_give_equal_pieces() -> None:
    weights = {name: t.clone() for name, t in model().state_dict().items()}
    inputs, everything = split(8, 5).batch(torch.arange(8)), torch.ones(8, len(NAMES), dtype=torch.bool)
    answers = []
    for _ in range(2):
        given = model()
        given.load_state_dict(weights)
        with hushed():
            found = quantize.quantized(given, DATA, short(qat_epochs=5), seed=3, report=_no_report, ptq=True)
        assert found.epoch == 0 and len(found.errors) == 1
        assert found.errors[0] == pytest.approx(found.float_error, abs=2 / 40)
        with torch.no_grad():
            answers.append(found.deployed(inputs, everything))
    assert torch.equal(*answers)


def _no_report(epoch: Any) -> None:
    raise AssertionError("post-training quantization has no epoch")


def test_a_model_that_is_its_own_teacher_has_no_distance_to_it() -> None:
    student = model()
    fake_quantize.make_traceable(student.deployed)
    teacher = frozen_copy(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    given = short(qat_distill=0.5)
    given = dataclasses.replace(given, sampling=SamplingRecipe(masks_per_row=3))
    batch = DATA.train.training_batch(torch.arange(16))
    sampler = MaskSampler(NAMES, start=1, tau=1.0)
    plain = update_for(student, given)
    student.train()
    torch.manual_seed(0)
    terms = distilling(plain, student, teacher, given)(batch, sampler, 0)
    assert terms["float"].item() == pytest.approx(0.0, abs=1e-6)
    torch.manual_seed(0)
    alone = plain(batch, sampler, 0)
    assert terms["loss"].item() == pytest.approx(0.5 * alone["loss"].item(), rel=1e-5)


def test_distillation_alone_brings_a_model_nearer_to_its_teacher() -> None:
    student = model()
    fake_quantize.make_traceable(student.deployed)
    teacher = frozen_copy(student)
    with torch.no_grad():
        for p in student.deployed.head.parameters():
            p.mul_(0.5)
    given = short(qat_distill=1.0)
    update = distilling(update_for(student, given), student, teacher, given)
    optimiser = torch.optim.Adam(student.deployed.parameters(), lr=1e-2)
    batch, sampler = DATA.train.training_batch(torch.arange(48)), MaskSampler(NAMES, start=1, tau=1.0)
    distances = []
    for _ in range(20):
        terms = update(batch, sampler, 0)
        optimiser.zero_grad()
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        distances.append(terms["float"].item())
    assert distances[-1] < 0.7 * distances[0]


def test_crops_become_whole_samples_with_as_many_pixels_a_step() -> None:
    given = dataclasses.replace(
        short(qat_epochs=4, qat_warmup=0.25), augment=AugmentRecipe(crop_px=8), schedule=ScheduleRecipe(batch_size=32)
    )
    used = quantize.quantization_schedule(given, SOURCE)
    assert (used.augment.crop_px, used.schedule.batch_size) == (0, 32 * 8 * 8 // (16 * 16))
    assert (used.schedule.warmup_epochs, used.schedule.weight_decay, used.schedule.patience) == (1.0, 0.0, 0)


def test_settings_tell_apart_what_gives_other_pieces() -> None:
    base = quantize.settings(short())
    others = [
        quantize.settings(short(), ptq=True),
        quantize.settings(short(), float_layers=("head",)),
        *(
            quantize.settings(short(**{key: value}))
            for key, value in [
                ("qat_epochs", 7),
                ("qat_rate", 0.3),
                ("qat_warmup", 0.3),
                ("qat_freeze", 0.3),
                ("qat_distill", 0.3),
                ("float_layers", ("head",)),
            ]
        ),
    ]
    assert base not in others
    assert quantize.settings(short(), ptq=True) == quantize.settings(short(qat_epochs=0, qat_rate=0.7))
    assert quantize.settings(short(float_layers=("b", "a"))) == quantize.settings(short(), float_layers=("a", "b"))


def test_a_diverged_training_says_which_key_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: object, **kwargs: object) -> None:
        raise NotFiniteError("the loss became nan in epoch 1; lower schedule.rate")

    monkeypatch.setattr(quantize, "fit", diverge)
    with hushed(), pytest.raises(UsageError) as caught:
        quantize.quantize(model(), DATA, short(qat_epochs=1), seed=0, report=lambda epoch: None)
    assert str(caught.value) == (
        "quantization-aware training diverged (the loss became nan in epoch 1; lower schedule.rate); "
        "lower export.qat_rate, which is 0.1, or set export.qat_epochs to 0"
    )
