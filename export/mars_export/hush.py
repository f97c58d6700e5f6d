"""Known, harmless noise of the pinned export stack, silenced by message so that anything new is still seen."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# logger: it says, at import or on every call, something a user can do nothing about.
_LOUD_LOGGERS = (
    "torchao",  # "Failed to load ..._C_mxfp8...so": GPU kernels this path never calls
    "torch.utils._pytree",  # an Enum registered twice, inside torchao
    "torch.onnx",  # progress and "missing torchvision"
    "onnxscript",  # every optimiser rule it applied
    "executorch.backends.xnnpack.partition",
)
_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    (r".*isinstance\(treespec, LeafSpec\).*", FutureWarning),
    (r".*torch\.jit\.script_method.*is deprecated.*", DeprecationWarning),  # torch itself, on first use of its JIT
    # nn.LSTM lists its own, registered weights anew while it is traced.
    (r"The tensor attributes? self\.\S+\._flat_weights\[0\].* assigned during export", UserWarning),
    (r".*_TORCH_OPS_REGISTRY.*is deprecated.*", DeprecationWarning),  # executorch asks coremltools so
    (r"(read|open)_(text|binary) is deprecated.*", DeprecationWarning),  # executorch reads its edge.yaml so
)


def quiet_loggers() -> None:
    """Only errors of the export stack's loggers are shown from here on."""
    for name in _LOUD_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def hushed() -> Iterator[None]:
    """Inside, the listed warnings of the export stack are not shown; every other one is."""
    quiet_loggers()
    with warnings.catch_warnings():
        for message, category in _WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield
