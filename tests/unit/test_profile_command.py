"""`mars-edge profile` as a whole, on an engine whose every time is known: what is measured, and what becomes of it.

Processes of its own are this one, clocks and temperatures are told, and nothing is waited for.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mars_edge import cli
from mars_edge.errors import UsageError
from mars_edge.files import write_whole
from mars_edge.manifest import Manifest
from mars_edge.subsets import label
from mars_runtime.commands import profile
from mars_runtime.models import find_model
from mars_runtime.profiling import comparison, device, probe, repeats, session
from mars_runtime.profiling.inputs import Input
from mars_runtime.profiling.repeats import Opening
from mars_runtime.profiling.subject import Timed
from mars_runtime.profiling.timer import TimerCheck
from tests.fake_engine import RIG, FakeEngine, manifest

TWO = RIG[1:]
SUBSETS = ("depth", "ir", "depth+ir")
TIMER = TimerCheck(resolution_ns=40.0, overhead_ns=40.0, asked_ms=1.0, measured_ms=1.0, error=0.0)
CALM = {"hottest_c": 50.0, "throttled": False}
HOT = {"hottest_c": 80.0, "throttled": True}
Conditions = dict[str, Any]


class OpenedEngine(FakeEngine):
    """Knows the file it was opened from; `tested` is whether it decided before."""

    def __init__(self, manifest: Manifest, path: Path, threads: int, *, tested: bool) -> None:
        super().__init__(manifest)
        self.path, self.threads, self.tested = path, threads, tested


@dataclass(kw_only=True)
class Bench:
    """A machine on which everything takes as long as it is told.

    Attributes:
        times_ms: of a decision by file, then by subset.
        own_threads: what an engine chooses for a file by itself.
        before, meanwhile, after: what the device says about itself; meanwhile by process.
        opened: files with their threads, as the processes that measure open them.
        log: pauses in seconds and decisions by their label, in order.
    """

    folder: Path
    times_ms: Mapping[str, Mapping[str, float]]
    own_threads: Mapping[str, int] = field(default_factory=dict)
    before: Conditions = field(default_factory=lambda: dict(CALM))
    meanwhile: Sequence[Conditions] = (CALM,)
    after: Conditions = field(default_factory=lambda: dict(CALM))
    when_measuring: Callable[[], object] = lambda: None
    opened: list[tuple[str, int | None]] = field(default_factory=list)
    log: list[float | str] = field(default_factory=list)
    processes: int = 0

    def open(
        self, path: Path | str, *, threads: int | None = None, engine: str | None = None, self_test: bool = True
    ) -> OpenedEngine:
        """As `open_engine`; `engine` is any."""
        chosen = threads or self.own_threads.get(Path(path).name, 1)
        return OpenedEngine(manifest(TWO), Path(path), chosen, tested=self_test)

    def open_measured(self, path: Path | str, **asked: Any) -> OpenedEngine:
        """As a process opens it."""
        self.opened.append((Path(path).name, asked["threads"]))
        return self.open(path, **asked)

    def in_child(self, task: Callable[[Any], Any], *, progress: Any = None) -> Any:
        """Here."""
        self.processes += 1
        self.when_measuring()
        return task(progress or (lambda _: None))

    def conditions(self, host: Any = None, *, tools: bool = True) -> Conditions:
        """Without the board's tools while it is measured, with them before and after."""
        assert host is None
        if not tools:
            return dict(self.meanwhile[(self.processes - 1) % len(self.meanwhile)])
        return dict(self.after if self.processes else self.before)

    def subject(self, engine: OpenedEngine, inputs: Mapping[str, Input], subset: Sequence[str]) -> SimpleNamespace:
        """Decides in the time that was told for the file and the subset."""
        named = label(subset, engine.manifest.names)
        ms = self.times_ms[engine.path.name][named]

        def decide() -> Timed:
            self.log.append(named)
            return Timed(stages_ms={"capture_wait": 0.0, "preprocess": 0.5, "graph": ms - 1.0}, total_ms=ms)

        return SimpleNamespace(label=named, decide=decide)

    def profile(self, *asked: str, model: str = "own.pte") -> int:
        """The exit code of the command in one process of its own, three unless told otherwise."""
        self.processes = 0
        few = ["--mode", "quick", "--runs", "6", "--warmup", "1", "--processes", "3", "--picture-size", "8x8"]
        return cli.main(["profile", "--model", str(self.folder / model), *few, "--no-processes", "--quiet", *asked])


