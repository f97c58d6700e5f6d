"""Where a training runs: the processor or a GPU, in which precision, and how a batch gets there."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_training.data.split import Batch
from mars_training.recipe import Precision

DeviceName = Literal["cpu", "cuda", "auto"]


def pick(name: DeviceName, *, index: int = 0) -> torch.device:
    """The device that `name` asks for, on a machine with several GPUs number `index`; "auto" is a GPU if there is one.

    Raises:
        UsageError: there is no such GPU.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise UsageError(f"--device {name} needs GPU {index}; torch sees {torch.cuda.device_count()}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is."""
    return next(model.parameters()).device


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether to train in bfloat16: as the recipe says; "auto" asks for AVX512-BF16 or AMX, or a GPU that has it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())  # torch has no public query for this


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Within it, matrix products and convolutions run in bfloat16 where `uses_bf16`; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(precision, device))


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`; to a GPU through pinned memory, without waiting for the copy."""
    if device.type != "cuda":
        return batch
    return dataclasses.replace(
        batch,
        inputs={name: _sent(x, device) for name, x in batch.inputs.items()},
        labels=_sent(batch.labels, device),
        present=_sent(batch.present, device),
    )


def _sent(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True)
