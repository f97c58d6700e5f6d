"""Worker processes: they share the tasks, die alone, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mars_edge.errors import MarsEdgeError
from mars_training.workers import Event, RefusedError, Report, run_tasks


@dataclass(frozen=True)
class Script:
    """A task says what its worker is to do."""

    folder: Path

    def __call__(self, task: Any, report: Report) -> None:
        what, name = task
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "leave":
            os._exit(3)
        if what == "mistake":
            raise MarsEdgeError("one line")
        if what == "bug":
            raise ValueError("two\nlines")
        if what == "refuse":
            raise RefusedError("no data")
        if what == "sleep":
            (self.folder / f"{name}.pid").write_text(str(os.getpid()))
            time.sleep(60)
        report(f"working on {name}")
        (self.folder / name).write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")


def outcomes(events: list[Event]) -> dict[int, tuple[str, Any]]:
    return {e.task: (e.kind, e.value) for e in events if e.kind in ("done", "failed")}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_task_that_dies_or_raises_fails_alone_and_the_others_go_on(tmp_path: Path) -> None:
    tasks = [("die", "a"), ("work", "b"), ("mistake", "c"), ("bug", "d"), ("leave", "e"), ("work", "f")]
    events = list(run_tasks(tasks, Script(tmp_path), jobs=2, threads=3))
    assert outcomes(events) == {
        0: ("failed", "its process was killed by signal 9"),
        1: ("done", None),
        2: ("failed", "one line"),
        3: ("failed", "ValueError: two lines"),
        4: ("failed", "its process ended with exit code 3"),
        5: ("done", None),
    }
    trace = next(e.trace for e in events if e.task == 3 and e.kind == "failed")
    assert trace.startswith("Traceback") and "two\nlines" in trace
    assert Event(task=1, kind="progress", value="working on b") in events
    assert {(tmp_path / name).read_text().split()[1] for name in ("b", "f")} == {"3"}


def test_one_worker_takes_one_task_after_the_other_in_order(tmp_path: Path) -> None:
    events = list(run_tasks([("work", name) for name in "abc"], Script(tmp_path), jobs=1, threads=1))
    assert [(e.task, e.kind) for e in events if e.kind != "progress"] == [
        (task, kind) for task in range(3) for kind in ("started", "done")
    ]
    assert len({(tmp_path / name).read_text() for name in "abc"}) == 1


@pytest.mark.parametrize("first", ["work", "die"])
def test_a_task_starts_after_the_one_it_waits_for_has_ended(tmp_path: Path, first: str) -> None:
    events = list(run_tasks([(first, "a"), ("work", "b")], Script(tmp_path), jobs=2, threads=1, after=[None, 0]))
    seen = [(e.task, e.kind) for e in events if e.kind != "progress"]
    assert seen == [(0, "started"), (0, "done" if first == "work" else "failed"), (1, "started"), (1, "done")]


def test_a_refused_task_ends_the_others_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RefusedError, match=r"^no data$"):
        list(run_tasks([("sleep", "a"), ("refuse", "b"), ("work", "c")], Script(tmp_path), jobs=2, threads=1))
    assert time.monotonic() - started < 20
    assert not (tmp_path / "c").exists()


def test_closing_the_iterator_ends_a_busy_worker(tmp_path: Path) -> None:
    events = run_tasks([("sleep", "a")], Script(tmp_path), jobs=1, threads=1)
    assert next(events).kind == "started"
    wait_until((tmp_path / "a.pid").exists)
    wait_until(lambda: (tmp_path / "a.pid").read_text())
    events.close()
    assert not alive(int((tmp_path / "a.pid").read_text()))


def test_a_worker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from test_workers import Script; "
        "from mars_training.workers import run_tasks\n"
        "if __name__ == '__main__':\n"
        "    list(run_tasks([('sleep', 'a')], Script(Path(sys.argv[1])), jobs=1, threads=1))\n"
    )
    (tmp_path / "program.py").write_text(program)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as parent:
        wait_until(lambda: (tmp_path / "a.pid").exists() and (tmp_path / "a.pid").read_text())
        worker = int((tmp_path / "a.pid").read_text())
        assert alive(worker)
        parent.kill()
    wait_until(lambda: not alive(worker))