def every(ms: float) -> dict[str, float]:
    return dict.fromkeys(SUBSETS, ms)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """own.pte decides in 10 ms, other.pte in 20 ms."""
    made = Bench(folder=tmp_path, times_ms={"own.pte": every(10.0), "other.pte": every(20.0)})
    for name in made.times_ms:
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(profile, "check_timer", lambda: TIMER)
    monkeypatch.setattr(profile, "open_engine", made.open)
    monkeypatch.setattr(repeats, "open_engine", made.open_measured)
    monkeypatch.setattr(repeats, "in_child", made.in_child)
    monkeypatch.setattr(session, "Subject", made.subject)
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=time.monotonic, sleep=made.log.append))
    monkeypatch.setattr(device, "conditions", made.conditions)
    return made


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# two artifacts in turn


@pytest.mark.parametrize(
    ("own", "other", "ratio", "verdict"), [(10.0, 20.0, 0.5, "faster"), (30.0, 20.0, 1.5, "slower")]
)
def test_the_ratio_is_this_artifact_over_the_one_beside_it(
    own: float, other: float, ratio: float, verdict: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.times_ms = {"own.pte": every(own), "other.pte": every(other)}
    asked = bench.folder / "a.json"
    assert bench.profile("--beside", str(bench.folder / "other.pte"), "--json", str(asked)) == 0
    made = read(asked)
    assert (made["artifact"]["file"], made["beside"]["artifact"]["file"]) == ("own.pte", "other.pte")
    for row, beside, told in zip(made["rows"], made["beside"]["rows"], made["beside"]["ratios"], strict=True):
        assert (row["stages"]["total"]["p50_ms"], beside["stages"]["total"]["p50_ms"]) == (own, other)
        assert (told["p50_ms"], told["beside_p50_ms"]) == (own, other)
        assert (told["ratio"], told["verdict"]) == (pytest.approx(ratio), verdict)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.endswith(verdict))
    assert line.split()[:4] == ["depth", *(f"{ms:.1f}" for ms in (own, other)), f"{ratio:.2f}"]


@pytest.mark.parametrize(("asked", "threads"), [([], 2), (["--threads", "3"], 3)])
def test_the_artifact_beside_runs_on_the_threads_of_the_first_one(asked: list[str], threads: int, bench: Bench) -> None:
    bench.own_threads = {"own.pte": 2, "other.pte": 1}
    path = bench.folder / "a.json"
    assert bench.profile("--beside", str(bench.folder / "other.pte"), "--json", str(path), *asked) == 0
    assert bench.opened == [("own.pte", threads), ("other.pte", threads)] * 3
    assert read(path)["settings"]["threads"] == threads


# what is passed on to the measurement


def test_every_decision_waits_for_the_pause_before_it_and_none_without_one(bench: Bench) -> None:
    assert bench.profile("--pause-ms", "30") == 0
    pauses, decided = bench.log[0::2], bench.log[1::2]
    assert set(pauses) == {0.03}
    # Two rounds that count and a warm-up, in each of three processes.
    assert sorted(map(str, decided)) == sorted(3 * 3 * SUBSETS)
    bench.log.clear()
    assert bench.profile() == 0
    assert sorted(map(str, bench.log)) == sorted(3 * 3 * SUBSETS)


def test_a_decision_as_long_as_the_deadline_meets_it(bench: Bench) -> None:
    path = bench.folder / "a.json"
    bench.times_ms = {"own.pte": {"depth": 10.0, "ir": math.nextafter(10.0, 11.0), "depth+ir": 9.0}}
    assert bench.profile("--rate-hz", "100", "--json", str(path)) == 0
    rows = read(path)["rows"]
    assert [row["deadline_ms"] for row in rows] == [10.0] * 3
    assert [(row["subset"], row["misses"]) for row in rows] == [("depth", 0), ("ir", 6), ("depth+ir", 0)]


