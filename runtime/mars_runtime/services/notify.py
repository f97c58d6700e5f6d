"""systemd's notification protocol: ready with the first decision, then a sign of life from the decision loop itself.

A loop that hangs stops writing decisions, so the watchdog starts the service anew: nothing else pets it.
Source: sd_notify(3), https://www.freedesktop.org/software/systemd/man/sd_notify.html
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from mars_runtime.decision import Decision
from mars_runtime.sensors.pace import Clock

# Of the watchdog's time; the manual advises half, a busy machine may delay one.
_PETTING_SHARE = 0.25
_STATUS_S = 5.0


class Notifier:
    """A sink that tells the service manager; made by `from_environment`."""

    def __init__(self, address: str, watchdog_s: float | None, *, clock: Clock = time.monotonic) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._every_s = _STATUS_S if watchdog_s is None else min(_STATUS_S, watchdog_s * _PETTING_SHARE)
        self._clock = clock
        self._next_s: float | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def write(self, decision: Decision) -> None:
        """READY=1 with the first decision, WATCHDOG=1 and a status line often enough after it."""
        now_s = self._clock()
        if self._next_s is not None and now_s < self._next_s:
            return
        first = self._next_s is None
        self._next_s = now_s + self._every_s
        status = f"STATUS=decision {decision.seq}: {decision.outcome.verdict} on {decision.subset}"
        self._send(("READY=1\n" if first else "") + f"WATCHDOG=1\n{status}")

    def close(self) -> None:
        """STOPPING=1; may be called twice."""
        if self._socket.fileno() >= 0:
            self._send("STOPPING=1")
            self._socket.close()

    def _send(self, text: str) -> None:
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            # A service manager that does not listen is no reason to stop deciding.
            return


def from_environment(environment: Mapping[str, str] = os.environ) -> Notifier | None:
    """The notifier that systemd asks for with NOTIFY_SOCKET and WATCHDOG_USEC; None where it did not."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    usec = environment.get("WATCHDOG_USEC", "")
    # WATCHDOG_PID names another process when the variables were only inherited.
    mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return Notifier(address, int(usec) / 1e6 if usec.isdigit() and mine else None)
