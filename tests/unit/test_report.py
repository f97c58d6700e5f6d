"""The report of a run: whole, self-contained, safe to open; event files hold the same numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from mars_edge.errors import UsageError
from mars_training.checkpoint import RunInfo, load_model, save_info
from mars_training.commands import report as report_command
from mars_training.data.split import Data, Split
from mars_training.evaluate import SubsetScore
from mars_training.recipe import DataRecipe, ModelRecipe, Recipe, SamplingRecipe, ScheduleRecipe
from mars_training.report import ReportFiles, write_report
from mars_training.tensorboard import epoch_events
from mars_training.train import EpochReport, train
from tests.helpers.toy_training import SMALL, SOURCE

HOSTILE = '<script src="x">alert("$1 & $2")</script>'
RECIPE = Recipe(
    name="toy",
    data=DataRecipe(reader="rig"),
    model=ModelRecipe(
        encoders={"rgb": SMALL, "depth": SMALL}, experts=4, active_experts=2, width=8, expert_channels=(8,)
    ),
    sampling=SamplingRecipe(start=1),
    schedule=ScheduleRecipe(epochs=2, batch_size=16, rate=1e-2),
)
VOID = {"meta", "br", "hr", "img", "link", "input"}


def toy_split(n: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    inputs = {name: torch.rand(n, 1, 8, 8, generator=generator) for name in ("rgb", "depth")}
    for x in inputs.values():
        x[:, :, :4] += 0.3 * labels[:, None, None, None]
    return Split(inputs=inputs, labels=labels, groups=1 - labels, group_names=("bona_fide", "<b>mask</b>"))


VALIDATION = toy_split(32, 2)


def trained(run: Path, method: str = "mars") -> Path:
    recipe = dataclasses.replace(RECIPE, method=method)
    train(recipe, Data(source=SOURCE, train=toy_split(32, 1), validation=VALIDATION), run, seed=0)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def files(run: Path) -> ReportFiles:
    return write_report(run, load_model(run)[0], VALIDATION)


class Page(HTMLParser):
    """The text, attributes and ids of a page whose every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_names_every_subset(files: ReportFiles) -> None:
    page = Page(files.page.read_text(encoding="utf-8"))
    for subset in ("rgb", "depth", "rgb+depth"):
        assert subset in page.texts
    headings = [
        "Subsets of modalities", "Validation", "Losses", "Routing", "Use of the experts",
        "Agreement of the two routers", "Sampling",
    ]  # fmt: skip
    assert [t for t in page.texts if t in headings] == headings
    assert page.tags.count("svg") == 7


def test_the_page_loads_nothing(files: ReportFiles) -> None:
    text = files.page.read_text(encoding="utf-8")
    assert "http" not in text and "@import" not in text
    page = Page(text)
    assert {"script", "link", "img", "iframe", "object"} & set(page.tags) == set()
    links = [value for name, value in page.attributes if name in ("href", "xlink:href", "src")]
    ids = [value for name, value in page.attributes if name == "id"]
    assert links and all(link.startswith("#") for link in links)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)


def test_text_and_axes_take_the_colour_of_the_page(files: ReportFiles) -> None:
    text = files.page.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text and "currentColor" in text
    assert "#010203" not in text


def test_the_picture_opens_and_is_not_blank(files: ReportFiles) -> None:
    picture = cv2.imread(str(files.picture))
    assert picture is not None
    assert picture.shape[0] > 800 and picture.shape[1] > 1000
    assert (picture[0, 0] == 255).all() and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_the_numbers_are_strict_json_of_the_same_run(files: ReportFiles, run: Path) -> None:
    def refuse(text: str) -> float:
        raise AssertionError(text)

    table = json.loads(files.numbers.read_text(encoding="utf-8"), parse_constant=refuse)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (table["method"], table["seed"], table["epochs"]) == ("mars", 0, 2)
    assert table["selected"]["epoch"] == metrics["selected"]["epoch"]
    assert table["terms"]["task"] == [report["terms"]["task"] for report in metrics["history"]]
    np.testing.assert_allclose(np.sum(table["routing"]["mean_gate"], axis=1), 1.0)
    assert set(table["agreement"]["by_combination"]) == set(table["sampling"]["combinations"]) == {"rgb", "depth"}


def test_no_other_file_is_left_behind(files: ReportFiles, run: Path) -> None:
    assert files == ReportFiles(page=run / "report.html", picture=run / "report.png", numbers=run / "diagnostics.json")
    assert [p.name for p in run.iterdir() if p.name.startswith(".") or p.suffix == ".tmp"] == [".lock"]


