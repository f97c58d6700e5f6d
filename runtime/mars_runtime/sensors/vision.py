"""OpenCV as a small device wants it: imported on first use, quiet, one thread."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


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
