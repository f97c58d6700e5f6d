"""Event files for TensorBoard: every number of an epoch as a scalar under RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mars_edge.errors import UsageError
from mars_training.epoch import EpochReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def writer_hook(run: Path) -> Callable[[EpochReport], None]:
    """A hook for after every epoch that writes its scalars; steps are epochs, counted from 1.

    A run that goes on after an interruption replaces what was written of the epochs it repeats.

    Raises:
        UsageError: tensorboard is not installed.
    """
    make = _writer_class()
    opened: list[SummaryWriter] = []

    def write(report: EpochReport) -> None:
        if not opened:
            opened.append(make(str(run / "tensorboard"), purge_step=report.epoch + 1))
        for name, value in scalars(report).items():
            opened[0].add_scalar(name, value, report.epoch + 1)
        # On disk before the next epoch: whoever watches, or a kill, finds all there is.
        opened[0].flush()
        if report.epoch + 1 == report.epochs:
            opened.pop().close()

    return write


def scalars(report: EpochReport) -> dict[str, float]:
    """The numbers of a report by tag: loss/TERM, rate, samples_per_s, error/SUBSET and error/mean, sampling/..."""
    values = {f"loss/{name}": value for name, value in report.terms.items()}
    values |= {"rate": report.rate, "samples_per_s": report.samples_per_s}
    values |= {f"error/{score.subset}": score.error for score in report.scores}
    values |= {"error/mean": report.validation_error} if report.scores else {}
    for name, (discrepancy, probability) in report.sampling.items():
        values |= {f"discrepancy/{name}": discrepancy, f"probability/{name}": probability}
    return values


def _writer_class() -> type[SummaryWriter]:
    # Imported only here: training without the flag needs no tensorboard.
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs tensorboard, which is not installed: pip install 'mars-edge[train]'"
        ) from error
    return SummaryWriter