def test_names_are_text_and_never_markup(run: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "run"
    hostile.mkdir()
    for name in ("metrics.json", "selected.safetensors", "last.safetensors"):
        (hostile / name).write_bytes((run / name).read_bytes())
    save_info(hostile, RunInfo(recipe=RECIPE, seed=0, source=dataclasses.replace(SOURCE, note=HOSTILE)))
    text = write_report(hostile, load_model(hostile)[0], VALIDATION).page.read_text(encoding="utf-8")
    assert "<script" not in text and "<b>" not in text
    page = Page(text)
    assert any(HOSTILE in t and "seed 0" in t for t in page.texts)
    assert any("<b>mask</b>" in t for t in page.texts)


def test_a_method_without_routers_has_a_report_without_them(tmp_path: Path) -> None:
    run = trained(tmp_path, "modality_dropout")
    files = write_report(run, load_model(run)[0], VALIDATION)
    page = Page(files.page.read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 3 and "Routing" not in page.texts
    table = json.loads(files.numbers.read_text(encoding="utf-8"))
    assert (table["routing"], table["agreement"], table["sampling"], table["plateaus"]) == (None, None, None, {})
    assert cv2.imread(str(files.picture)) is not None


def test_the_command_writes_where_it_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report_command, "load_split", lambda recipe, split, folder: VALIDATION)
    page = tmp_path / "pages" / "toy.html"
    assert report_command.main([str(run), "-o", str(page), "--quiet", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table == {
        "page": str(page),
        "picture": str(page.with_suffix(".png")),
        "numbers": str(run / "diagnostics.json"),
    }
    assert all(Path(path).is_file() for path in table.values())


def test_a_page_that_is_no_html_and_a_run_without_an_epoch_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        report_command.main([str(run), "-o", "toy.pdf"])
    assert str(caught.value) == "-o toy.pdf: the page must have the suffix .html; the picture is named like it"
    save_info(tmp_path, RunInfo(recipe=RECIPE, seed=0, source=SOURCE))
    with pytest.raises(UsageError) as caught:
        write_report(tmp_path, load_model(run)[0], VALIDATION)
    assert str(caught.value) == f"{tmp_path} has no metrics.json: training has not finished an epoch"


def report_of(epoch: int, epochs: int = 2) -> EpochReport:
    score = SubsetScore(subset="rgb", metric="accuracy", value=0.75, low=0.5, high=1.0, n=4, detail={})
    return EpochReport(
        epoch=epoch,
        epochs=epochs,
        rate=0.1,
        seconds=1.0,
        eta_s=0.0,
        samples_per_s=5.0,
        terms={"loss": 2.0 - epoch},
        scores=[score],
        sampling={"rgb": (0.25, 0.5)},
    )


def written(run: Path) -> dict[tuple[str, int], float]:
    """Every scalar of a run's event files by tag and step."""
    found = {}
    for path in sorted((run / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[value.tag, event.step] = value.tensor.float_val[0]
    return found


def test_event_files_hold_every_number_of_every_epoch(tmp_path: Path) -> None:
    with epoch_events(tmp_path) as write:
        assert not (tmp_path / "tensorboard").exists()
        write(report_of(0))
        after_one = written(tmp_path)
        write(report_of(1))
    assert {tag for tag, _ in after_one} == {
        "loss/loss", "rate", "samples_per_s", "error/rgb", "error/mean", "discrepancy/rgb", "probability/rgb",
    }  # fmt: skip
    found = written(tmp_path)
    assert [found["loss/loss", step] for step in (1, 2)] == [2.0, 1.0]
    assert (found["error/rgb", 2], found["error/mean", 2]) == (0.25, 0.25)
    assert (found["discrepancy/rgb", 1], found["probability/rgb", 1]) == (0.25, 0.5)


def test_event_files_need_tensorboard_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError) as caught, epoch_events(tmp_path):
        pass
    assert str(caught.value) == (
        "--tensorboard needs tensorboard, which is not installed: pip install 'mars-edge[train]'"
    )


def test_event_files_are_closed_when_training_ends_early(tmp_path: Path) -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if isinstance(t, _AsyncWriterThread)]

    with pytest.raises(KeyboardInterrupt), epoch_events(tmp_path) as write:
        write(report_of(0, epochs=9))
        assert threads()
        raise KeyboardInterrupt
    assert threads() == []


def accumulated(run: Path) -> EventAccumulator:
    """What TensorBoard itself reads of a run."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return events


def test_a_report_adds_its_pictures_and_numbers_to_tensorboard_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    with epoch_events(copied) as write:
        write(report_of(0))
        write(report_of(1))
    monkeypatch.setattr(report_command, "load_split", lambda recipe, split, folder: VALIDATION)
    for _ in range(2):
        assert report_command.main([str(copied), "--tensorboard", "--quiet"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(copied / "tensorboard")
    events = accumulated(copied)
    numbers = json.loads((copied / "diagnostics.json").read_text(encoding="utf-8"))
    usage, scores = numbers["usage"], numbers["selected"]["scores"]
    expected = {
        "agreement/rgb": numbers["agreement"]["by_combination"]["rgb"],
        "agreement/depth": numbers["agreement"]["by_combination"]["depth"],
        "agreement/chance": 0.5,
        "effective_experts/by_gate": usage["effective_by_gate"],
        "effective_experts/by_load": usage["effective_by_load"],
        **{f"gate_share/{i}": usage["gate"][i] for i in range(4)},
        **{f"load_share/{i}": usage["load"][i] for i in range(4)},
        **{f"ece/{s['subset']}": s["ece"] for s in scores},
        **{f"nll/{s['subset']}": s["nll"] for s in scores},
    }
    for tag, value in expected.items():
        (event,) = events.Scalars(tag)
        assert (event.step, event.value) == (numbers["selected"]["epoch"] + 1, pytest.approx(value, rel=1e-6))
    assert [event.value for event in events.Scalars("loss/loss")] == [2.0, 1.0]
    names = ("scores", "curves", "losses", "sampling", "agreement", "usage", "routing")
    assert sorted(events.Tags()["images"]) == sorted(f"report/{name}" for name in names)
    for name in names:
        (image,) = events.Images(f"report/{name}")
        pixels = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None and (pixels[0, 0] == 255).all()
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_without_being_asked_a_report_writes_no_event_files(files: ReportFiles, run: Path) -> None:
    assert files.tensorboard is None and not (run / "tensorboard").exists()


def test_a_method_without_routers_has_only_the_numbers_it_has(tmp_path: Path) -> None:
    run = trained(tmp_path, "modality_dropout")
    files = write_report(run, load_model(run)[0], VALIDATION, tensorboard=True)
    assert files.tensorboard == run / "tensorboard"
    tags = accumulated(run).Tags()
    assert sorted(tags["images"]) == ["report/curves", "report/losses", "report/scores"]
    assert {tag.partition("/")[0] for tag in tags["scalars"]} == {"ece", "nll"}
