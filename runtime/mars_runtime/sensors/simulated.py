"""The simulated rig as a live source: colour, depth and infrared of the same simulated moment."""

from __future__ import annotations

import threading
import time
from typing import Any

from numpy.typing import NDArray

from mars_edge.errors import SensorError
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.pace import Clock, Sleep

RIG_MODALITIES = ("rgb", "depth", "ir")
# Periods between two frames that still count as on time.
_TOLERATED_PERIODS = 1.5
# However slow the machine is, silence must be noticed in the end.
_SLOWEST_HZ = 4.0
# A frame handed out later than this after its instant is late because the machine is busy, not because of the camera.
_LONGEST_LATENCY_S = 0.05
# The slowest interval fades by this factor per frame.
_FORGET = 0.9


class World:
    """One simulated scene shared by all its sensors; its time starts when the first sensor opens.

    Frames are numbered from time alone, so three sensors read at the same moment see the same instant.
    """

    def __init__(self, seed: int, rate_hz: float, *, clock: Clock = time.monotonic) -> None:
        self.seed = seed
        self.rate_hz = rate_hz
        self._clock = clock
        self._lock = threading.Lock()
        self._rig: Any = None
        self._epoch_s = 0.0

    def start(self) -> None:
        """Build the rig on first use."""
        with self._lock:
            if self._rig is None:
                from mars_edge.rig import Rig

                self._rig = Rig(seed=self.seed, rate_hz=self.rate_hz)
                self._epoch_s = self._clock()

    def ahead_s(self, index: int) -> float:
        """Seconds until frame `index` is due; negative once it is late."""
        return self._epoch_s + index / self.rate_hz - self._clock()

    def instant_s(self, index: int) -> float:
        """When frame `index` shows the scene, on the clock."""
        return self._epoch_s + index / self.rate_hz

    def index_now(self) -> int:
        """Number of the newest frame that is due."""
        return int((self._clock() - self._epoch_s) * self.rate_hz)

    def render(self, modality: str, index: int) -> NDArray[Any]:
        """The raw frame of one modality."""
        frame: NDArray[Any] = self._rig.frame(modality, index / self.rate_hz)
        return frame

    def species_now(self) -> str:
        """The truth about who is on stage; for people to watch, never an input."""
        return "nobody" if self._rig is None else str(self._rig.species_at(max(0, self.index_now()) / self.rate_hz))


class SimulatedSensor:
    """One camera of a `World`, at the world's rate; late readers skip frames.

    A machine too busy to render in time is no sensor fault: the nominal rate in `traits` then falls
    to what is reached, so health allows for it, and returns to the world's rate within a second or two; and
    no frame is stamped as older than 50 ms. In time, the stamp is the instant that is shown.
    """

    def __init__(
        self, world: World, modality: str, *, clock: Clock = time.monotonic, sleep: Sleep = time.sleep
    ) -> None:
        self._world = world
        self._modality = modality
        self._clock = clock
        self._sleep = sleep
        self._next: int | None = None
        self._given_s: float | None = None
        self._rendering_since_s: float | None = None
        self._interval_s = 0.0

    @property
    def traits(self) -> Traits:
        """The rate is the world's unless rendering takes markedly longer."""
        since_s = self._rendering_since_s
        slowest_s = max(self._interval_s, 0.0 if since_s is None else self._clock() - since_s)
        on_time = slowest_s * self._world.rate_hz <= _TOLERATED_PERIODS
        return Traits(
            description=f"simulated {self._modality} (seed {self._world.seed})",
            rate_hz=self._world.rate_hz if on_time else max(1.0 / slowest_s, _SLOWEST_HZ),
            raw=True,
            simulated=True,
        )

    def open(self) -> None:
        """Join the world at the present instant."""
        self._world.start()
        self._next = max(0, self._world.index_now())
        self._given_s = None

    def read(self, timeout_s: float) -> Frame | None:
        """The frame of the next instant."""
        if self._next is None:
            raise SensorError(f"{self.traits.description}: read before open")
        ahead_s = self._world.ahead_s(self._next)
        if ahead_s > timeout_s:
            self._sleep(timeout_s)
            return None
        if ahead_s > 0.0:
            self._sleep(ahead_s)
        index = max(self._next, self._world.index_now())
        self._next = index + 1
        data = self._render(index)
        captured_s = max(self._world.instant_s(index), self._clock() - _LONGEST_LATENCY_S)
        return Frame(data=data, sequence=index, captured_s=captured_s)

    def _render(self, index: int) -> NDArray[Any]:
        self._rendering_since_s = self._clock()
        data = self._world.render(self._modality, index)
        now_s, before_s = self._clock(), self._given_s
        interval_s = 0.0 if before_s is None else now_s - before_s
        self._interval_s = max(interval_s, _FORGET * self._interval_s)
        self._given_s, self._rendering_since_s = now_s, None
        return data

    def close(self) -> None:
        """Leave the world; it goes on."""
        self._next = None
