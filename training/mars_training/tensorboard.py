"""Event files for TensorBoard under RUN/tensorboard: the scalars of every epoch, and what a report found.

Axes: H height and W width of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_training.diagnostics import Diagnostics
from mars_training.epoch import EpochReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_OF_REPORT = ".report"


@contextmanager
def epoch_events(run: Path) -> Iterator[Callable[[EpochReport], None]]:
    """A hook for after every epoch that writes its scalars; steps are epochs, counted from 1.

    A run that goes on after an interruption replaces what was written of the epochs it repeats. The file is opened
    with the first epoch and closed at the end, however training ends.

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

    try:
        yield write
    finally:
        for writer in opened:
            writer.close()


def scalars(report: EpochReport) -> dict[str, float]:
    """The numbers of a report by tag: loss/TERM, rate, samples_per_s, error/SUBSET and error/mean, sampling/..."""
    values = {f"loss/{name}": value for name, value in report.terms.items()}
    values |= {"rate": report.rate, "samples_per_s": report.samples_per_s}
    values |= {f"error/{score.subset}": score.error for score in report.scores}
    values |= {"error/mean": report.validation_error} if report.scores else {}
    for name, (discrepancy, probability) in report.sampling.items():
        values |= {f"discrepancy/{name}": discrepancy, f"probability/{name}": probability}
    return values


def write_report_events(run: Path, found: Diagnostics, pictures: Mapping[str, NDArray[np.uint8]]) -> Path:
    """Write a report's numbers and pictures (H, W, 3), at the selected epoch, in place of an earlier report's.

    Returns the folder.

    Raises:
        UsageError: tensorboard is not installed.
    """
    make, folder = _writer_class(), run / "tensorboard"
    step = found.selected["epoch"] + 1
    for earlier in folder.glob(f"*{_OF_REPORT}"):
        earlier.unlink()
    with closing(make(str(folder), filename_suffix=_OF_REPORT)) as writer:
        for name, value in report_scalars(found).items():
            writer.add_scalar(name, value, step)
        for name, picture in pictures.items():
            writer.add_image(f"report/{name}", picture, step, dataformats="HWC")
    return folder


def report_scalars(found: Diagnostics) -> dict[str, float]:
    """What only a report measures, by tag; what the method does not have is left out.

    agreement/COMBINATION and agreement/chance, gate_share/EXPERT and load_share/EXPERT, effective_experts/by_gate and
    by_load, ece/SUBSET and nll/SUBSET.
    """
    values: dict[str, float] = {}
    if found.agreement is not None:
        values |= {f"agreement/{name}": value for name, value in found.agreement.by_combination.items()}
        values["agreement/chance"] = found.agreement.chance
    if found.usage is not None:
        values |= {f"gate_share/{expert}": share for expert, share in enumerate(found.usage.gate)}
        values |= {f"load_share/{expert}": share for expert, share in enumerate(found.usage.load)}
        values["effective_experts/by_gate"] = found.usage.effective_by_gate
        values["effective_experts/by_load"] = found.usage.effective_by_load
    for score in found.selected["scores"]:
        measured = {name: score.get(name) for name in ("ece", "nll")}
        values |= {f"{name}/{score['subset']}": v for name, v in measured.items() if v is not None}
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
