"""One sensor as the decision loop sees it: a live capture thread, or a recording that is played back."""

from __future__ import annotations

from typing import Protocol

from mars_runtime.capture import Delivery
from mars_runtime.sensors.driver import Traits


class Feed(Protocol):
    """Hands out what is new; never makes the loop wait. `capture.Capture` is one."""

    @property
    def traits(self) -> Traits:
        """Of the source."""

    @property
    def received(self) -> int:
        """Samples that have arrived so far."""

    @property
    def waiting(self) -> bool:
        """Whether a sample is there to be taken."""

    @property
    def last_error(self) -> str | None:
        """The newest failure in the driver's words."""

    def take(self) -> Delivery:
        """What is new since the last call."""
