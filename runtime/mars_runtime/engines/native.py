"""A method runner over our own C library (runtime/native): neither torch nor the executorch package is needed.

Inputs are passed by address; the interpreter lock is released while a method runs.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import EngineError, ModelFileError
from mars_runtime.engines.guards import check_inputs
from mars_runtime.engines.protocol import NATIVE, MethodSpec, TensorSpec

FOLDER = Path(__file__).parent / "_native"
_LIBRARY = "libmars_executorch.so"
_ABI = 3
_MAX_RANK = 8
# PyTorch's ScalarType numbers (c10/core/ScalarType.h).
_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.uint8),
    1: np.dtype(np.int8),
    4: np.dtype(np.int64),
    6: np.dtype(np.float32),
}
_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}


class _TensorInfo(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int32 * _MAX_RANK),
        ("size_bytes", ctypes.c_int64),
        ("is_planned", ctypes.c_int32),
    )


class _Array(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int32 * _MAX_RANK),
    )


class CPlan(ctypes.Structure):
    """`mars_plan`: a model's methods and the forms of its tensors."""

    _fields_ = (
        ("modalities", ctypes.c_int32),
        ("encoders", ctypes.POINTER(ctypes.c_char_p)),
        ("samples", ctypes.POINTER(_Array)),
        ("features", ctypes.POINTER(_Array)),
        ("experts", ctypes.POINTER(ctypes.c_char_p)),
        ("shared_expert", ctypes.c_char_p),
        ("active_experts", ctypes.c_int32),
        ("z", _Array),
        ("router_logits", _Array),
        ("combined", _Array),
        ("logits", _Array),
    )


class ChosenExpert(ctypes.Structure):
    """`mars_chosen_expert`: which expert ran, and its gate."""

    _fields_ = (("expert", ctypes.c_int32), ("gate", ctypes.c_float))


class _Memory(ctypes.Structure):
    _fields_ = (
        ("program_bytes", ctypes.c_int64),
        ("arena_bytes", ctypes.c_int64),
        ("method_bytes", ctypes.c_int64),
        ("methods_loaded", ctypes.c_int32),
    )


_SIGNATURES: dict[str, list[Any]] = {
    "mars_open": [ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)],
    "mars_close": [ctypes.c_uint64],
    "mars_method_count": [ctypes.c_uint64, ctypes.POINTER(ctypes.c_int32)],
    "mars_method_name": [ctypes.c_uint64, ctypes.c_int32, ctypes.POINTER(ctypes.c_char_p)],
    "mars_method_arity": [
        ctypes.c_uint64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_int32),
    ],
    "mars_tensor": [
        ctypes.c_uint64, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(_TensorInfo),
    ],
    "mars_execute": [
        ctypes.c_uint64, ctypes.c_char_p,
        ctypes.POINTER(_Array), ctypes.c_int32, ctypes.POINTER(_Array), ctypes.c_int32,
    ],
    "mars_infer": [
        ctypes.c_uint64, ctypes.POINTER(CPlan), ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.POINTER(ChosenExpert),
        ctypes.POINTER(ctypes.c_double),
    ],
    "mars_set_threads": [ctypes.c_int32],
    "mars_prefer_threads": [ctypes.c_uint64, ctypes.c_int32],
    "mars_threads": [],
    "mars_abi": [],
    "mars_memory_use": [ctypes.c_uint64, ctypes.POINTER(_Memory)],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All of a call to one method that no call changes.

    Attributes:
        inputs, outputs: the arrays' descriptions without their addresses; copied for every call, as threads share them.
    """

    spec: MethodSpec
    c_name: bytes
    inputs: Any
    outputs: Any


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes one runner holds; what the XNNPACK delegate packs for itself is not in it.

    Attributes:
        program_bytes: the .pte program.
        arena_bytes: activations, shared by all methods.
        method_bytes: runtime structures of the loaded methods.
        methods_loaded: methods that ran at least once.
    """

    program_bytes: int
    arena_bytes: int
    method_bytes: int
    methods_loaded: int


