"""One training on several processes: who they are, what they sum, and how the loss of one ends all.

Axes: B rows of this process, G = size() * B rows of the whole batch, in the order of ranks.

Every process draws what concerns the whole batch alike, works on its own rows, and arrives at the same loss. The
objective is the mean over processes of what each one's step returns: a mean over rows needs no help, everything else
(sums over the batch, means over some rows) goes through `all_sum`, whose derivative crosses processes too. The mean of
all processes' gradients is then exactly the gradient of the loss of the whole batch.

That mean is taken here, after backward, and not by DistributedDataParallel: its reductions would run among those of
batch norm and of the losses, in an order of its own, and it wants to be told which parameters took no part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from mars_edge.errors import MarsEdgeError, UsageError
from mars_training import device
from mars_training.device import DeviceName

Value = TypeVar("Value")

# Others wait this long while the main process validates; that a process is gone shows at once.
_LONGEST_WAIT = timedelta(hours=12)
_BUCKET_VALUES = 16 * 2**20


class LostProcessError(MarsEdgeError):
    """Another process of the same training is gone, so this one cannot go on."""


@contextmanager
def joined(name: DeviceName) -> Generator[torch.device]:
    """Within it, this process is one of those that torchrun started, and has the device to train on; alone without.

    Raises:
        UsageError: there is no such device.
        LostProcessError: another process is gone.
    """
    here = device.pick(name, index=int(os.environ.get("LOCAL_RANK", "0")))
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield here
        return
    backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
    with _losses_told():
        distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
        yield here
        distributed.destroy_process_group()


@contextmanager
def _losses_told() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        # What gloo raises is a plain RuntimeError; it names the file of its own that raised it.
        if isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error):
            raise LostProcessError(
                "another process of this training is gone; start all of them again to go on from the last checkpoint"
            ) from error
        raise


def size() -> int:
    """How many processes train together; 1 when this one is alone."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes the files, validates and talks."""
    return rank() == 0


def own(rows: Tensor) -> Tensor:
    """This process's share (B, ...) of something about the whole batch (G, ...).

    Raises:
        UsageError: the batch cannot be shared evenly.
    """
    if len(rows) % size():
        raise UsageError(
            f"a batch of {len(rows)} cannot be shared evenly by {size()} processes; change schedule.batch_size"
        )
    share = len(rows) // size()
    return rows[rank() * share : (rank() + 1) * share]


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process's loss depends on this one's share.
        return _summed(gradients[0])


def _summed(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def all_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, the same on each; gradients flow to every process. `x` itself when alone."""
    return x if size() == 1 else _all_sum(x)


# torch.compile cannot trace sums over processes, nor decisions: it makes code of what is between them.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _all_sum(x: Tensor) -> Tensor:
    total: Tensor = _AllSum.apply(x)  # type: ignore[no-untyped-call]
    return total


def all_rows(x: Tensor) -> Tensor:
    """The rows of all processes (G, ...) from those of this one (B, ...), in the order of ranks; gradients flow."""
    if size() == 1:
        return x
    places = [x if number == rank() else torch.zeros_like(x) for number in range(size())]
    return all_sum(torch.cat(places))


def mean_over(total: Tensor, count: Tensor) -> Tensor:
    """Sum over sum: the mean over the whole batch of what `count` counts here and `total` sums; 0 where none is."""
    return all_sum(total) / all_sum(count.to(total.dtype)).clamp_min(1.0)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def anywhere(flag: Tensor) -> bool:
    """Whether the boolean scalar is true on any process: for decisions that all must take alike."""
    return bool(all_sum(flag.detach().float()) > 0)


def average(values: Tensor) -> Tensor:
    """The mean over processes, outside the graph."""
    return values if size() == 1 else _summed(values) / size()


def average_gradients(model: nn.Module) -> None:
    """Every parameter's gradient becomes the mean over processes; one that has none on any stays without."""
    if size() == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    for parameter, there in zip(parameters, _summed(has).tolist(), strict=True):
        if there and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        means = average(torch.cat([g.flatten() for g in bucket]))
        for gradient, mean in zip(bucket, torch.split(means, [g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view(gradient.shape))


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = [[]]
    for gradient in gradients:
        if sum(g.numel() for g in buckets[-1]) + gradient.numel() > _BUCKET_VALUES and buckets[-1]:
            buckets.append([])
        buckets[-1].append(gradient)
    return [bucket for bucket in buckets if bucket]


def from_main(make: Callable[[], Value]) -> Value:
    """What `make` gives on the main process, on every process; the others wait for it."""
    if size() == 1:
        return make()
    told = [make() if is_main() else None]
    distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
    value: Any = told[0]
    made: Value = value
    return made


def tensors_from_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The main process's tensors, on the processor; what the others pass is ignored."""
    if size() == 1:
        return dict(tensors)
    layout = from_main(lambda: {name: (t.shape, t.dtype) for name, t in tensors.items()})
    sent = {}
    for name, (shape, dtype) in layout.items():
        sent[name] = tensors[name].detach().cpu().contiguous() if is_main() else torch.empty(shape, dtype=dtype)
        distributed.broadcast(sent[name], src=0)
    return sent
