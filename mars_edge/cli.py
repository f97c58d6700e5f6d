"""`mars-edge COMMAND`: a table of commands, each imported only when it is used."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from mars_edge import __version__, signals
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.terminal import discard_stdout, printable

# command: (module:function, what it does, the extra its imports need or "")
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("mars_runtime.commands.run:main", "stream decisions from sensors", ""),
    "record": ("mars_runtime.commands.record:main", "keep what sensors give, with or without decisions", ""),
    "replay": ("mars_runtime.commands.replay:main", "decide again on a recording; --verify proves it", ""),
    "inject": ("mars_runtime.commands.inject:main", "break sensors, or a recording, on purpose", ""),
    "devices": ("mars_runtime.commands.devices:main", "the sensors of this machine, and whether they work", ""),
    "health-bench": ("mars_runtime.commands.health_bench:main", "grade the fault detector on injected faults", ""),
    "doctor": ("mars_runtime.commands.doctor:main", "measure each sensor and name what is wrong with it", ""),
    "serve": ("mars_runtime.commands.serve:main", "the model in a browser, phone or desktop", ""),
    "predict": ("mars_runtime.commands.predict:main", "one decision from files", ""),
    "info": ("mars_runtime.commands.info:main", "what an artifact says; which engines are there", ""),
    "profile": ("mars_runtime.commands.profile:main", "latency, memory and start-up on this device, honestly", ""),
    "verify": ("mars_runtime.commands.verify:main", "whether an artifact is whole", ""),
    "diff": ("mars_runtime.commands.diff:main", "what changed between two artifacts", ""),
    "data": ("mars_training.commands.data:main", "what a data set holds, lacks and leaks", "train"),
    "train": ("mars_training.commands.train:main", "train a recipe", "train"),
    "compare": ("mars_training.commands.compare:main", "train a grid of methods and seeds into one table", "train"),
    "evaluate": ("mars_training.commands.evaluate:main", "measure a run or an artifact on every subset", "train"),
    "report": ("mars_training.commands.report:main", "what a run learned and how: a page, a picture, numbers", "train"),
    "front": ("mars_export.commands.front:main", "how many experts, how many active: error against cost", "export"),
    "export": ("mars_export.commands.export:main", "turn a run into .pte or .onnx", "export"),
}
_DEVELOPMENT_PACKAGES = {
    "torch", "safetensors", "scipy", "torchao", "executorch", "onnx", "onnxscript", "onnxruntime", "tensorboard",
    "rich", "matplotlib",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 usage, 3 no sensor, 4 bad model, 5 objective missed.

    A signal that comes before the command has begun, or that it does not take itself, ends it with 130 (Ctrl-C), 143
    (SIGTERM) or 129 (hang-up).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        code = _dispatch(arguments)
        # Here, not at the interpreter's exit: a broken pipe there is a traceback and exit code 120.
        sys.stdout.flush()
        return code
    except MarsEdgeError as error:
        print(f"mars-edge: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of stdout left (`mars-edge run | head`): the interpreter's flush at exit must not fail too.
        discard_stdout()
        return 0
    except OSError as error:
        # A path of the user that no command looked at itself: a read-only folder, a file that just vanished.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        print(f"mars-edge: {printable(str(error.filename or 'stdout'))}: {error.strerror}", file=sys.stderr)
        if error.filename is not None:
            return UsageError.exit_code
        discard_stdout()
        return MarsEdgeError.exit_code


def _prepare_streams() -> None:
    """A daemon may start us with stdout or stderr closed: text for one must then not reach the other."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that this encoding lacks must not end a command that has measured for a minute.
        sys.stdout.reconfigure(errors="backslashreplace")


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"mars-edge {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command!r}; commands: {', '.join(COMMANDS)}")
    target, _, extra = COMMANDS[command]
    module_name, function_name = target.split(":")
    try:
        # On a small device the imports take seconds, and an exception that a signal raises in one may be swallowed.
        with signals.handled_by(signals.leave):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if extra and (error.name or "").partition(".")[0] in _DEVELOPMENT_PACKAGES:
            raise UsageError(
                f"`mars-edge {command}` needs {error.name}, which is not installed: pip install 'mars-edge[{extra}]'"
            ) from error
        raise
    function: Callable[[list[str]], int] = getattr(module, function_name)
    if not module_name.startswith("mars_runtime."):
        return function(arguments[1:])
    with signals.handled_by(signals.unwind):
        return function(arguments[1:])


def _help() -> str:
    lines = [f"  {name:<14}{text}" for name, (_, text, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mars-edge COMMAND [OPTION ...]",
            "",
            "Multimodal models on devices whose sensors fail.",
            "",
            *lines,
            "",
            "Example: mars-edge run --model face_antispoof.pte --inject depth=off@3s+4s --max-seconds 12",
            "`mars-edge COMMAND --help` explains one command; --version prints the version.",
        ]
    )
