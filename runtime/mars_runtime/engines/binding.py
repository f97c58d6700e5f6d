"""A method runner over the official ExecuTorch Python binding: the fallback where the native engine is not built.

It imports torch: seconds at start and hundreds of megabytes resident.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import EngineError, ModelFileError
from mars_runtime.engines.guards import check_inputs
from mars_runtime.engines.protocol import BINDING, MethodSpec, TensorSpec

_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.uint8),
    1: np.dtype(np.int8),
    4: np.dtype(np.int64),
    6: np.dtype(np.float32),
}
_open_runners = 0
_open_lock = threading.Lock()


def absence() -> str | None:
    """Why the binding cannot be used here, in one line; None when its packages are installed."""
    missing = [name for name in ("executorch", "torch") if importlib.util.find_spec(name) is None]
    return f"not installed: {' and '.join(missing)} (pip install 'mars-edge[export]')" if missing else None


class PythonRunner:
    """Runs a program through the official binding; safe to share between threads, which take turns."""

    name = BINDING

    def __init__(self, program: bytes | memoryview, *, threads: int | None = None) -> None:
        """Opens a verified program.

        Args:
            program: the bytes of an ExecuTorch program whose digest was checked: the binding ends the
                process when bytes 4 to 8 are not text.
            threads: size of the process's thread pool; None keeps it as it is.

        Raises:
            ModelFileError: the program cannot be loaded.
            EngineError: the packages are missing, or the thread pool is in use with another size.
        """
        missing = absence()
        if missing:
            raise EngineError(f"the official ExecuTorch binding is {missing}")
        self._torch, self._binding = _import()
        # The module points into these bytes for as long as it lives.
        self._program = bytes(program)
        if self._program[4:6] != b"ET":
            raise ModelFileError("not an ExecuTorch program: bytes 4 to 6 are not ET")
        self._lock = threading.Lock()
        self._specs: dict[str, MethodSpec] = {}
        if threads is not None:
            self._set_threads(threads)
        self._module = self._load()
        self._names = tuple(self._module.method_names())
        _count(+1)

    @property
    def threads(self) -> int:
        """See `MethodRunner.threads`."""
        return int(self._binding._threadpool_get_thread_count())

    def prefer_threads(self, threads: int) -> None:
        """See `MethodRunner.prefer_threads`."""
        with self._lock:
            if self.threads == threads or _open_runners > 1:
                return
            self._open_module()
            # Loaded again below: a delegate keeps a pointer to the pool it was made with.
            self._module = None
            self._binding._unsafe_reset_threadpool(threads)
            self._module = self._load()

    def methods(self) -> tuple[str, ...]:
        """Every method of the program."""
        return self._names

    def describe(self, method: str) -> MethodSpec:
        """Inputs and outputs of `method`; EngineError when there is none of that name."""
        if method not in self._names:
            raise EngineError(f"no method {method!r} in the program")
        if method not in self._specs:
            meta = self._open_module().method_meta(method)
            self._specs[method] = MethodSpec(
                name=method,
                inputs=tuple(_spec(meta.input_tensor_meta(index)) for index in range(meta.num_inputs())),
                outputs=tuple(_spec(meta.output_tensor_meta(index)) for index in range(meta.num_outputs())),
            )
        return self._specs[method]

    def execute(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of `method`, in fresh arrays.

        Raises:
            EngineError: see MethodRunner.
        """
        check_inputs(self.describe(method), inputs)
        # torch warns about read-only arrays though nothing writes to them; a copy is the quiet way out.
        tensors = [self._torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in inputs]
        with self._lock:
            module = self._open_module()
            try:
                outputs = module.run_method(method, tensors, clone_outputs=True)
            except RuntimeError as error:
                raise EngineError(f"method {method!r} failed: {_first_line(error)}") from error
        return [output.numpy() for output in outputs]

    def close(self) -> None:
        """Frees the program; may be repeated."""
        with self._lock:
            if self._module is not None:
                self._module = None
                _count(-1)

    def _load(self) -> Any:
        try:
            return self._binding._load_for_executorch_from_buffer(self._program)
        except RuntimeError as error:
            raise ModelFileError(f"the program cannot be loaded: {_first_line(error)}") from error

    def _open_module(self) -> Any:
        if self._module is None:
            raise EngineError("the engine is closed")
        return self._module

    def _set_threads(self, threads: int) -> None:
        if threads < 1:
            raise EngineError(f"threads must be 1 or more, not {threads}")
        current = self._binding._threadpool_get_thread_count()
        if current == threads:
            return
        # A loaded delegate keeps a pointer to the pool it was made with.
        if _open_runners:
            raise EngineError(
                f"the process already runs a model with {current} threads; close it before asking for {threads}"
            )
        self._binding._unsafe_reset_threadpool(threads)


def _import() -> tuple[Any, Any]:
    """torch and the binding, found by name so that nothing in the runtime depends on them when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = importlib.import_module("torch")
        binding = importlib.import_module("executorch.extension.pybindings.portable_lib")
        importlib.import_module("executorch.kernels.quantized")
    return torch, binding


def _count(change: int) -> None:
    global _open_runners
    with _open_lock:
        _open_runners += change


def _spec(meta: Any) -> TensorSpec:
    if meta.dtype() not in _DTYPES:
        raise EngineError(f"the program has a tensor of ScalarType {meta.dtype()}, which is not supported")
    return TensorSpec(shape=tuple(meta.sizes()), dtype=_DTYPES[meta.dtype()])


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