@pytest.mark.parametrize(("slo", "code"), [
    ("p50<=15ms", 5), ("p50<=25ms", 0), ("p50@depth<=15ms", 0), ("p50@depth+ir<=15ms", 5), ("misses<=10%", 5),
])  # fmt: skip
def test_an_objective_is_about_every_sensor_unless_it_names_a_subset(slo: str, code: int, bench: Bench) -> None:
    bench.times_ms = {"own.pte": {"depth": 10.0, "ir": 12.0, "depth+ir": 20.0}}
    assert bench.profile("--rate-hz", "60", "--slo", slo) == code


# a device that slows itself down


@pytest.mark.parametrize(
    ("told", "slowed"),
    [
        ({}, False),
        ({"before": HOT}, True),
        ({"meanwhile": (HOT,)}, True),
        ({"meanwhile": (CALM, HOT, CALM)}, True),
        ({"after": HOT}, True),
        ({"before": {**CALM, "events": {"cpu0": 4}}, "after": {**CALM, "events": {"cpu0": 4}}}, False),
        ({"before": {**CALM, "events": {"cpu0": 4}}, "after": {**CALM, "events": {"cpu0": 5}}}, True),
    ],
)
def test_a_device_that_slowed_itself_down_at_any_moment_of_the_run_is_told(
    told: Mapping[str, Any], slowed: bool, bench: Bench
) -> None:
    vars(bench).update(told)
    path = bench.folder / "a.json"
    assert bench.profile("--json", str(path)) == 0
    conditions = read(path)["conditions"]
    assert conditions["slowed_down"] is slowed
    assert conditions["start"] == bench.before
    assert conditions["end"] == bench.after


def test_the_peak_is_the_hottest_reading_of_all_processes_and_of_both_ends(bench: Bench) -> None:
    path = bench.folder / "a.json"
    for warmest in range(5):
        readings = [{"hottest_c": 70.0 if place == warmest else 50.0, "throttled": False} for place in range(5)]
        bench.before, *bench.meanwhile, bench.after = readings
        assert bench.profile("--json", str(path)) == 0
        assert read(path)["conditions"]["peak"]["hottest_c"] == 70.0


def test_a_run_that_turns_out_unlike_the_base_is_refused_once_it_is_written(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    base, path = bench.folder / "base.json", bench.folder / "a.json"
    assert bench.profile("--json", str(base)) == 0
    bench.meanwhile = (CALM, HOT, CALM)
    capsys.readouterr()
    assert bench.profile("--compare", str(base), "--json", str(path)) == 2
    why = "throttled: the device slowed itself down now"
    said = capsys.readouterr()
    assert said.err == f"mars-edge: --compare {base}: unlike runs ({why}); --force compares anyway\n"
    assert f"UNLIKE, not compared: {why}" in said.out
    assert read(path)["comparison"] == {
        "base": {"file": "base.json", "artifact": read(base)["artifact"]["sha256"], "t_utc": read(base)["t_utc"]},
        "forced": False, "unlike": [why], "rows": [],
    }  # fmt: skip
    assert bench.profile("--compare", str(base), "--force") == 0


# two reports


def run_of(p50_ms: float, low_ms: float, high_ms: float) -> dict[str, Any]:
    total = {f"{name}_ms": p50_ms for name in ("p50", "p90")}
    ends = {f"{name}_interval_ms": [low_ms, high_ms] for name in ("p50", "p90")}
    return {"rows": [{"subset": "ir", "stages": {"total": {**total, **ends}}}]}


@pytest.mark.parametrize("which", ["p50", "p90"])
def test_a_run_that_knows_its_own_time_badly_is_not_told_apart_whichever_of_the_two_it_is(which: str) -> None:
    sharp, sharp_longer = run_of(10.0, 9.9, 10.1), run_of(12.0, 11.9, 12.1)
    blurred, blurred_longer = run_of(10.0, 5.0, 20.0), run_of(12.0, 6.0, 24.0)
    pairs = [(sharp, sharp_longer), (sharp, blurred_longer), (blurred, sharp_longer), (blurred, blurred_longer)]
    found = [comparison.ratios(base, this, which)[0] for base, this in pairs]
    assert [one.verdict for one in found] == ["slower", *["no difference"] * 3]
    assert [one.ratio for one in found] == [pytest.approx(1.2)] * 4


def test_the_widths_of_both_runs_add_up_like_independent_errors() -> None:
    base, this = run_of(10.0, 10.0 / 1.03, 10.0 * 1.03), run_of(10.0, 10.0 / 1.04, 10.0 * 1.04)
    width = math.hypot(math.log(1.03), math.log(1.04))
    for pair in ((base, this), (this, base)):
        (found,) = comparison.ratios(*pair)
        assert found.low == pytest.approx(math.exp(-width))
        assert found.high == pytest.approx(math.exp(width))


# start-up and memory


@dataclass(kw_only=True)
class Computer:
    """A clock that only work moves, and a file whose pages are in memory or not."""

    now_s: float = 100.0
    cached: bool = True
    log: list[str] = field(default_factory=list)
    advice: list[tuple[str, int, int, int]] = field(default_factory=list)

    def advise(self, descriptor: int, begin: int, length: int, advice: int) -> None:
        """posix_fadvise, believed."""
        self.advice.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), begin, length, advice))
        self.cached = False

    def in_child(self, task: Callable[[Any], Any]) -> Any:
        """A process, which takes half a second to start."""
        self.now_s += 0.5
        return task(lambda _: None)

    def open(self, path: str, *, threads: int | None, engine: str | None, self_test: bool = True) -> OpenedEngine:
        """100 ms, or 300 ms from the disk."""
        self.log.append(f"{'cached' if self.cached else 'from disk'}{'' if self_test else ', untested'}")
        self.now_s += 0.1 if self.cached else 0.3
        self.cached = True
        return OpenedEngine(manifest(TWO), Path(path), threads or 1, tested=self_test)


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> Computer:
    """Its first decision takes 50 ms, later ones 5 ms."""
    made = Computer()

    def subject(engine: OpenedEngine, _: object, names: Sequence[str]) -> SimpleNamespace:
        assert tuple(names) == engine.manifest.names

        def decide() -> Timed:
            total_ms, engine.tested = 5.0 if engine.tested else 50.0, True
            return Timed(stages_ms={}, total_ms=total_ms)

        return SimpleNamespace(decide=decide)

    monkeypatch.setattr(probe, "in_child", made.in_child)
    monkeypatch.setattr(probe, "open_engine", made.open)
    monkeypatch.setattr(probe, "Subject", subject)
    monkeypatch.setattr(probe, "time", SimpleNamespace(monotonic=lambda: made.now_s))
    monkeypatch.setattr(os, "posix_fadvise", made.advise)
    return made


