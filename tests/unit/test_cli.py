"""The program: exit codes, one line per mistake, nothing imported before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mars_edge import __version__, cli, errors

COMMANDS = ", ".join(cli.COMMANDS)


def install(monkeypatch: pytest.MonkeyPatch, command: Callable[[Sequence[str]], int], extra: str = "") -> None:
    """Adds the command `try`, implemented by the given function."""
    module = types.ModuleType("a_command_of_the_tests")
    module.main = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "try", (f"{module.__name__}:main", "is tested", extra))


def program(*arguments: str, code: str = "") -> list[str]:
    """The command line of a real `mars-edge`, or of the given code, in a process of its own."""
    return [sys.executable, "-c", code, *arguments] if code else [sys.executable, "-m", "mars_edge", *arguments]


def environment(repository: Path) -> dict[str, str]:
    folders = [str(repository / part) for part in (".", "training", "export", "runtime")]
    # An empty PYTHONUNBUFFERED means buffered, as everywhere but in some containers.
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "",
    }  # fmt: skip


def start(*arguments: str, repository: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(*arguments, code=code),
        env=environment(repository),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_exit_code_and_the_arguments_are_the_commands_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[str]] = []

    def command(arguments: Sequence[str]) -> int:
        seen.append(arguments)
        return 7

    install(monkeypatch, command)
    assert cli.main(["try", "--model", "x", "--help"]) == 7
    assert seen == [["--model", "x", "--help"]]


ERRORS: list[tuple[errors.MarsEdgeError, int]] = [
    (errors.MarsEdgeError("m"), 1),
    (errors.UsageError("m"), 2),
    (errors.NoSensorError("m"), 3),
    (errors.ModelFileError("m"), 4),
    (errors.ObjectiveMissedError("m"), 5),
    (errors.EngineError("m"), 1),
    (errors.SensorError("m", gone=True), 1),
    (errors.ParityError("m"), 1),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_ends_in_its_exit_code_and_one_line_on_stderr(
    error: errors.MarsEdgeError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(_: Sequence[str]) -> int:
        raise error

    install(monkeypatch, command)
    assert cli.main(["try"]) == code
    assert capsys.readouterr() == ("", "mars-edge: m\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(_: Sequence[str]) -> int:
        raise ZeroDivisionError("a bug")

    install(monkeypatch, command)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["try"])


def test_control_c_ends_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(_: Sequence[str]) -> int:
        raise KeyboardInterrupt

    install(monkeypatch, command)
    assert cli.main(["try"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_path_that_cannot_be_used_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def command(_: Sequence[str]) -> int:
        return len((tmp_path / "absent.pte").read_bytes())

    install(monkeypatch, command)
    assert cli.main(["try"]) == 2
    assert capsys.readouterr() == ("", f"mars-edge: {tmp_path}/absent.pte: No such file or directory\n")


def test_an_operating_system_error_without_a_path_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(_: Sequence[str]) -> int:
        raise OSError(22, "Invalid argument")

    install(monkeypatch, command)
    with pytest.raises(OSError, match="Invalid argument"):
        cli.main(["try"])


@pytest.mark.parametrize("name", ["rnu", "--model", ""])
def test_an_unknown_command_lists_the_known_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name]) == 2
    assert capsys.readouterr() == ("", f"mars-edge: unknown command {name!r}; commands: {COMMANDS}\n")


@pytest.mark.parametrize("flag", ["-h", "--help", "help"])
def test_help_lists_every_command_and_one_runnable_example(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert ", ".join(listed) == COMMANDS
    assert "Example: mars-edge run --model face_antispoof.pte" in out


def test_no_command_is_a_mistake_and_leaves_stdout_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: mars-edge COMMAND")


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_is_printed(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    assert capsys.readouterr() == (f"mars-edge {__version__}\n", "")


@pytest.mark.parametrize("missing", ["torch", "executorch.exir", "onnx"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_module(name: str) -> types.ModuleType:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(cli.importlib, "import_module", no_module)
    assert cli.main(["export"]) == 2
    assert capsys.readouterr() == (
        "",
        f"mars-edge: `mars-edge export` needs {missing}, which is not installed: pip install 'mars-edge[export]'\n",
    )


@pytest.mark.parametrize(("command", "missing"), [("export", "mars_export.targts"), ("info", "torch")])
def test_a_module_that_no_extra_brings_is_a_bug_and_is_not_hidden(
    command: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_module(name: str) -> types.ModuleType:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(cli.importlib, "import_module", no_module)
    with pytest.raises(ModuleNotFoundError):
        cli.main([command])


FOLDERS = {"mars_edge": ".", "mars_runtime": "runtime", "mars_training": "training", "mars_export": "export"}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_of_the_table_is_there(command: str, repository: Path) -> None:
    target, text, extra = cli.COMMANDS[command]
    module, function = target.split(":")
    file = repository / FOLDERS[module.split(".")[0]] / (module.replace(".", "/") + ".py")
    assert file.is_file()
    assert f"def {function}(" in file.read_text(encoding="utf-8")
    assert text
    assert extra in ("", "train", "export")


def test_the_program_runs_as_a_module_and_ends_with_the_exit_code(repository: Path) -> None:
    ended = start("--version", repository=repository)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"mars-edge {__version__}\n", "")
    ended = start("rnu", repository=repository)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"mars-edge: unknown command 'rnu'; commands: {COMMANDS}\n"


def test_help_imports_neither_torch_nor_opencv_nor_numpy(repository: Path) -> None:
    code = (
        "import sys; from mars_edge.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'cv2', 'numpy', 'mars_runtime') if m in sys.modules])"
    )
    ended = start(repository=repository, code=code)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr


MANY_LINES = """
import sys, types
from mars_edge import cli
module = types.ModuleType("talkative")
def main(arguments):
    for line in range(int(arguments[0])):
        print(line)
    return 0
