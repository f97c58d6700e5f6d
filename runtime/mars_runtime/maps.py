"""What a segmentation answers, as pictures: the labels themselves, and the labels over what a camera saw."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.files import make_folder
from mars_runtime.capture import Sample
from mars_runtime.decision import Decision
from mars_runtime.sensors.vision import load_opencv

# Of the picture below the labels.
_SEEN = 0.5
_QUEUED = 8
_GOLDEN_ANGLE = 137.508


class MapFiles:
    """A sink: `map-SEQ.png` holds the index of the label of each pixel, `overlay-SEQ.png` shows it over `picture`.

    A thread writes; what the disk cannot keep up with is dropped and counted.

    Args:
        picture: gives the newest sample of the camera below the labels, as `Stream.latest`; None writes no overlay.

    Raises:
        UsageError: the folder cannot be made, or the one it is to be in does not exist.
    """

    def __init__(self, folder: Path, picture: Callable[[], Sample | None] | None = None) -> None:
        make_folder(folder, "--maps")
        self._folder = folder
        self._picture = picture
        self._jobs: queue.Queue[tuple[int, NDArray[np.uint8], Sample | None] | None] = queue.Queue(_QUEUED)
        self.dropped = 0
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="maps", daemon=True)
        self._thread.start()

    def write(self, decision: Decision) -> None:
        """Keep the map of a decision that has one."""
        if decision.label_map is None:
            return
        sample = self._picture() if self._picture is not None else None
        try:
            self._jobs.put_nowait((decision.seq, decision.label_map, sample))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued; may be called twice."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            seq, labels, sample = job
            try:
                _write(self._folder / f"map-{seq:08d}.png", labels)
                if sample is not None:
                    _write(self._folder / f"overlay-{seq:08d}.png", overlay(labels, sample.frame.data))
            except OSError as error:
                self.failure = str(error)
                self.dropped += 1


def colours(count: int) -> NDArray[np.uint8]:
    """One RGB colour per label, (count, 3), far apart for neighbours: hues by the golden angle."""
    cv2 = load_opencv()
    hues = np.arange(count) * _GOLDEN_ANGLE % 360.0 / 2.0
    hsv = np.stack([hues, np.full(count, 200.0), np.full(count, 230.0)], axis=1)[np.newaxis]
    table: NDArray[np.uint8] = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)[0]
    return table


def overlay(labels: NDArray[np.uint8], picture: NDArray[Any]) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of the size of `picture`: half of it, half of the colour of each pixel's label."""
    cv2 = load_opencv()
    height, width = picture.shape[:2]
    large = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    painted = colours(256)[large].astype(np.float32)
    mixed: NDArray[np.uint8] = np.rint(_SEEN * _as_rgb(picture) + (1.0 - _SEEN) * painted).astype(np.uint8)
    return mixed


def _as_rgb(picture: NDArray[Any]) -> NDArray[np.float32]:
    """0..255 in three channels; anything but 8-bit is stretched to its own range."""
    planes = picture[:, :, np.newaxis] if picture.ndim == 2 else picture
    values = (planes if planes.shape[2] == 3 else planes[:, :, :1]).astype(np.float32)
    if picture.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        values = (values - low) * (255.0 / max(high - low, 1e-12))
    return np.broadcast_to(values, (*values.shape[:2], 3))


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    cv2 = load_opencv()
    stored = image if image.ndim == 2 else np.ascontiguousarray(image[:, :, ::-1])
    good, content = cv2.imencode(".png", stored)
    assert good
    # Under another name first: who watches the folder sees whole pictures only.
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(content.tobytes())
    unfinished.replace(path)
