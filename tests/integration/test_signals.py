"""Signals at every moment of a command's life, each in a process of its own: it ends soon and without a traceback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mars_edge import cli, signals
from mars_runtime import inventory
from mars_runtime.commands.signals import stopping_on_signals

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in (".", "runtime")),
    "OMP_NUM_THREADS": "1",
}
# Imports a command as `mars-edge` does, and says so, so that a signal can be sent into the middle of it.
IMPORTING = (
    "import sys, time, importlib; from mars_edge import cli; real = importlib.import_module\n"
    "def slow(name):\n"
    "    print('importing', flush=True)\n"
    "    try:\n"
    "        time.sleep(30)\n"
    "    except BaseException:\n"
    "        raise ImportError('a library that swallows') from None\n"
    "    return real(name)\n"
    "cli.importlib.import_module = slow\n"
    "sys.exit(cli.main(sys.argv[1:]))"
)


def hear_signals() -> None:
    """Whoever runs the tests may ignore signals (`nohup`, a job in the background of a script)."""
    for number in signals.ENDING:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def running(*arguments: str, script: str | None = None) -> Iterator[subprocess.Popen[str]]:
    head = ["-m", "mars_edge"] if script is None else ["-c", script]
    command = [sys.executable, *head, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, preexec_fn=hear_signals
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_caught(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """What the interpreter does until it runs our first line is not ours; SIGINT it catches itself."""
    until_s = time.monotonic() + 10.0
    while time.monotonic() < until_s:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)
    raise AssertionError(f"{number.name} is not caught within 10 s")


@pytest.mark.parametrize("number", signals.ENDING)
@pytest.mark.parametrize("command", ["run", "record", "doctor", "train"])
def test_a_signal_while_a_command_is_imported_ends_it_at_once_with_the_shells_exit_code(
    command: str, number: signal.Signals
) -> None:
    with running(command, script=IMPORTING) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        begin_s = time.monotonic()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
        took_s = time.monotonic() - begin_s
    assert (process.returncode, stdout, stderr) == (128 + number, "", "")
    assert took_s < 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_signal_at_any_moment_of_the_start_of_a_run_ends_it_without_a_traceback(
    number: signal.Signals, share: float
) -> None:
    arguments = ("run", "--model", "face_antispoof.pte", "--quiet")
    begin_s = time.monotonic()
    with running(*arguments) as process:
        assert process.stdout is not None
        process.stdout.readline()
        start_s = time.monotonic() - begin_s
    begin_s = time.monotonic()
    with running(*arguments) as process:
        wait_until_caught(process, number)
        time.sleep(max(0.0, begin_s + share * start_s - time.monotonic()))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    assert stderr == ""
    assert process.returncode in (0, 128 + number)


def test_a_hang_up_that_nohup_ignores_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled_by(signals.leave), stopping_on_signals() as found:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not found.came
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_before_there_is_anything_to_stop_stops_it_when_it_is_there() -> None:
    stopped: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals() as found:
        os.kill(os.getpid(), signal.SIGTERM)
        assert found.came
        found.end_by(lambda: stopped.append(1))
    assert stopped == [1]
    assert signal.getsignal(signal.SIGTERM) == before
    with stopping_on_signals() as found:
        found.end_by(lambda: stopped.append(2))
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped == [1, 2]


def test_a_command_of_the_runtime_that_is_ended_closes_what_it_opened() -> None:
    script = (
        "import sys, time; from mars_runtime.commands import devices; from mars_edge import cli\n"
        "def main(argv):\n"
        "    try:\n"
        "        print('opened', flush=True); time.sleep(30)\n"
        "    finally:\n"
        "        print('closed', flush=True)\n"
        "devices.main = main; sys.exit(cli.main(['devices']))"
    )
    for number in signals.ENDING:
        with running(script=script) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "opened\n"
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=20)
        assert (process.returncode, stdout, stderr) == (128 + number, "closed\n", "")


@contextmanager
def signal_after(seconds: float, number: signal.Signals) -> Iterator[list[float]]:
    """Send it to this process then; gives the time of its sending."""
    sent_s: list[float] = []

    def send() -> None:
        sent_s.append(time.monotonic())
        os.kill(os.getpid(), number)

    timer = threading.Timer(seconds, send)
    timer.start()
    try:
        yield sent_s
    finally:
        timer.cancel()
        timer.join()


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A port of a camera that accepts and never says a word: an open of it takes 5 s."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def exit_code_of(*arguments: str) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_doctor_ends_within_a_second_while_it_measures_and_while_an_open_hangs(
    number: signal.Signals, silent_server: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sensors = ["--sensor", "depth=sim:", "--sensor", f"rgb=http://127.0.0.1:{silent_server}/"]
    threads = threading.active_count()
    with signal_after(1.5, number) as sent_s:
        assert exit_code_of("doctor", *sensors, "--seconds", "60") == 128 + number
        took_s = time.monotonic() - sent_s[0]
    assert took_s < 1.0
    assert threading.active_count() == threads
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", ["doctor", "devices"])
def test_a_signal_while_devices_are_looked_for_ends_it_and_the_processes_that_look(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = partial(inventory._look_for, module="tests.helpers.odd_looker", limit_s=60.0)
    monkeypatch.setattr(inventory, "_look_for", looking)
    monkeypatch.setattr(inventory, "LOOKERS", {"hangs": lambda: [], "chats": lambda: []})
    with signal_after(1.0, signal.SIGINT) as sent_s:
        assert exit_code_of(command) == 130
        took_s = time.monotonic() - sent_s[0]
    assert took_s < 1.0
    children = (Path("/proc/self/task") / str(os.getpid()) / "children").read_text().split()
    assert not [child for child in children if "odd_looker" in Path(f"/proc/{child}/cmdline").read_text()]
