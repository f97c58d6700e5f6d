"""How far a training is, for a person: a line per epoch, and on a terminal one that moves with the steps."""

from __future__ import annotations

import time
from typing import TextIO

from mars_training.epoch import EpochReport, StepReport
from mars_training.train import Hooks

_REDRAW_S = 0.2
_CLEAR = "\r\x1b[K"


def step_line(report: StepReport) -> str:
    """Within an epoch: which step, how fast, how long still."""
    return (
        f"epoch {report.epoch + 1}/{report.epochs}  step {report.step}/{report.steps}  "
        f"{report.samples_per_s:.0f} samples/s  ETA {_minutes(report.eta_s)}"
    )


def epoch_line(report: EpochReport) -> str:
    """After an epoch: validation error, loss terms, how fast, how long still."""
    terms = " ".join(f"{name} {value:.4f}" for name, value in report.terms.items())
    error = f"validation error {100 * report.validation_error:.2f} %  " if report.scores else ""
    return (
        f"epoch {report.epoch + 1}/{report.epochs}  {error}{terms}  "
        f"{report.samples_per_s:.0f} samples/s  {report.seconds:.0f} s  ETA {_minutes(report.eta_s)}"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def progress(stream: TextIO) -> Hooks:
    """Hooks that write to `stream`: a line per epoch, and where it is a terminal, one for the steps that is redrawn."""
    live = stream.isatty()
    drawn_at = -_REDRAW_S

    def after_step(report: StepReport) -> None:
        nonlocal drawn_at
        now = time.monotonic()
        if live and now - drawn_at >= _REDRAW_S:
            drawn_at = now
            print(_CLEAR + step_line(report), end="", file=stream, flush=True)

    return Hooks(after_step=after_step, after_epoch=lambda report: say(stream, epoch_line(report)))


def say(stream: TextIO, line: str) -> None:
    """Write a line; on a terminal in place of the one that moves."""
    print((_CLEAR if stream.isatty() else "") + line, file=stream, flush=True)
