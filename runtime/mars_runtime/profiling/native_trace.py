"""The operators inside one method of a .pte, timed by ExecuTorch's event tracer through a small library of our own.

The wheel whose libraries we ship is built with the tracer; XNNPACK reports whole microseconds, rounded down, so that a
share is exact only to about a microsecond per operator.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import EngineError
from mars_runtime.engines import native
from mars_runtime.profiling.statistics import midmean

_LIBRARY = "libmars_trace.so"
_ABI = 1
_METHOD, _KERNEL, _DELEGATE = "Method::execute", "native_call_", "DELEGATE_CALL"

Place = Literal["delegate", "kernel"]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of a method.

    Attributes:
        where: computed inside the delegate, or by one of the runtime's own kernels.
        us: microseconds per run, the mean of the middle half of the runs.
    """

    name: str
    where: Place
    us: float


@dataclass(frozen=True, kw_only=True)
class MethodTrace:
    """One method; times as in `Operator`.

    Attributes:
        us: the whole of it.
        delegate_us: inside calls of the delegate, with what the call itself costs.
        operators: in the order they ran.
    """

    method: str
    us: float
    delegate_us: float
    operators: tuple[Operator, ...]


def absence() -> str | None:
    """Why operators cannot be timed here, in one line; None when they can."""
    reason = native.absence()
    if reason is not None:
        return f"operators are timed by the native engine, which is not here: {reason}"
    try:
        _library()
    except EngineError as error:
        return str(error)
    return None


def trace(program: bytes, method: str, inputs: Sequence[NDArray[Any]], *, warmup: int, runs: int) -> MethodTrace:
    """Runs one method of a program on its own and adds up what each operator took.

    Args:
        program: a verified ExecuTorch program.
        method: its name.
        inputs: of the shapes and types the method takes.
        warmup: runs that are not counted.
        runs: that are, 1 or more.

    Raises:
        EngineError: the library is missing, or the method cannot be loaded or fails.
    """
    library = _library()
    held = [np.ascontiguousarray(array) for array in inputs]
    addresses = (ctypes.c_void_p * len(held))(*[array.ctypes.data for array in held])
    events = ctypes.c_char_p()
    failed = library.mars_trace(
        program, len(program), method.encode(), addresses, len(held), warmup, runs, ctypes.byref(events)
    )
    if failed:
        raise EngineError(library.mars_trace_error().decode("utf-8", errors="replace"))
    return summed(method, (events.value or b"").decode("utf-8", errors="replace"), runs)


def summed(method: str, lines: str, runs: int) -> MethodTrace:
    """What `mars_trace`'s lines say: RUN, KIND, NAME, INSTRUCTION and NANOSECONDS with tabs between, runs from 0."""
    times: dict[tuple[str, str, str], list[float]] = {}
    for line in lines.splitlines():
        run, kind, name, instruction, took_ns = line.split("\t")
        key = (kind, name, "" if name in (_METHOD, _DELEGATE) else instruction)
        times.setdefault(key, [0.0] * runs)[int(run)] += int(took_ns) / 1000.0
    found = {key: midmean(us) for key, us in times.items()}
    return MethodTrace(
        method=method,
        us=found.get(("runtime", _METHOD, ""), 0.0),
        delegate_us=found.get(("runtime", _DELEGATE, ""), 0.0),
        operators=tuple(_operators(found)),
    )


def _operators(found: Mapping[tuple[str, str, str], float]) -> Iterator[Operator]:
    """Without what only holds others: the method, an instruction."""
    for (kind, name, _), us in found.items():
        if kind == "delegate":
            yield Operator(name=name, where="delegate", us=us)
        elif name.startswith(_KERNEL):
            yield Operator(name=name.removeprefix(_KERNEL), where="kernel", us=us)


@cache
def _library() -> ctypes.CDLL:
    path = native.FOLDER / _LIBRARY
    if not path.is_file():
        raise EngineError("this build of the native engine does not time operators: reinstall the package")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the library that times operators cannot be loaded: {error}") from error
    abi = library.mars_trace_abi() if hasattr(library, "mars_trace_abi") else "none"
    if abi != _ABI:
        raise EngineError(
            f"the library that times operators has interface {abi}, not {_ABI}: install the package again"
        )
    library.mars_trace.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int32,
        ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_char_p),
    ]  # fmt: skip
    library.mars_trace.restype = ctypes.c_int
    library.mars_trace_error.restype = ctypes.c_char_p
    return library
