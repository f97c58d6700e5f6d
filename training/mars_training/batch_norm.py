"""Batch norm whose statistics are those of the whole batch, when several processes share it.

Axes: B rows of this process, C channels, then any map axes.
torch's SyncBatchNorm needs GPUs; on the processor this module computes the same from sums over all processes.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from mars_training.distributed import all_sum, size


class WholeBatchNorm(nn.Module):
    """A batch norm's parameters and buffers under their own names, normalising by the whole batch in training."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        axes = [0, *range(2, x.dim())]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        here = values.new_tensor([x.numel() // x.shape[1]])
        sums = all_sum(torch.cat([values.sum(axes), here]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        shape = (1, -1, *[1] * (x.dim() - 2))
        centred = values - mean.view(shape)
        variance = all_sum(centred.square().sum(axes)) / count
        self._track(mean, variance * count / (count - 1.0).clamp_min(1.0))
        out = centred * (variance + self.eps).rsqrt().view(shape) * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def _on_gpus(norm: _BatchNorm) -> nn.SyncBatchNorm:
    sync = nn.SyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    sync.weight, sync.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(sync, name, buffer)
    return sync.train(norm.training)


@contextmanager
def over_whole_batch(model: nn.Module) -> Generator[None]:
    """Within it, the model's batch norms normalise over all processes; names and tensors stay what they are.

    Nothing changes when this process is alone.
    """
    if size() == 1:
        yield
        return
    swapped: list[tuple[nn.Module, str, _BatchNorm, nn.Module]] = []
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, _BatchNorm):
                swapped.append((parent, name, norm, _on_gpus(norm) if norm.weight.is_cuda else WholeBatchNorm(norm)))
    for parent, name, _, whole in swapped:
        setattr(parent, name, whole)
    try:
        yield
    finally:
        for parent, name, norm, whole in swapped:
            setattr(parent, name, norm.train(whole.training))
