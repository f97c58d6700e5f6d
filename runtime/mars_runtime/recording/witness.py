"""What watches a stream for the sake of files: a recording of everything, a flight recorder, both or neither."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_runtime.pipeline import Settings
from mars_runtime.recording.flight import FlightRecorder
from mars_runtime.recording.recorder import Recorder
from mars_runtime.recording.session import Session, model_id
from mars_runtime.recording.writer import check_target, load_mcap
from mars_runtime.sensors.driver import Traits
from mars_runtime.tick import Tick


class Witness:
    """Call it with every tick, then close it.

    The files are made with the first tick, when the sensors are known to work.

    Args:
        traits: of the sources as they are now.
        record: of everything; None for no recording.
        flight_recorder: folder of the incidents; None for no flight recorder.
        say: one line for people.

    Raises:
        UsageError: the packages are not installed, `record` exists, or the folder cannot be made.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: Settings,
        traits: Callable[[], Mapping[str, Traits]],
        *,
        record: Path | None = None,
        flight_recorder: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._manifest = manifest
        self._settings = settings
        self._traits = traits
        self._path = record
        self._say = say
        self._recorder: Recorder | None = None
        self._flight = None if flight_recorder is None else FlightRecorder(flight_recorder, self.session, say=say)
        if record is not None:
            load_mcap()
            check_target(record)

    def session(self) -> Session:
        """The head of a recording that begins now."""
        traits = dict(self._traits())
        return Session(
            modalities={name: self._manifest.modality(name) for name in traits},
            traits=traits,
            utc_offset_s=time.time() - time.monotonic(),
            model=self._manifest.name,
            model_id=model_id(self._manifest),
            settings=self._settings,
        )

    def __call__(self, tick: Tick) -> None:
        """Keep one decision and its causes."""
        if self._path is not None:
            self._record(self._path, tick)
        if self._flight is not None:
            self._flight.tick(tick)

    def _record(self, path: Path, tick: Tick) -> None:
        if self._recorder is None:
            try:
                self._recorder = Recorder(path, self.session())
            except OSError as error:
                raise UsageError(f"--record {path}: {error.strerror}") from error
        self._recorder.tick(tick)

    def close(self) -> None:
        """Complete every file; may be called twice.

        Raises:
            MarsEdgeError: the disk failed on the way; what was written is under the partial name.
        """
        if self._flight is not None:
            self._flight.close()
            if self._flight.suppressed:
                self._say(f"flight recorder: {self._flight.suppressed} more incidents were not written")
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            kept = recorder.close()
            lost = f", {kept.dropped} lost to a slow disk" if kept.dropped else ""
            self._say(f"recorded {kept.path} ({kept.written} decisions{lost})")
