"""`mars-edge train` and what reads its directory: mistakes, damage and signals end in one line, and nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mars_edge import cli
from mars_edge.errors import UsageError
from mars_training.checkpoint import load_info, load_metrics, load_model
from mars_training.commands import train as train_command
from mars_training.data.split import Data
from mars_training.lock import sole_user
from mars_training.recipe import Recipe
from mars_training.train import EpochReport, Hooks, fit, prepare, train
from tests.helpers.toy_training import RECIPE, SOURCE, toy_data

TOML = """
name = "toy"
[data]
reader = "rig"
[model]
width = 8
experts = 4
active_experts = 2
expert_channels = [8]
[model.encoders]
rgb = {channels = [4], strides = [2]}
depth = {channels = [4], strides = [2]}
[schedule]
epochs = 3
checkpoint_every_s = 1e-9
"""
RESTORE = "put a copy of it back, or train again into another directory"


class StoppedError(Exception):
    """A kill after an epoch."""


def stop(report: EpochReport) -> None:
    raise StoppedError


@pytest.fixture(scope="module")
def data() -> Data:
    return toy_data()


@pytest.fixture
def interrupted(data: Data, tmp_path: Path) -> Path:
    """A run directory whose training was killed after the first of two epochs."""
    with pytest.raises(StoppedError):
        train(RECIPE, data, tmp_path / "run", seed=0, hooks=Hooks(after_epoch=stop))
    return tmp_path / "run"


def lacking(data: Data, present: torch.Tensor) -> Data:
    return dataclasses.replace(data, train=dataclasses.replace(data.train, present=present))


def refused(ask: Callable[[], object]) -> str:
    """The one line that it is refused with."""
    with pytest.raises(UsageError) as error:
        ask()
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_run_directory_that_is_being_trained_into_is_refused_and_left_as_it_is(data: Data, tmp_path: Path) -> None:
    busy = f"another training is running in {tmp_path}; wait for it, or choose another directory with -o"
    seen: list[str] = []

    def second(report: EpochReport) -> None:
        seen.append(refused(lambda: train(RECIPE, data, tmp_path, seed=0)))

    partial = tmp_path / ".x.1.tmp"
    with sole_user(tmp_path, "held"):
        partial.touch()
        assert refused(lambda: train(RECIPE, data, tmp_path, seed=0)) == busy
        assert partial.exists() and not (tmp_path / "run.json").exists()
    train(RECIPE, data, tmp_path, seed=0, hooks=Hooks(after_epoch=second))
    assert seen == [busy, busy]


def test_what_a_killed_process_was_writing_is_removed_by_the_next(data: Data, interrupted: Path) -> None:
    left = [interrupted / name for name in (".last.safetensors.123.tmp", ".tmpYGPxJX")]
    for path in left:
        path.write_bytes(b"half")
    train(RECIPE, data, interrupted, seed=0)
    assert [path for path in left if path.exists()] == []


def test_training_does_not_replace_a_run_of_something_else(data: Data, interrupted: Path) -> None:
    before = (interrupted / "run.json").read_bytes()
    expected = f"{interrupted} holds an interrupted run of another recipe or seed; choose another directory with -o"
    assert refused(lambda: train(RECIPE, data, interrupted, seed=1)) == expected
    assert (interrupted / "run.json").read_bytes() == before


@pytest.mark.parametrize("method", ["mars", "moe", "modality_dropout"])
def test_a_modality_that_no_training_row_has_is_named(data: Data, tmp_path: Path, method: str) -> None:
    present = torch.ones(128, 2, dtype=torch.bool)
    present[:, 1] = False
    recipe = dataclasses.replace(plain(method), method=method)
    message = refused(lambda: train(recipe, lacking(data, present), tmp_path / "run", seed=0))
    assert message == (
        "none of the 128 training rows has 'depth'; add rows that have it, or declare the data set without it"
    )
    assert not (tmp_path / "run").exists()


def plain(method: str) -> Recipe:
    model = dataclasses.replace(RECIPE.model, student_rate=0.0, expert_dropout=0.0, residual_scope="sample")
    return dataclasses.replace(RECIPE, model=model, method=method)


def test_mars_without_a_complete_row_says_what_is_missing_and_what_to_use(data: Data, tmp_path: Path) -> None:
    present = torch.ones(128, 2, dtype=torch.bool)
    present[:100, 0] = False
    present[100:, 1] = False
    halves = lacking(data, present)
    assert refused(lambda: train(RECIPE, halves, tmp_path / "run", seed=0)) == (
        "method 'mars' learns its routing from complete rows and none of the 128 training rows is one: "
        '100 lack rgb, 28 lack depth; use method = "modality_dropout" or "moe"'
    )
    assert not (tmp_path / "run").exists()
    for method in ("moe", "modality_dropout"):
        train(plain(method), halves, tmp_path / method, seed=0)
    present[0] = True
    train(RECIPE, halves, tmp_path / "one", seed=0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def other_tensors(path: Path) -> None:
    save_file({"x": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [cut, other_tensors, lambda path: path.write_bytes(b"")])
def test_a_damaged_resume_file_is_named_with_what_deleting_does_and_that_is_true(
    data: Data, interrupted: Path, damage: Callable[[Path], None]
) -> None:
    path = interrupted / "resume.safetensors"
    damage(path)
    message = refused(lambda: train(RECIPE, data, interrupted, seed=0))
    assert message.startswith(f"{path} is damaged: ")
    assert message.endswith(
        "; this training cannot go on: delete the whole directory to start again, "
        "or only that file to keep the weights of the last whole epoch as the result"
    )
    path.unlink()
    load_model(interrupted, "last")
    assert len(load_metrics(interrupted)["history"]) == 1
    assert refused(lambda: train(RECIPE, data, interrupted, seed=0)).startswith(f"{interrupted} holds a finished run")


def test_a_damaged_resume_file_of_the_first_epoch_can_be_deleted_to_start_again(data: Data, interrupted: Path) -> None:
    (interrupted / "metrics.json").unlink()
    path = interrupted / "resume.safetensors"
    cut(path)
    message = refused(lambda: train(RECIPE, data, interrupted, seed=0))
    assert message.endswith("; delete it to start again from the first epoch")
    path.unlink()
    assert len(train(RECIPE, data, interrupted, seed=0).history) == 2


def test_a_resume_file_of_another_model_is_refused_by_the_first_tensor_that_differs(
    data: Data, interrupted: Path, tmp_path: Path
) -> None:
    wider = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, width=16))
    with pytest.raises(StoppedError):
        train(wider, data, tmp_path / "wider", seed=0, hooks=Hooks(after_epoch=stop))
    path = interrupted / "resume.safetensors"
    path.write_bytes((tmp_path / "wider" / path.name).read_bytes())
    message = refused(lambda: train(RECIPE, data, interrupted, seed=0))
    assert message.startswith(f"{path} is damaged: ") and "; its parameter (" in message


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("selected.safetensors", lambda run: load_model(run, "selected")),
        ("last.safetensors", lambda run: load_model(run, "last")),
        ("run.json", load_info),
        ("metrics.json", load_metrics),
    ],
)
def test_a_cut_file_of_a_run_is_named(interrupted: Path, name: str, read: Callable[[Path], object]) -> None:
    for content in (b"", (interrupted / name).read_bytes()[:-7], b"\xff\xfe\x00\x01", b"[]", b"{}"):
        (interrupted / name).write_bytes(content)
        message = refused(lambda: read(interrupted))
        assert message.startswith(f"{interrupted / name} is damaged: ") and message.endswith(f"; {RESTORE}")


def test_weights_of_another_model_are_named(interrupted: Path) -> None:
    path = interrupted / "selected.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file({**weights, name: torch.zeros(7)}, path)
    shape = tuple(weights[name].shape)
    assert refused(lambda: load_model(interrupted)) == (
        f"{path} is damaged: {name} is (7,); the model has {shape}; {RESTORE}"
    )
    del weights[name]
    save_file(weights, path)
    assert refused(lambda: load_model(interrupted)) == f"{path} is damaged: {name} is missing; {RESTORE}"


def test_foreign_tables_are_named(interrupted: Path) -> None:
    table = json.loads((interrupted / "run.json").read_text())
    (interrupted / "run.json").write_text(json.dumps({**table, "source": {"modalities": []}}))
    assert refused(lambda: load_info(interrupted)).startswith(
        f"{interrupted / 'run.json'} is damaged: its source cannot be read: KeyError("
    )
    (interrupted / "metrics.json").write_text('{"selected": {}, "last": {}, "history": [{}]}')
    expected = f"{interrupted / 'metrics.json'} is damaged: it does not hold the epochs of a training; {RESTORE}"
    assert refused(lambda: load_metrics(interrupted)) == expected


@pytest.fixture
def command(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A `mars-edge train` of three epochs of four steps, into RUN = tmp_path / "run"."""
    monkeypatch.setattr(train_command, "describe", lambda recipe, folder: SOURCE)
    monkeypatch.setattr(train_command, "load_data", lambda recipe, folder: data)
    (tmp_path / "toy.toml").write_text(TOML)
    threads = str(torch.get_num_threads())
    return ["train", str(tmp_path / "toy.toml"), "-o", str(tmp_path / "run"), "--device", "cpu", "--threads", threads]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_with_one_line_that_says_where_the_same_command_goes_on(
    command: list[str],
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    two = Hooks(after_epoch=lambda report: signal.raise_signal(number) if report.epoch == 1 else None)
    monkeypatch.setattr(train_command, "progress", lambda stream: two)
    assert cli.main(command) == code
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", "stopped; the same command goes on after epoch 2")
    assert "Traceback" not in err and signal.getsignal(signal.SIGTERM) is before
    third = Hooks(
        after_step=lambda report: signal.raise_signal(number) if (report.epoch, report.step) == (2, 2) else None
    )
    monkeypatch.setattr(train_command, "progress", lambda stream: third)
    assert cli.main(command) == code
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; the same command goes on after step 1 of epoch 3"
    assert cli.main([*command, "--quiet"]) == 0
    assert len(load_metrics(Path(command[3]))["history"]) == 3


@pytest.mark.usefixtures("interruptible")
def test_a_signal_before_the_first_step_says_so_and_leaves_no_directory(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_command, "load_data", lambda recipe, folder: signal.raise_signal(signal.SIGINT))
    assert cli.main([*command, "--quiet"]) == 130
    assert capsys.readouterr().err == "stopped; the same command starts from the beginning\n"
    assert not Path(command[3]).exists()


def test_a_busy_or_damaged_directory_ends_the_command_with_exit_code_2_and_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(command[3])
    with sole_user(run, "held"):
        assert cli.main([*command, "--quiet"]) == 2
    assert capsys.readouterr().err == (
        f"mars-edge: another training is running in {run}; wait for it, or choose another directory with -o\n"
    )
    (run / "resume.safetensors").write_bytes(b"x")
    assert cli.main([*command, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mars-edge: {run}/resume.safetensors is damaged: ") and err.count("\n") == 1


def test_what_comes_next_is_printed_with_the_data_folder(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = command[3]
    assert cli.main([*command, "--quiet", "--data", "my data"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"next: mars-edge evaluate {run} --data 'my data'",
        f"      mars-edge report {run} --data 'my data'",
    ]


def test_a_gradient_longer_than_clip_norm_is_cut_to_it_and_a_shorter_one_left(data: Data) -> None:
    def flat(model: nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def moved(clip_norm: float) -> float:
        """How far one step of plain gradient descent at rate 1 moves the weights."""
        schedule = dataclasses.replace(
            RECIPE.schedule, optimiser="sgd", momentum=0.0, weight_decay=0.0, rate=1.0, warmup_epochs=0.0,
            clip_norm=clip_norm, epochs=1, batch_size=128,
        )  # fmt: skip
        recipe = dataclasses.replace(RECIPE, schedule=schedule)
        model = prepare(recipe, data, seed=0)
        before = flat(model)
        fit(model, data, recipe, seed=0)
        return float((flat(model) - before).norm())

    whole = moved(1e9)
    assert moved(whole / 4) == pytest.approx(whole / 4, rel=1e-3)
    assert moved(whole * 4) == pytest.approx(whole, rel=1e-6)