def opening_in(folder: Path) -> Opening:
    model = folder / "own.pte"
    model.write_bytes(b"bytes")
    return Opening(model=str(model), threads=2, engine=None)


def test_a_cold_start_is_one_whose_file_was_dropped_right_before(computer: Computer, tmp_path: Path) -> None:
    found = probe.load_times(opening_in(tmp_path), {})
    assert computer.log[:6] == ["cached"] * 3 + ["from disk"] * 3
    assert computer.advice == [(str(tmp_path / "own.pte"), 0, 0, os.POSIX_FADV_DONTNEED)] * 3
    assert found["model_warm_ms"] == pytest.approx(100.0)
    assert found["model_cold_ms"] == pytest.approx(300.0)
    assert found["process_to_ready_ms"] == pytest.approx(600.0)


def test_no_cold_start_is_told_where_pages_cannot_be_dropped(
    computer: Computer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    found = probe.load_times(opening_in(tmp_path), {})
    assert (found["model_warm_ms"], found["model_cold_ms"]) == (pytest.approx(100.0), None)


def test_the_first_decision_of_a_process_is_timed_before_any_other_even_the_self_test(
    computer: Computer, tmp_path: Path
) -> None:
    found = probe.load_times(opening_in(tmp_path), {})
    assert (found["first_inference_ms"], found["second_inference_ms"]) == (50.0, 5.0)
    # A stream starts with the self-test.
    assert computer.log == ["cached"] * 3 + ["from disk"] * 3 + ["cached, untested"] * 3


@pytest.mark.parametrize("leak_mb", [0.25, 0.0])
def test_memory_grows_by_what_the_decisions_after_the_first_ones_keep(
    leak_mb: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"rss_mb": 40.0, "pss_mb": 30.0}
    decided: list[int] = []

    def opened(*_: object, **__: object) -> OpenedEngine:
        kept["rss_mb"] += 8.0
        return OpenedEngine(manifest(TWO), tmp_path, 1, tested=True)

    def decide() -> None:
        # What is allocated once is no growth.
        kept["rss_mb"] += leak_mb if decided else 5.0
        decided.append(1)

    monkeypatch.setattr(probe, "in_child", lambda task: task(lambda _: None))
    monkeypatch.setattr(probe, "open_engine", opened)
    monkeypatch.setattr(probe, "Subject", lambda *_: SimpleNamespace(decide=decide))
    monkeypatch.setattr(probe, "sizes_mb", lambda: dict(kept))
    found = probe.memory_use(opening_in(tmp_path), {})
    assert found["grown_mb"] == found["grown_over"] * leak_mb
    assert found["grown_over"] == len(decided) / 2
    assert (found["baseline"]["rss_mb"], found["loaded"]["rss_mb"]) == (40.0, 48.0)


# files and stdout


@contextlib.contextmanager
def stdout_to(file: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with file, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", file)
        yield


def three_files(folder: Path) -> list[str]:
    return [word for flag, name in (("--json", "a.json"), ("--md", "a.md"), ("--picture", "a.svg"))
            for word in (flag, str(folder / name))]  # fmt: skip


def are_whole(folder: Path) -> bool:
    """Whether the three files are there, and nothing else but the artifacts."""
    assert read(folder / "a.json")["kind"] == "mars-edge profile"
    assert (folder / "a.md").read_text().startswith("# Profile of own.pte\n")
    assert (folder / "a.svg").read_text().rstrip().endswith("</svg>")
    return {path.name for path in folder.iterdir()} == {"a.json", "a.md", "a.svg", "own.pte", "other.pte"}


@pytest.mark.parametrize(("slo", "code"), [("p50<=1ms", 5), ("p50<=15ms", 0)])
def test_a_reader_that_leaves_costs_neither_a_file_nor_the_exit_code_of_an_objective(
    slo: str, code: int, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with stdout_to(os.fdopen(writing, "w"), monkeypatch):
        assert bench.profile(*three_files(bench.folder), "--slo", slo) == code
    assert are_whole(bench.folder)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_stdout_is_an_error_that_costs_no_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with stdout_to(Path("/dev/full").open("w"), monkeypatch):
        assert bench.profile(*three_files(bench.folder)) == 1
    assert are_whole(bench.folder)
    assert capsys.readouterr().err == "mars-edge: stdout: No space left on device\n"


def test_a_file_that_cannot_be_written_in_the_end_does_not_take_the_numbers_with_it(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bench.folder / "a.json"
    # It was free when it was asked for.
    bench.when_measuring = lambda: path.mkdir(exist_ok=True)
    assert bench.profile("--json", str(path)) == 2
    said = capsys.readouterr()
    assert said.err == f"mars-edge: {path}: Is a directory\n"
    assert re.search(r"^ *depth\+ir +10\.0 ", said.out, re.MULTILINE)


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process may become larger, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_there_is_no_room_for_is_named_as_the_user_named_it_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with room_for(1000), pytest.raises(OSError, match="File too large") as caught:
        write_whole(path, "x" * 5000)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_is_taken_by_a_folder_is_named_and_no_part_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(path, "x")
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_gone_is_an_error_about_the_user_s_file(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "a.json"
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(path, "x")
    assert caught.value.filename == str(path)


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 245 + ".json")
    write_whole(path, "x")
    assert path.read_text() == "x"


# what is no model file


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe, which nobody writes to."""
    path = tmp_path / "pipe.pte"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("flag", ["--model", "--beside"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_device_or_a_pipe_is_no_model_file_and_is_not_even_opened(
    flag: str, kind: str, pipe: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pipe if kind == "pipe" else Path("/dev/zero")

    def opened(asked: Path, **options: Any) -> OpenedEngine:
        assert asked != path, "it would be read for ever"
        return bench.open(asked, **options)

    monkeypatch.setattr(profile, "open_engine", opened)
    asked = [str(path)] if flag == "--model" else [str(bench.folder / "own.pte"), "--beside", str(path)]
    assert cli.main(["profile", "--mode", "quick", "--quiet", "--model", *asked]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"mars-edge: {path} is no regular file; name a model file\n")


def test_every_command_refuses_what_is_no_regular_file(pipe: Path) -> None:
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(UsageError) as caught:
            find_model(path)
        assert str(caught.value) == f"{path} is no regular file; name a model file"
