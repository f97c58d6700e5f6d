"""The training loop on a toy task: it learns, repeats, resumes, stops on NaN and selects on validation."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mars_edge.errors import UsageError
from mars_training import device, draws
from mars_training.checkpoint import is_finished, load_deployed, load_info, load_metrics, load_model, load_resume
from mars_training.commands import evaluate as evaluate_command
from mars_training.commands import train as train_command
from mars_training.data.batches import balanced_order, batches, read_ahead
from mars_training.data.split import Batch, Data, Split
from mars_training.epoch import StepReport
from mars_training.evaluate import logits_by_subset, mean_error, predict_logits, score_subsets, score_table
from mars_training.methods import deployed_of
from mars_training.methods.modality_dropout import DropoutFusion
from mars_training.methods.step import Terms
from mars_training.model.mars import DeployedMars, TrainingMars
from mars_training.optimiser import build_optimiser, rate_factor, set_rate
from mars_training.progress import progress
from mars_training.recipe import (
    DataRecipe,
    ModelRecipe,
    Recipe,
    SamplingRecipe,
    ScheduleRecipe,
)
from mars_training.sampling import MaskSampler
from mars_training.train import EpochReport, Hooks, NotFiniteError, fit, prepare, train, update_for
from tests.helpers.toy_training import SMALL, SOURCE, toy_split

RECIPE = Recipe(
    name="toy",
    data=DataRecipe(reader="rig"),
    model=ModelRecipe(
        encoders={"rgb": SMALL, "depth": SMALL}, experts=4, active_experts=2, width=8, expert_channels=(8,)
    ),
    sampling=SamplingRecipe(start=1),
    schedule=ScheduleRecipe(epochs=4, batch_size=32, rate=1e-2),
)


@pytest.fixture
def data() -> Data:
    return Data(source=SOURCE, train=toy_split(256, 1), validation=toy_split(64, 2))


class StoppedError(Exception):
    """A kill between two epochs, or two steps."""


def stop_after(epochs: int) -> Hooks:
    def after(report: EpochReport) -> None:
        if report.epoch + 1 == epochs:
            raise StoppedError

    return Hooks(after_epoch=after)


@pytest.mark.parametrize("method", ["mars", "modality_dropout"])
def test_training_lowers_the_validation_error_well_below_chance(data: Data, tmp_path: Path, method: str) -> None:
    recipe = dataclasses.replace(RECIPE, method=method)
    result = train(recipe, data, tmp_path, seed=0)
    assert result.selected.validation_error < 0.15
    assert [s.subset for s in result.last.scores] == ["rgb", "depth", "rgb+depth"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data: Data, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(RECIPE, data, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "last.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(data: Data, tmp_path: Path) -> None:
    train(RECIPE, data, tmp_path / "whole", seed=0)
    with pytest.raises(StoppedError):
        train(RECIPE, data, tmp_path / "cut", seed=0, hooks=stop_after(2))
    result = train(RECIPE, data, tmp_path / "cut", seed=0)
    assert [report.epoch for report in result.history] == [0, 1, 2, 3]
    for name in ("last.safetensors", "selected.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert not (tmp_path / "cut" / "resume.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(data: Data, tmp_path: Path) -> None:
    def poison(model: torch.nn.Module, epoch: int) -> None:
        if epoch == 1:
            next(iter(model.parameters())).data.fill_(float("nan"))

    with pytest.raises(NotFiniteError) as error:
        train(RECIPE, data, tmp_path, seed=0, hooks=Hooks(before_epoch=poison))
    assert str(error.value) == "the loss became nan in epoch 2; lower schedule.rate"
    model, _ = load_model(tmp_path, "last")
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def scheduled(**changes: Any) -> Recipe:
    return dataclasses.replace(RECIPE, schedule=dataclasses.replace(RECIPE.schedule, **changes))


def test_a_run_interrupted_within_an_epoch_ends_with_the_weights_of_an_uninterrupted_one(
    data: Data, tmp_path: Path
) -> None:
    def stop(report: StepReport) -> None:
        if (report.epoch, report.step) == (1, 5):
            raise StoppedError

    recipe = scheduled(epochs=2, checkpoint_every_s=1e-9)
    train(recipe, data, tmp_path / "whole", seed=0)
    with pytest.raises(StoppedError):
        train(recipe, data, tmp_path / "cut", seed=0, hooks=Hooks(after_step=stop))
    steps: list[tuple[int, int]] = []
    hooks = Hooks(after_step=lambda report: steps.append((report.epoch, report.step)))
    train(recipe, data, tmp_path / "cut", seed=0, hooks=hooks)
    assert steps == [(1, 5), (1, 6), (1, 7), (1, 8)]
    for name in ("last.safetensors", "selected.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    whole, cut = (load_metrics(tmp_path / name)["history"] for name in ("whole", "cut"))
    assert [report["terms"] for report in whole] == [report["terms"] for report in cut]
    assert [report["sampling"] for report in whole] == [report["sampling"] for report in cut]


def test_what_was_drawn_before_does_not_change_a_step(data: Data, tmp_path: Path) -> None:
    def draw(report: StepReport) -> None:
        torch.rand(report.step)

    train(scheduled(epochs=1), data, tmp_path / "a", seed=0)
    train(scheduled(epochs=1), data, tmp_path / "b", seed=0, hooks=Hooks(after_step=draw))
    a, b = ((tmp_path / name / "last.safetensors").read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize(("factor", "message"), [(float("nan"), "the loss became nan"), (1.0, "the gradient became ")])
def test_a_step_that_is_not_finite_stops_within_the_epoch_and_keeps_the_last_good_checkpoint(
    data: Data, tmp_path: Path, factor: float, message: str
) -> None:
    recipe = scheduled(checkpoint_every_s=1e-9)
    model = prepare(recipe, data, seed=0)
    inner, seen = update_for(model, recipe), 0

    def update(batch: Batch, sampler: MaskSampler, epoch: int) -> Terms:
        nonlocal seen
        seen += 1
        terms = inner(batch, sampler, epoch)
        if seen == 6:
            # The root of zero is zero, its derivative infinite.
            poison = (next(model.parameters()).sum() * 0.0).abs().sqrt()
            terms["loss"] = terms["loss"] * factor + poison
        return terms

    with pytest.raises(NotFiniteError, match=rf"^{message}.* in epoch 1; lower schedule.rate$"):
        fit(model, data, recipe, seed=0, run=tmp_path, update=update)
    stored = load_resume(tmp_path)
    assert stored is not None
    tensors, facts = stored
    assert facts["step"] == 5
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values())


def test_a_run_directory_is_finished_when_its_training_has_ended(data: Data, tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    with pytest.raises(StoppedError):
        train(RECIPE, data, tmp_path, seed=0, hooks=stop_after(2))
    assert load_metrics(tmp_path) and not is_finished(tmp_path)
    train(RECIPE, data, tmp_path, seed=0)
    assert is_finished(tmp_path)


def test_training_stops_when_validation_gets_no_better_for_the_patience(data: Data, tmp_path: Path) -> None:
    worst = scheduled(epochs=20, rate=1e-9, patience=3)
    result = train(worst, data, tmp_path, seed=0)
    assert len(result.history) == result.selected.epoch + 1 + 3 < 20
    cut = tmp_path / "cut"
    with pytest.raises(StoppedError):
        train(worst, data, cut, seed=0, hooks=stop_after(len(result.history)))
    assert len(train(worst, data, cut, seed=0).history) == len(result.history)


def test_an_epoch_without_validation_stops_nothing(data: Data, tmp_path: Path) -> None:
    result = train(scheduled(epochs=5, rate=1e-9, patience=1, validate_every=2), data, tmp_path, seed=0)
    assert len(result.history) in (4, 5) and result.last.scores


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile makes C++ on the processor")
def test_a_compiled_step_trains_as_a_plain_one(data: Data, tmp_path: Path) -> None:
    plain, compiled = (train(scheduled(epochs=1), data, tmp_path / str(c), seed=0, compiled=c) for c in (False, True))
    assert compiled.last.terms == pytest.approx(plain.last.terms, abs=1e-4)
    assert list(compiled.selected_state) == list(plain.selected_state)


def test_bfloat16_trains_too_and_what_routers_compare_stays_float32(data: Data, tmp_path: Path) -> None:
    result = train(scheduled(precision="bf16"), data, tmp_path, seed=0)
    assert result.selected.validation_error < 0.25
    assert {t.dtype for t in result.selected_state.values()} == {torch.float32, torch.int64}
    model = prepare(scheduled(precision="bf16"), data, seed=0).train()
    assert isinstance(model, TrainingMars)
    batch = data.train.training_batch(torch.arange(32))
    with device.autocast("bf16", torch.device("cpu")):
        passes = model(batch.inputs, torch.tensor([[True, False]]).expand(32, -1))
    for compared in (passes.student, passes.feature, passes.residual.clean, passes.residual.scale, passes.full):
        assert compared.dtype == torch.float32
    for compared in (passes.student, passes.feature, passes.residual.clean):
        assert bool((compared != compared.bfloat16().float()).any()), "it was rounded to 8 bits on its way"


def test_precision_follows_the_recipe_and_auto_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert [device.uses_bf16(p, cpu) for p in ("fp32", "bf16")] == [False, True]
    for has in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert device.uses_bf16("auto", cpu) is device.uses_bf16("auto", gpu) is has


def test_a_gpu_that_is_not_there_is_refused_and_auto_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device.pick("auto") == device.pick("cpu") == torch.device("cpu")
    with pytest.raises(UsageError) as error:
        device.pick("cuda")
    assert str(error.value) == "--device cuda needs GPU 0; torch sees 0"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_moves_with_the_steps_elsewhere_there_is_a_line_per_epoch() -> None:
    report = EpochReport(
        epoch=0,
        epochs=3,
        rate=0.1,
        seconds=9.6,
        eta_s=90.0,
        samples_per_s=123.4,
        terms={"loss": 1.0},
        scores=[],
        sampling={},
    )
    step = StepReport(epoch=0, epochs=3, step=2, steps=4, samples_per_s=99.6, eta_s=30.0)
    moving, plain = Terminal(), io.StringIO()
    for stream in (moving, plain):
        hooks = progress(stream)
        hooks.after_step(step)
        hooks.after_step(step)
        hooks.after_epoch(report)
    line = "epoch 1/3  loss 1.0000  123 samples/s  10 s  ETA 1.5 min\n"
    assert plain.getvalue() == line
    assert moving.getvalue() == f"\r\x1b[Kepoch 1/3  step 2/4  100 samples/s  ETA 0.5 min\r\x1b[K{line}"


def test_an_early_lucky_epoch_is_not_selected_once_a_late_one_is_there(data: Data, tmp_path: Path) -> None:
    late = dataclasses.replace(RECIPE, schedule=dataclasses.replace(RECIPE.schedule, select_from=0.75))
    result = train(late, data, tmp_path, seed=0)
    errors = [report.validation_error for report in result.history]
    assert result.selected.epoch == 2 + errors[2:].index(min(errors[2:]))


def test_the_selected_epoch_is_the_one_with_the_lowest_validation_error(data: Data, tmp_path: Path) -> None:
    result = train(RECIPE, data, tmp_path, seed=3)
    errors = [report.validation_error for report in result.history]
    assert result.selected.epoch == errors.index(min(errors))
    assert load_metrics(tmp_path)["selected"]["epoch"] == result.selected.epoch
    model, _ = load_deployed(tmp_path, "selected")
    assert mean_error(score_subsets(model, data.validation, SOURCE)) == pytest.approx(min(errors))


def test_a_loaded_run_knows_its_recipe_seed_and_source(data: Data, tmp_path: Path) -> None:
    train(RECIPE, data, tmp_path, seed=7)
    info = load_info(tmp_path)
    assert (info.recipe, info.seed, info.source) == (RECIPE, 7, SOURCE)
    assert isinstance(load_deployed(tmp_path)[0], DeployedMars)


def test_the_deployed_path_gives_the_logits_of_the_model_forward(data: Data) -> None:
    model = prepare(RECIPE, data, seed=0)
    assert not isinstance(model, DropoutFusion)
    logits = predict_logits(model.deployed, data.validation, ["depth"], batch_size=10)
    x = data.validation.batch(torch.arange(64))
    present = torch.tensor([[False, True]]).expand(64, -1)
    assert torch.allclose(logits, model.deployed.eval()(x, present), atol=1e-6)
    assert set(logits_by_subset(model.deployed, data.validation, [("rgb",)])) == {("rgb",)}


def test_scores_are_those_of_a_plain_count(data: Data) -> None:
    model = prepare(RECIPE, data, seed=0)
    assert not isinstance(model, DropoutFusion)
    (found,) = [s for s in score_subsets(model.deployed, data.validation, SOURCE) if s.subset == "rgb"]
    answers = predict_logits(model.deployed, data.validation, ["rgb"]).argmax(1).tolist()
    labels = data.validation.labels.tolist()
    wrong = {c: sum(a != c for a, b in zip(answers, labels, strict=True) if b == c) for c in (0, 1)}
    assert found.value == pytest.approx((wrong[0] / 32 + wrong[1] / 32) / 2)
    assert found.low <= found.value <= found.high
    assert "worst APCER" in score_table([found])


def test_classes_come_equally_often_and_none_repeats_before_it_is_used_up() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    torch.manual_seed(0)
    counts = torch.bincount(balanced_order(labels), minlength=100)
    assert int(counts[:90].sum()) == int(counts[90:].sum()) == 50
    assert int(counts[:90].max()) == 1 and counts[90:].tolist() == [5] * 10


def test_an_order_depends_on_its_generator_alone() -> None:
    labels = torch.arange(100) % 3
    torch.manual_seed(0)
    first = balanced_order(labels, draws.generator(1, 2))
    assert torch.equal(first, balanced_order(labels, draws.generator(1, 2)))
    assert not torch.equal(first, balanced_order(labels, draws.generator(2, 1)))


def test_label_maps_are_shuffled_whole() -> None:
    maps = torch.zeros(10, 4, 4, dtype=torch.long)
    split = Split(inputs={"x": torch.rand(10, 1, 4, 4)}, labels=maps, groups=torch.zeros(10).long(), group_names=("a",))
    first, second = batches(split, 5, draws.generator(0, 0))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(10))


def test_reading_ahead_keeps_the_order_and_is_one_read_ahead() -> None:
    begun: list[int] = []
    second = threading.Event()

    def read(indices: Tensor) -> int:
        begun.append(int(indices))
        if int(indices) == 1:
            second.set()
        return int(indices) * 10

    reader = read_ahead(read, list(torch.arange(4)))
    assert next(reader) == 0
    assert second.wait(5.0)
    assert begun == [0, 1]
    assert list(reader) == [10, 20, 30]


def test_what_a_read_raises_comes_out_at_its_place_and_closing_ends_the_thread() -> None:
    def read(indices: Tensor) -> int:
        if int(indices) == 1:
            raise UsageError("row 1 is broken")
        return int(indices)

    reader = read_ahead(read, list(torch.arange(3)))
    assert next(reader) == 0
    with pytest.raises(UsageError, match=r"^row 1 is broken$"):
        next(reader)
    closed = read_ahead(read, [torch.tensor(0), torch.tensor(2), torch.tensor(2)])
    next(closed)
    closed.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
    assert list(read_ahead(read, [])) == []


def test_every_part_of_a_key_counts_and_keys_are_seeds() -> None:
    keys = [
        draws.key(*numbers) for numbers in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0), (-1, 0, 0), (1, 11))
    ]
    assert len({*keys, draws.key(11, 1)}) == 8
    assert all(0 <= k < 2**63 for k in keys)


def test_the_rate_warms_up_then_falls_to_one_percent() -> None:
    recipe = ScheduleRecipe(epochs=10, warmup_epochs=2.0)
    factors = [rate_factor(recipe, e) for e in (1.0, 2.0, 6.0, 10.0)]
    assert factors == pytest.approx([0.5, 1.0, 0.505, 0.01])
    steps = ScheduleRecipe(schedule="step", epochs=10, warmup_epochs=0.0, milestones=(0.5, 0.8))
    assert [rate_factor(steps, e) for e in (0.0, 5.0, 8.0)] == pytest.approx([1.0, 0.1, 0.01])
    poly = ScheduleRecipe(schedule="poly", epochs=10, warmup_epochs=0.0)
    assert [rate_factor(poly, e) for e in (0.0, 5.0, 10.0)] == pytest.approx([1.0, 0.5**0.9, 0.0])


def test_an_encoder_has_a_rate_of_its_own_and_every_parameter_one_group(data: Data) -> None:
    model = prepare(RECIPE, data, seed=0)
    encoders = deployed_of(model).encoders
    recipe = dataclasses.replace(RECIPE.schedule, encoder_rate={"depth": 0.1}, weight_decay=0.5)
    optimiser = build_optimiser(model, recipe)
    set_rate(optimiser, 2.0)
    seen = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in model.parameters())
    depth = {id(p) for p in encoders["depth"].parameters()}
    for group in optimiser.param_groups:
        for p in group["params"]:
            assert group["lr"] == pytest.approx(0.2 if id(p) in depth else 2.0)
            assert group["weight_decay"] == (0.5 if p.dim() > 1 else 0.0)


def test_a_rate_for_an_encoder_that_is_not_there_is_refused(data: Data) -> None:
    recipe = dataclasses.replace(RECIPE.schedule, encoder_rate={"dept": 0.1})
    with pytest.raises(UsageError) as error:
        build_optimiser(prepare(RECIPE, data, seed=0), recipe)
    assert str(error.value) == "schedule.encoder_rate names 'dept'; the encoders are: rgb, depth"


def test_negative_patience_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        ScheduleRecipe(patience=-1)
    assert str(error.value) == "schedule.patience is -1 and checkpoint_every_s 600.0; they must be 0 or more"


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_one_step_changes_every_parameter(data: Data, name: str) -> None:
    model = prepare(RECIPE, data, seed=0).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    schedule = dataclasses.replace(RECIPE.schedule, optimiser=name, weight_decay=0.0)
    optimiser = build_optimiser(model, schedule)
    sampler = MaskSampler(SOURCE.names, start=1, tau=1.0)
    indices = torch.arange(64)
    terms = update_for(model, RECIPE)(data.train.training_batch(indices), sampler, 0)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []


def test_train_and_evaluate_from_the_command_line(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_command, "describe", lambda recipe, folder: SOURCE)
    monkeypatch.setattr(train_command, "load_data", lambda recipe, folder: data)
    monkeypatch.setattr(evaluate_command, "load_split", lambda recipe, split, folder: data.validation)
    recipe = tmp_path / "toy.toml"
    encoder = "{channels = [4], strides = [2]}"
    recipe.write_text(
        f'name = "toy"\n[data]\nreader = "rig"\n[model]\nwidth = 8\nexpert_channels = [8]\n[model.encoders]\n'
        f"rgb = {encoder}\ndepth = {encoder}\n[schedule]\nepochs = 2\n"
    )
    run = tmp_path / "run"
    threads = ["--threads", str(torch.get_num_threads())]
    assert train_command.main([str(recipe), "-o", str(run), "--quiet", *threads]) == 0
    assert "validation, selected epoch" in capsys.readouterr().out
    assert evaluate_command.main([str(run), "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [s["subset"] for s in printed["last"]["subsets"]] == ["rgb", "depth", "rgb+depth"]
    assert {"selected", "last"} == set(printed)
    with pytest.raises(UsageError) as error:
        train_command.main([str(recipe), "-o", str(run), "--quiet", *threads])
    assert str(error.value) == f"{run} holds a finished run; choose another directory with -o"


def test_check_prints_parameters_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_command, "describe", lambda recipe, folder: SOURCE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text('name = "toy"\n[data]\nreader = "rig"\n')
    assert train_command.main(["toy.toml", "--check", "--threads", str(torch.get_num_threads())]) == 0
    assert "parameters deployed" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["toy.toml"]


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        evaluate_command.main([str(tmp_path)])
    message = f"{tmp_path} is not a run directory: it has no run.json; `mars-edge train` makes one"
    assert str(error.value) == message