def absence() -> str | None:
    """Why the native engine cannot be used here, in one line; None when it can."""
    if not (FOLDER / _LIBRARY).is_file():
        reason = FOLDER / "unavailable.txt"
        if reason.is_file():
            return f"not built: {reason.read_text(encoding='utf-8').strip()}"
        return "not built: install the package (pip install .)"
    try:
        _library()
    except EngineError as error:
        return str(error)
    return None


def version() -> str:
    """The ExecuTorch version the library was built from; "of unknown version" if its record is damaged."""
    try:
        return str(json.loads((FOLDER / "build.json").read_text(encoding="utf-8"))["executorch"])
    except (OSError, ValueError, LookupError, TypeError):
        return "of unknown version"


class NativeRunner:
    """Runs a program through the C library; safe to share between threads, which take turns."""

    name = NATIVE

    def __init__(self, program: bytes | memoryview, *, threads: int | None = None) -> None:
        """Opens a verified program; no method is loaded yet.

        Args:
            program: the bytes of an ExecuTorch program; they are copied.
            threads: size of the process's thread pool; None keeps it as it is.

        Raises:
            ModelFileError: the program cannot be loaded.
            EngineError: the library is missing, or the thread pool is in use with another size.
        """
        self._library = _library()
        self._handle = ctypes.c_uint64(0)
        self._specs: dict[str, MethodSpec] = {}
        self._plans: dict[str, _Plan] = {}
        if threads is not None:
            self._call("mars_set_threads", threads)
        data = bytes(program)
        if self._library.mars_open(data, len(data), ctypes.byref(self._handle)) != 0:
            raise ModelFileError(self._last_error())

    def methods(self) -> tuple[str, ...]:
        """Every method of the program."""
        count = ctypes.c_int32()
        self._call("mars_method_count", self._handle, ctypes.byref(count))
        return tuple(self._method_name(index) for index in range(count.value))

    def describe(self, method: str) -> MethodSpec:
        """Inputs and outputs of `method`, read without loading it.

        Raises:
            EngineError: no such method, or it takes something that is not a tensor of a known type.
        """
        if method not in self._specs:
            inputs, outputs = ctypes.c_int32(), ctypes.c_int32()
            self._call("mars_method_arity", self._handle, _c_name(method), ctypes.byref(inputs), ctypes.byref(outputs))
            self._specs[method] = MethodSpec(
                name=method,
                inputs=tuple(self._tensor(method, False, index) for index in range(inputs.value)),
                outputs=tuple(self._tensor(method, True, index) for index in range(outputs.value)),
            )
        return self._specs[method]

    @property
    def threads(self) -> int:
        """See `MethodRunner.threads`."""
        return int(self._library.mars_threads())

    def prefer_threads(self, threads: int) -> None:
        """See `MethodRunner.prefer_threads`."""
        self._call("mars_prefer_threads", self._handle, threads)

    def execute(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of `method`, in fresh arrays; inputs in C order are not copied.

        Raises:
            EngineError: see MethodRunner.
        """
        plan = self._plan(method)
        outputs = [np.empty(output.shape, output.dtype) for output in plan.spec.outputs]
        self._execute(plan, inputs, outputs)
        return outputs

    def execute_into(self, method: str, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Runs `method` and writes into the caller's C-ordered arrays.

        Raises:
            EngineError: see MethodRunner; also for an output array of a wrong shape, type or order.
        """
        plan = self._plan(method)
        _check_outputs(plan.spec, outputs)
        self._execute(plan, inputs, outputs)

    def _plan(self, method: str) -> _Plan:
        """Made at the first call: describing three tensors costs as much as a small expert."""
        plan = self._plans.get(method)
        if plan is None:
            spec = self.describe(method)
            inputs, outputs = described(spec.inputs), described(spec.outputs)
            plan = self._plans[method] = _Plan(spec=spec, c_name=_c_name(method), inputs=inputs, outputs=outputs)
        return plan

    def _execute(self, plan: _Plan, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        check_inputs(plan.spec, inputs)
        # Held until the call returns: the library reads by address.
        ordered = [array if array.flags.c_contiguous else np.ascontiguousarray(array) for array in inputs]
        self._call(
            "mars_execute", self._handle, plan.c_name,
            _at(plan.inputs, ordered), len(ordered), _at(plan.outputs, outputs), len(outputs),
        )  # fmt: skip

    def infer(self, plan: CPlan, samples: Any, features: Any, logits: int, chosen: Any, stage_ms: Any) -> None:
        """`mars_infer` on the addresses of C-ordered float32 arrays of the forms in `plan`, which nothing checks.

        Raises:
            EngineError: execution failed, router logits or logits are not finite, or closed.
        """
        self._call("mars_infer", self._handle, ctypes.byref(plan), samples, features, logits, chosen, stage_ms)

    def memory(self) -> MemoryUse:
        """What the runner holds now."""
        use = _Memory()
        self._call("mars_memory_use", self._handle, ctypes.byref(use))
        return MemoryUse(
            program_bytes=use.program_bytes,
            arena_bytes=use.arena_bytes,
            method_bytes=use.method_bytes,
            methods_loaded=use.methods_loaded,
        )

    def close(self) -> None:
        """Frees the program once a run in another thread has ended; may be repeated."""
        self._library.mars_close(self._handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def _method_name(self, index: int) -> str:
        name = ctypes.c_char_p()
        self._call("mars_method_name", self._handle, index, ctypes.byref(name))
        return (name.value or b"").decode("utf-8")

    def _tensor(self, method: str, is_output: bool, index: int) -> TensorSpec:
        info = _TensorInfo()
        self._call("mars_tensor", self._handle, _c_name(method), int(is_output), index, ctypes.byref(info))
        if info.dtype not in _DTYPES:
            allowed = ", ".join(str(dtype) for dtype in _DTYPES.values())
            raise EngineError(f"method {method!r} has a tensor of ScalarType {info.dtype}; supported: {allowed}")
        return TensorSpec(shape=tuple(info.shape[: info.rank]), dtype=_DTYPES[info.dtype])

    def _call(self, function: str, *arguments: Any) -> None:
        if getattr(self._library, function)(*arguments) != 0:
            raise EngineError(self._last_error())

    def _last_error(self) -> str:
        text: bytes = self._library.mars_last_error()
        return text.decode("utf-8", errors="replace")


@cache
def _library() -> ctypes.CDLL:
    path = FOLDER / _LIBRARY
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the native engine cannot be loaded: {error}") from error
    # Before anything else is looked up: another interface may lack functions of this one.
    abi = library.mars_abi() if hasattr(library, "mars_abi") else "none"
    if abi != _ABI:
        raise EngineError(f"the native engine has interface {abi}, this mars-edge needs {_ABI}: reinstall it")
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int32
    library.mars_last_error.restype = ctypes.c_char_p
    return library


def _c_name(method: str) -> bytes:
    if "\0" in method:
        raise EngineError(f"no method {method!r} in the program")
    return method.encode("utf-8")


def described(specs: Sequence[TensorSpec]) -> Any:
    """`mars_array` of each, without addresses."""
    views = (_Array * len(specs))()
    for view, spec in zip(views, specs, strict=True):
        view.dtype = _NUMBERS[spec.dtype]
        view.rank = len(spec.shape)
        view.shape[: len(spec.shape)] = spec.shape
    return views


def _at(descriptions: Any, arrays: Sequence[NDArray[Any]]) -> Any:
    """A copy of the descriptions with the addresses of these arrays."""
    views = type(descriptions).from_buffer_copy(descriptions)
    for view, array in zip(views, arrays, strict=True):
        view.data = array.__array_interface__["data"][0]
    return views


def _check_outputs(spec: MethodSpec, outputs: Sequence[NDArray[Any]]) -> None:
    if len(outputs) != len(spec.outputs):
        raise EngineError(f"method {spec.name!r}: expected {len(spec.outputs)} outputs, given {len(outputs)}")
    for index, (array, wanted) in enumerate(zip(outputs, spec.outputs, strict=True)):
        usable = array.flags.c_contiguous and array.flags.writeable
        if array.shape != wanted.shape or array.dtype != wanted.dtype or not usable:
            raise EngineError(
                f"method {spec.name!r} output {index}: expected a writable {wanted} in C order, "
                f"given {array.dtype} {array.shape}"
            )
