"""OpenCV as a small device wants it: imported on first use, quiet, one thread."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray


def load_opencv() -> Any:
    """The `cv2` module, quiet and with one thread.

    Its worker threads would compete with the model for the cores of a small device; its warnings
    on stderr repeat what `SensorError` says.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def to_rgb(cv2: Any, image: NDArray[Any]) -> NDArray[Any]:
    """OpenCV's blue-green-red as red-green-blue; everything but three channels as it is."""
    if image.ndim == 3 and image.shape[2] == 3:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[no-any-return]
    return image


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """What libraries written in C print to stderr is dropped; only for use before threads are started.

    libpng reports a damaged file that way, beside the error we raise.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
