"""`mars-edge compare` end to end on tiny digits: two processes, folds, an oracle, a cell that fails, and going on."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mars_edge.errors import UsageError
from mars_training.checkpoint import load_info, load_model
from mars_training.commands.compare import main
from mars_training.compare import Place, RunCell, read_evaluation, state_of
from mars_training.data.load import load_data, load_split
from mars_training.evaluate import SubsetScore, score_subsets
from mars_training.grid import Cell, load_grid
from mars_training.lock import sole_user
from mars_training.methods.oracle import oracle_of
from mars_training.train import train
from mars_training.workers import RefusedError

RECIPE = """
name = "toy"
[data]
reader = "digits"
pairings = 1
[model]
experts = 4
width = 8
fusion_stride = 1
expert_stride = 1
expert_channels = [8]
[model.encoders.audio]
channels = [4]
strides = [4]
pool = true
[model.encoders.image]
channels = [8]
strides = [1]
pool = true
[schedule]
epochs = 3
batch_size = 10
rate = 3e-2
"""
GRID = """
name = "toy"
recipe = "toy.toml"
seeds = [0, 1]
folds = [0, 1]
compare_with = "dropout"
[[row]]
name = "dropout"
method = "modality_dropout"
[[row]]
name = "MARS"
[[row]]
name = "hot"
[row.set.schedule]
rate = 1e30
clip_norm = 1e30
[[row]]
name = "oracle"
oracle_of = "MARS"
"""
KEYS = [(seed, fold) for fold in (0, 1) for seed in (0, 1)]


def write_digits(root: Path) -> None:
    """The true layout, 2 takes each; a digit is its loudness and the brightness of its image."""
    generator = np.random.default_rng(0)
    (root / "free-spoken-digit-dataset" / "recordings").mkdir(parents=True)
    (root / "optdigits").mkdir()
    for digit in range(10):
        for speaker in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"):
            for take in range(2):
                path = root / "free-spoken-digit-dataset" / "recordings" / f"{digit}_{speaker}_{take}.wav"
                with wave.open(str(path), "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", ""))
                    file.writeframes(generator.integers(-(3**digit) - 9, 3**digit + 9, 2400).astype("<i2").tobytes())
    for name, rows in (("optdigits.tra", 60), ("optdigits.tes", 30)):
        pixels = [np.clip(generator.normal(1.6 * (i % 10), 1, 64), 0, 16).astype(int) for i in range(rows)]
        lines = [",".join(map(str, [*row, i % 10])) for i, row in enumerate(pixels)]
        (root / "optdigits" / name).write_text("\n".join(lines))


@dataclasses.dataclass(frozen=True)
class Ran:
    """A grid that was run once."""

    folder: Path
    code: int
    table: dict[str, Any]
    err: str

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def arguments(self, output: Path) -> list[str]:
        return [str(self.folder / "grid.toml"), "--data", str(self.folder / "data"), "-o", str(output)]

    def cells(self) -> list[Cell]:
        return load_grid(self.folder / "grid.toml").cells()

    def place(self, output: Path) -> Place:
        return Place(output=output, split="test", folder=self.folder / "data")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("grid")
    write_digits(folder / "data")
    (folder / "toy.toml").write_text(RECIPE)
    (folder / "grid.toml").write_text(GRID)
    arguments = [str(folder / "grid.toml"), "--data", str(folder / "data"), "-o", str(folder / "out")]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*arguments, "--jobs", "2", "--json", "--markdown", str(folder / "table.md")])
    return Ran(folder, code, json.loads(out.getvalue()), err.getvalue())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a worker: sums in another order are other sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def copied(ran: Ran, tmp_path: Path) -> Iterator[Path]:
    """The finished folder, to be spoilt."""
    shutil.copytree(ran.output, tmp_path / "out")
    yield tmp_path / "out"


def test_a_cell_that_diverges_is_told_and_the_others_are_finished(ran: Ran) -> None:
    assert ran.code == 1
    states = {(c["row"], c["seed"], c["fold"]): c["state"] for c in ran.table["cells"]}
    assert states == {
        (row, *key): "failed" if row == "hot" else "finished"
        for row in ("dropout", "MARS", "hot", "oracle")
        for key in KEYS
    }
    reasons = {c["failure"] for c in ran.table["cells"] if c["row"] == "hot"}
    assert all(re.fullmatch(r"the (loss|gradient).* (nan|inf).* in epoch .*", reason) for reason in reasons)
    hot = next(row for row in ran.table["rows"] if row["name"] == "hot")
    assert (hot["runs"], hot["wanted"], hot["failed"], hot["error"]) == (0, 4, 4, {})
    assert "FAILED  hot, seed 0, fold 0: the " in ran.err


def test_every_number_of_the_table_can_be_had_from_the_cells_files(ran: Ran) -> None:
    rows = {row["name"]: row for row in ran.table["rows"]}
    for name in ("dropout", "MARS", "oracle"):
        read: dict[str, dict[tuple[int, int], float]] = {}
        for seed, fold in KEYS:
            path = ran.output / name.lower() / f"seed{seed}-fold{fold}" / "evaluation-test.json"
            scores = json.loads(path.read_text())["selected"]["subsets"]
            for s in scores:
                read.setdefault(s["subset"], {})[seed, fold] = 100 * (1 - s["value"])
            read.setdefault("mean", {})[seed, fold] = sum(100 * (1 - s["value"]) for s in scores) / len(scores)
        assert set(read) == {"audio", "image", "audio+image", "mean"}
        for column, values in read.items():
            by_seed = [(values[seed, 0] + values[seed, 1]) / 2 for seed in (0, 1)]
            mean = sum(by_seed) / 2
            found = rows[name]["error"][column]
            assert found["mean"] == pytest.approx(mean)
            assert found["deviation"] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in by_seed)))
    assert rows["dropout"]["error"]["mean"]["mean"] != rows["MARS"]["error"]["mean"]["mean"]


def test_rows_are_paired_with_the_reference_and_an_oracle_with_its_own(ran: Ran) -> None:
    pairs = [(c["row"], c["reference"], c["n"]) for c in ran.table["comparisons"]]
    assert pairs == [("MARS", "dropout", 4), ("oracle", "MARS", 4)]
    first = ran.table["comparisons"][0]
    means = {row["name"]: row["error"]["mean"]["mean"] for row in ran.table["rows"] if row["error"]}
    assert first["mean"] == pytest.approx(means["MARS"] - means["dropout"])


def test_the_written_table_has_every_row_its_runs_and_its_notes(ran: Ran) -> None:
    text = (ran.folder / "table.md").read_text()
    lines = text.splitlines()
    head = "| 100 - accuracy % | parameters | MMAC | runs | audio | image | audio+image | mean | last epoch |"
    assert lines[0] == head
    rows = {line.split(" | ")[0].strip("| "): line for line in lines[2:6]}
    assert list(rows) == ["dropout", "MARS", "hot", "oracle †"]
    assert rows["hot"] == "| hot | - | - | 0 of 4 | failed | failed | failed | failed | failed |"
    means = {row["name"]: row["error"]["mean"]["mean"] for row in ran.table["rows"][:2]}
    assert f"**{min(means.values()):.2f} ± " in rows[min(means, key=lambda name: means[name])]
    assert "**" not in rows["oracle †"]
    assert "\n- † Privileged: " in text and "\n- Failed: hot, (seed, fold) (0, 0)" in text
    assert f"grid {ran.table['digest']}" in lines[-1]


def test_a_cells_scores_are_those_of_its_selected_weights_and_an_oracles_of_the_privileged_router(ran: Ran) -> None:
    run = ran.output / "mars" / "seed1-fold0"
    model, info = load_model(run, "selected")
    split = load_split(info.recipe, "test", folder=ran.folder / "data")
    for name, scored in (("mars", model.deployed), ("oracle", oracle_of(model))):
        stored = json.loads((ran.output / name / "seed1-fold0" / "evaluation-test.json").read_text())["selected"]
        fresh = score_subsets(scored, split, info.source)  # type: ignore[arg-type]
        assert [SubsetScore(**s) for s in stored["subsets"]] == fresh


def test_a_cell_trains_the_recipe_of_its_row_with_its_seed_and_fold(ran: Ran) -> None:
    for cell in ran.cells():
        if not cell.row.oracle_of:
            info = load_info(ran.output / cell.folder)
            assert (info.recipe, info.seed) == (cell.recipe, cell.seed)
            assert info.recipe.data.fold == cell.key[1]
    assert not (ran.output / "oracle" / "seed0-fold0" / "run.json").exists()


def test_only_what_is_missing_is_done_again(ran: Ran, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "dropout" / "seed0-fold1")
    (copied / "mars" / "seed1-fold1" / "evaluation-test.json").unlink()
    gone = {"dropout/seed0-fold1", "mars/seed1-fold1"}
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*.*") if p.is_file() and p.parent.name != "out"}
    only = ["--only", "dropout", "MARS", "oracle", "--jobs", "1"]
    main([*ran.arguments(copied), "--dry-run", *only])
    plan = capsys.readouterr().out.splitlines()
    assert sorted(line for line in plan if not line.startswith("finished")) == [
        "2 of 12 cells to do",
        "to evaluate  MARS, seed 1, fold 1",
        "to train     dropout, seed 0, fold 1",
    ]
    assert main([*ran.arguments(copied), *only, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["error"] for row in again["rows"]] == [row["error"] for row in ran.table["rows"]]
    after = {p: p.stat().st_mtime_ns for p in copied.rglob("*.*") if p.is_file() and p.parent.name != "out"}
    changed = {p for p in after if before.get(p) != after[p]}
    assert {str(p.parent.relative_to(copied)) for p in changed} == gone
    assert {p.name for p in changed if p.parent.parent.name == "mars"} == {"evaluation-test.json"}


def test_scores_of_other_weights_do_not_count(ran: Ran, copied: Path) -> None:
    place, cells = ran.place(copied), {(c.row.name, *c.key): c for c in ran.cells()}
    mars, oracle = cells["MARS", 0, 0], cells["oracle", 0, 0]
    assert (state_of(mars, place), state_of(oracle, place)) == ("finished", "finished")
    shutil.copy(copied / "mars/seed1-fold0/last.safetensors", copied / "mars/seed0-fold0/last.safetensors")
    assert read_evaluation(mars, place) is None and read_evaluation(oracle, place) is None
    assert (state_of(mars, place), state_of(oracle, place)) == ("to evaluate", "to evaluate")


def changed_grid(ran: Ran, tmp_path: Path) -> list[str]:
    """The arguments of the same grid but for one key of one row; one seed and fold of two rows."""
    shutil.copy(ran.folder / "toy.toml", tmp_path / "toy.toml")
    text = GRID.replace('name = "MARS"', 'name = "MARS"\n[row.set.model]\nwidth = 10')
    (tmp_path / "grid.toml").write_text(text)
    rest = ["-o", str(tmp_path / "out"), "--only", "dropout", "MARS", "--seeds", "0", "--jobs", "1"]
    return [str(tmp_path / "grid.toml"), "--data", str(ran.folder / "data"), *rest]


def test_a_run_of_another_recipe_is_refused_and_replaced_on_request(
    ran: Ran, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = changed_grid(ran, tmp_path)
    with pytest.raises(UsageError) as error:
        main(arguments)
    assert str(error.value) == (
        f"{copied / 'mars' / 'seed0-fold0'} holds another run (model.width is 8 there and 10 in the grid); "
        "give --redo to replace it, or another folder with -o"
    )
    untouched = (copied / "dropout" / "seed0-fold0" / "evaluation-test.json").stat().st_mtime_ns
    assert main([*arguments, "--redo", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert load_info(copied / "mars" / "seed0-fold0").recipe.model.width == 10
    assert (copied / "dropout" / "seed0-fold0" / "evaluation-test.json").stat().st_mtime_ns == untouched
    # The oracle's scores were of the weights before.
    assert (rows["MARS"]["runs"], rows["oracle"]["runs"]) == (2, 0)


def test_two_comparisons_do_not_write_to_one_folder(ran: Ran, copied: Path) -> None:
    with sole_user(copied, "busy"), pytest.raises(UsageError) as error:
        main(ran.arguments(copied))
    assert str(error.value) == f"another compare is running in {copied}; wait for it, or give another folder"


def test_an_oracle_without_its_run_says_what_is_missing(ran: Ran, tmp_path: Path) -> None:
    oracle = next(cell for cell in ran.cells() if cell.row.oracle_of)
    with pytest.raises(UsageError) as error:
        RunCell(ran.place(tmp_path))(oracle, print)
    assert str(error.value) == f"{tmp_path}/mars/seed0-fold0 has no finished run to evaluate with its residual router"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--only", "dropuot"], "--only names 'dropuot'; rows: 'dropout', 'MARS', 'hot', 'oracle'"),
        (["--seeds", "1", "1"], "--seeds is [1, 1]; each must be there once and at least 0"),
        (["--jobs", "0"], "compare: argument --jobs: 0 is not above 0"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(ran: Ran, tmp_path: Path, extra: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        main([*ran.arguments(tmp_path), *extra])
    assert str(error.value) == message


def test_data_that_cannot_be_read_refuses_the_whole_grid(ran: Ran, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as error:
        RunCell(Place(output=tmp_path, split="test"))(ran.cells()[0], print)
    assert str(error.value) == "recipe 'toy' reads files: give their folder with --data DIR"
    assert error.value.exit_code == 2


def test_sigterm_ends_every_process_and_the_next_call_goes_on_to_the_same_weights(ran: Ran, tmp_path: Path) -> None:
    shutil.copy(ran.folder / "toy.toml", tmp_path / "toy.toml")
    long = 'name = "MARS"\n[row.set.schedule]\nepochs = 12'
    (tmp_path / "grid.toml").write_text(GRID.replace('name = "MARS"', long).replace("folds = [0, 1]", "folds = [0]"))
    arguments = [str(tmp_path / "grid.toml"), "--data", str(ran.folder / "data"), "--only", "MARS", "--seeds", "0"]
    command = [sys.executable, "-m", "mars_edge", "compare", *arguments]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command += ["-o", str(stopped)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as parent:
        end = time.monotonic() + 60
        while not (stopped / "mars" / "seed0-fold0" / "metrics.json").exists():
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.send_signal(signal.SIGTERM)
        _, err = parent.communicate(timeout=30)
    assert parent.returncode == 143 and children
    assert err.splitlines()[-1] == "stopped; the same command goes on from here"
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.02)
    cell = next(c for c in load_grid(tmp_path / "grid.toml").cells() if c.row.name == "MARS")
    assert state_of(cell, ran.place(stopped)) == "interrupted"
    epochs = len(json.loads((stopped / cell.folder / "metrics.json").read_text())["history"])
    assert epochs < 12
    with one_thread():
        RunCell(ran.place(stopped))(cell, print)
        train(cell.recipe, load_data(cell.recipe, folder=ran.folder / "data"), whole, seed=0)
    for name in ("last.safetensors", "selected.safetensors"):
        assert (stopped / cell.folder / name).read_bytes() == (whole / name).read_bytes()
    assert state_of(cell, ran.place(stopped)) == "finished"
