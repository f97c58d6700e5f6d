"""A profile that is interrupted, and the processes of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from mars_edge.cli import main
from mars_edge.errors import EngineError
from mars_runtime.commands import profile
from mars_runtime.profiling.child import Progress, in_child

T = TypeVar("T")


@pytest.mark.parametrize("phase", ["repeat", "_add_processes", "_operators"])
def test_a_profile_that_is_interrupted_in_any_phase_writes_nothing_and_says_so(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile, phase, interrupted)
    asked = ["--json", str(tmp_path / "a.json"), "--md", str(tmp_path / "a.md"), "--picture", str(tmp_path / "a.svg")]
    assert (
        main(
            [
                "profile",
                "--model",
                "spoken_digits.pte",
                "--mode",
                "quick",
                "--processes",
                "2",
                "--no-processes",
                "--ops",
                *asked,
            ]
        )
        == 130
    )
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("mars-edge: profile: interrupted; nothing is written\n")
    assert list(tmp_path.iterdir()) == []


def seven(_: Progress) -> int:
    return 7


def one_step_then(what: Callable[[], object], progress: Progress) -> None:
    progress(0.5)
    what()


def refused() -> None:
    raise EngineError("out of order")


def broken() -> None:
    raise ValueError("not foreseen")


def test_a_child_gives_back_what_its_task_returns() -> None:
    assert in_child(seven) == 7


def test_a_child_tells_its_progress_and_raises_what_its_task_raised() -> None:
    told: list[float] = []
    with pytest.raises(EngineError, match=r"^out of order$"):
        in_child(partial(one_step_then, refused), progress=told.append)
    assert told == [0.5]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (broken, "profile: a process of its own failed: ValueError: not foreseen"),
        (partial(os._exit, 3), "profile: a process of its own failed: exit code 3"),
    ],
)
def test_a_child_that_breaks_is_one_line(what: Callable[[], object], message: str) -> None:
    with pytest.raises(EngineError) as caught:
        in_child(partial(one_step_then, what))
    assert str(caught.value) == message


def test_a_silent_child_is_given_up_and_gone() -> None:
    before = set(_children())
    with pytest.raises(EngineError, match=r"^profile: a process of its own said nothing for 1 s$"):
        in_child(partial(one_step_then, partial(time.sleep, 600)), silence_s=1.0)
    assert set(_children()) <= before


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    script = (
        "import time; from functools import partial; from mars_runtime.profiling.child import in_child;"
        "in_child(partial(__import__('tests.unit.test_profile_interrupted', fromlist=['x']).asleep))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    child = _await(lambda: _children(parent.pid))[0]
    # Its interpreter is up and has read its task once its own thread waits.
    _await(lambda: len(list(Path(f"/proc/{child}/task").glob("*"))) >= 2)
    parent.kill()
    parent.wait()
    _await(lambda: not Path(f"/proc/{child}/cmdline").read_bytes() if Path(f"/proc/{child}").exists() else True)


def asleep(_: Progress) -> None:
    time.sleep(600)


def _children(parent: int | None = None) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == (parent or os.getpid()) and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def _await(what: Callable[[], T], timeout_s: float = 20.0) -> T:
    end_s = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return found
