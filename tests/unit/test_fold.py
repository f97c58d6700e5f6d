"""Batch norms go wherever they stand, and what is left answers as before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_export.fold import ChannelAffine, drop_dropout, fold_batch_norms


class ByName(nn.Module):
    """Convolution and norm that meet only in `forward`, and a norm before its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)
        self.first = nn.Conv2d(3, 6, 3)
        self.before = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.before(torch.relu(self.norm(self.first(x)))))
        return y


class Twice(nn.Module):
    """One convolution read with and without its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.convolution(x)) + self.convolution(x)
        return y


class LooksAtValues(nn.Module):
    """A forward that no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.convolution(x))
        return y if float(y.detach().sum()) > 0 else -y


MODULES = [
    (ByName(), (4, 3, 8, 8)),
    (Twice(), (4, 3, 8, 8)),
    (LooksAtValues(), (4, 3, 8, 8)),
    (nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, affine=False)), (4, 3, 8, 8)),
    (nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5)), (4, 3, 9)),
    (nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)), (4, 7)),
]


@pytest.mark.parametrize(("module", "shape"), MODULES, ids=lambda given: type(given).__name__)
def test_folding_keeps_every_output_and_leaves_no_batch_norm(module: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
            if norm.affine:
                norm.weight.uniform_(-1.0, 2.0)
                norm.bias.normal_()
    x = torch.randn(shape)
    expected = module.eval()(x)
    fold_batch_norms(module)
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in module.modules())
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_that_alone_reads_its_convolution_costs_no_operation() -> None:
    module = ByName()
    fold_batch_norms(module)
    assert isinstance(module.norm, nn.Identity)
    assert isinstance(module.before, ChannelAffine)


@pytest.mark.parametrize(
    ("norm", "what"),
    [
        (nn.BatchNorm3d(3), "is a BatchNorm3d"),
        (nn.BatchNorm2d(3, track_running_stats=False), "has no running statistics"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(norm: nn.Module, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        fold_batch_norms(nn.Sequential(nn.ReLU(), norm))
    assert str(caught.value) == (
        f"batch norm '1' {what}; only BatchNorm1d and BatchNorm2d with running statistics can be folded"
    )


def test_dropout_is_taken_out_and_named() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.ReLU(), nn.LSTM(4, 4, num_layers=2, dropout=0.3))
    assert drop_dropout(module) == ("0", "2")
    assert isinstance(module[0], nn.Identity) and module[2].dropout == 0.0
    assert drop_dropout(module) == ()