module.main = main
sys.modules["talkative"] = module
cli.COMMANDS["talk"] = ("talkative:main", "", "")
sys.exit(cli.main(["talk", sys.argv[1]]))
"""


@pytest.mark.parametrize("lines", [1, 200_000], ids=["all still buffered", "far beyond the buffer"])
def test_a_reader_that_leaves_early_is_no_error(lines: int, repository: Path) -> None:
    reading, writing = os.pipe()
    # Closed before the first line: `mars-edge run | true`.
    os.close(reading)
    try:
        ended = subprocess.run(
            program(str(lines), code=MANY_LINES),
            env=environment(repository),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def shell(command: str, repository: Path) -> subprocess.CompletedProcess[str]:
    """`command` in a shell, where $MARS stands for the program."""
    folders = [repository, *(repository / name for name in ("training", "export", "runtime"))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "MARS": f"{sys.executable} -m mars_edge",
    }
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line(repository: Path) -> None:
    result = shell("$MARS --help >/dev/full", repository)
    assert (result.returncode, result.stderr) == (1, "mars-edge: stdout: No space left on device\n")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_stream_is_no_traceback_and_never_moves_text_to_the_other(closed: str, repository: Path) -> None:
    result = shell(f"$MARS nonsense {closed}>&-", repository)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == ("" if closed == "2" else result.stderr)
    assert "Traceback" not in result.stderr


def test_a_number_that_no_counter_holds_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--model", "m.pte", "--max-decisions", "99999999999999999999999"]) == 2
    expected = f"run: argument --max-decisions: 99999999999999999999999 is above {sys.maxsize}"
    assert capsys.readouterr().err == f"mars-edge: {expected}\n"
    assert cli.main(["run", "--model", "m.pte", "--threads", "4294967298"]) == 2
    assert capsys.readouterr().err == "mars-edge: run: argument --threads: 4294967298 is above 256\n"


def test_nothing_slow_is_loaded_before_signals_are_taken(repository: Path) -> None:
    """Until then Ctrl-C is a traceback; without `site`, which loads modules of its own accord."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from mars_edge import cli; "
        "print(*sorted({'pathlib', 'typing', 'urllib', 'argparse', 'json', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(repository)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "\n"


def test_control_characters_of_a_file_name_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["info", "a\x1b]0;owned\x07.pte"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\x07" not in said
    assert said.startswith("mars-edge: no model file a\\x1b]0;owned\\x07.pte; bundled models: ")


def test_a_file_name_that_stdout_cannot_encode_ends_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from mars_edge import cli;"
        "cli.COMMANDS['try'] = ('t:main', 'is tested', ''); sys.exit(cli.main(['try']))"
    )
    (tmp_path / "t.py").write_text("def main(argv):\n    print('\\xfcber.pte')\n    return 0\n")
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONIOENCODING": "ascii",
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.pathsep.join(sys.path)}",
        },
        capture_output=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, b"\\xfcber.pte\n")
