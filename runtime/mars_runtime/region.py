"""Where the face is: found on one sensor, carried to the others by calibration, kept for a moment when it is lost.

Axes: H height, W width. Boxes are in pixels, x to the right and y down; "reference" is the picture of the first image
modality, into whose pixels every other sensor's are mapped.
Design decision: finding is a pure function of (state, samples, now), as health is; a recording holds the state, so that
a replay crops alike. Nothing is decided on a whole picture where a face was asked for and none was found. A picture
that shows no face outweighs a depth picture in which something is near: a hand is no face.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_runtime.sensors.vision import load_opencv

NO_FACE = "no face"
# Of a depth picture: how far behind its nearest part a head reaches, and the least share of the picture it covers.
_HEAD_MM = 250.0
_LEAST_SHARE = 0.01
# A head is this much higher than wide.
_HEAD_RATIO = 1.35
# A few pixels nearer than everything else are the sensor's noise.
_NEAREST_PERCENT = 2.0
_YUNET_SCORE = 0.7
_SMALLEST_PX = 8.0
# The cascade looks for faces of a sixth of the picture's shorter side and more; so many pixels show the smallest.
_HAAR_PX = 160

Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
"""A homography: pixels of one picture to pixels of another."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of a picture; `x` and `y` are its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def grown(self, margin: float) -> Box:
        """The square around it with `margin` of its longer side added on every side."""
        side = max(self.width, self.height) * (1.0 + 2.0 * margin)
        return Box(x=self.x + (self.width - side) / 2, y=self.y + (self.height - side) / 2, width=side, height=side)

    def mapped(self, matrix: Matrix) -> Box:
        """The box around its four corners after a homography."""
        cv2 = load_opencv()
        right, below = self.x + self.width, self.y + self.height
        corners = np.array([[(self.x, self.y), (right, self.y), (right, below), (self.x, below)]], np.float64)
        moved = cv2.perspectiveTransform(corners, np.array(matrix, np.float64))[0]
        (left, top), (end, bottom) = moved.min(axis=0), moved.max(axis=0)
        return Box(x=float(left), y=float(top), width=float(end - left), height=float(bottom - top))

    def cut(self, picture: NDArray[Any]) -> NDArray[Any] | None:
        """The part of a picture (H, W, ...) inside it; None where less than 8 pixels each way are."""
        height, width = picture.shape[:2]
        left, top = max(0, round(self.x)), max(0, round(self.y))
        right, below = min(width, round(self.x + self.width)), min(height, round(self.y + self.height))
        return picture[top:below, left:right] if min(right - left, below - top) >= _SMALLEST_PX else None


@dataclass(frozen=True, kw_only=True)
class RegionSettings:
    """How faces are looked for; plain values, so that a recording holds them.

    Attributes:
        yunet: path of a YuNet model for OpenCV; None takes the Haar cascade that OpenCV brings.
        to_reference: by sensor, a homography into the reference picture; where there is none, both see the same field.
        margin: of the longer side, added on every side.
        every_s: how often a face is looked for, also while there is none; between that the last region is used.
        keep_s: how long the last region is used when no face is found, and how long after the last 8-bit picture the
            nearest head is taken from depth.
    """

    yunet: str | None = None
    to_reference: Mapping[str, Matrix] = field(default_factory=dict)
    margin: float = 0.2
    every_s: float = 0.2
    keep_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RegionState:
    """What is remembered between two decisions.

    Attributes:
        face: in the reference picture.
        seen_s, sensor: when, and on which sensor, it was found.
        looked_s: when a face was looked for last.
        bright_s: when an 8-bit picture, in which a face shows, came last.
        sizes: height and width of each sensor's newest picture.
    """

    face: Box | None = None
    seen_s: float = 0.0
    looked_s: float | None = None
    bright_s: float | None = None
    sensor: str | None = None
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class Detector(Protocol):
    """Finds the largest face of a picture."""

    def find(self, picture: NDArray[np.uint8]) -> Box | None:
        """The box of the largest face in (H, W) grey or (H, W, 3) RGB; None where there is none."""


class Haar:
    """The frontal-face cascade that OpenCV's wheel holds; for faces that look at the camera, 160 pixels at most high.

    Larger pictures are made smaller first: the smallest face looked for is a sixth of the shorter side all the same.

    Source: Viola and Jones, CVPR 2001; the cascade is OpenCV's.
    """

    def __init__(self) -> None:
        cv2 = load_opencv()
        self._cascade = cv2.CascadeClassifier(
            str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml")
        )

    def find(self, picture: NDArray[np.uint8]) -> Box | None:
        """See `Detector.find`."""
        cv2 = load_opencv()
        grey = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        scale = min(1.0, _HAAR_PX / min(grey.shape))
        if scale < 1.0:
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        least = max(24, min(grey.shape) // 6)
        found = self._cascade.detectMultiScale(cv2.equalizeHist(grey), 1.1, 4, minSize=(least, least))
        return _largest([tuple(float(value) / scale for value in box) for box in found])


class YuNet:
    """A YuNet model of the user's, run by OpenCV.

    Raises:
        UsageError: no such file, or OpenCV cannot read it.
    """

    def __init__(self, path: str) -> None:
        cv2 = load_opencv()
        if not Path(path).is_file():
            raise UsageError(f"--face-model {path}: no such file; allowed: a YuNet .onnx, or leave it out for Haar")
        try:
            self._network = cv2.FaceDetectorYN.create(path, "", (320, 320), _YUNET_SCORE)
        except cv2.error as error:
            raise UsageError(f"--face-model {path}: OpenCV cannot read it as YuNet") from error

    def find(self, picture: NDArray[np.uint8]) -> Box | None:
        """See `Detector.find`."""
        cv2 = load_opencv()
        colour = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR if picture.ndim == 2 else cv2.COLOR_RGB2BGR)
        self._network.setInputSize((colour.shape[1], colour.shape[0]))
        _, found = self._network.detect(colour)
        return _largest([] if found is None else [tuple(map(float, row[:4])) for row in found])


def _largest(boxes: Sequence[tuple[float, ...]]) -> Box | None:
    if not boxes:
        return None
    x, y, width, height = max(boxes, key=lambda box: box[2] * box[3])
    return Box(x=x, y=y, width=width, height=height)


def nearest_head(depth: NDArray[np.uint16], value_range: tuple[float, float]) -> Box | None:
    """The head of whoever is nearest in a depth picture (H, W), for when colour and infrared are gone.

    The largest connected part within 25 cm of the nearest one; of it the upper part, as high as 1.35 of its width.
    """
    cv2 = load_opencv()
    low, high = value_range
    seen = (depth > 0) & (depth >= low) & (depth <= high)
    if np.count_nonzero(seen) < _LEAST_SHARE * depth.size:
        return None
    nearest = float(np.percentile(depth[seen], _NEAREST_PERCENT))
    near = (seen & (depth <= nearest + _HEAD_MM)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(near, connectivity=8)
    if count < 2:
        return None
    body = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if stats[body, cv2.CC_STAT_AREA] < _LEAST_SHARE * depth.size:
        return None
    return _upper_part(labels == body)


def _upper_part(body: NDArray[np.bool_]) -> Box:
    rows = np.flatnonzero(body.any(axis=1))
    top, height = int(rows[0]), int(rows[-1] - rows[0] + 1)
    # Shoulders are wider: the width of the head is that of the upper third.
    upper = body[top : top + max(1, height // 3)]
    width = float(np.median(upper.sum(axis=1)[upper.any(axis=1)]))
    tall = min(height, max(1, round(_HEAD_RATIO * width)))
    columns = np.flatnonzero(body[top : top + tall].any(axis=0))
    return Box(x=float(columns[0]), y=float(top), width=float(columns[-1] - columns[0] + 1), height=float(tall))


class Finder:
    """Finds the face of every decision; `modalities` in the order in which they are looked at, depth last.

    Raises:
        UsageError: no modality is a picture, a calibration of an unknown sensor, or a model that cannot be read.
    """

    def __init__(self, settings: RegionSettings, modalities: Sequence[Modality]) -> None:
        pictures = [m for m in modalities if m.kind == "image"]
        if not pictures:
            raise UsageError("--region face: the model takes no picture to find a face in")
        unknown = sorted(set(settings.to_reference) - {m.name for m in pictures})
        if unknown:
            known = ", ".join(m.name for m in pictures)
            raise UsageError(f"the calibration names {unknown[0]!r}; the model's pictures: {known}")
        self._settings = settings
        self._pictures = sorted(pictures, key=_is_depth)
        self._detector: Detector = Haar() if settings.yunet is None else YuNet(settings.yunet)
        self._reference = pictures[0].name

    def find(
        self, state: RegionState, samples: Mapping[str, NDArray[Any]], now_s: float
    ) -> tuple[RegionState, Mapping[str, Box] | None]:
        """The new state, and the box of every picture among `samples`; None where there is no face to crop to."""
        sizes = {p.name: _size(samples[p.name]) for p in self._pictures if p.name in samples}
        if sizes.get(self._reference) not in (None, state.sizes.get(self._reference)):
            # What was found in pixels of another sensor, or of another picture, is no place in this one.
            state = replace(state, face=None, looked_s=None)
        bright = any(not _is_depth(p) for p in self._pictures if p.name in samples)
        state = replace(state, sizes={**state.sizes, **sizes}, bright_s=now_s if bright else state.bright_s)
        state = self._looked(state, samples, now_s)
        if state.face is None or now_s - state.seen_s > self._settings.keep_s:
            return replace(state, face=None), None
        face = state.face.grown(self._settings.margin)
        return state, {
            picture.name: face.mapped(_inverse(self._to_reference(picture.name, state.sizes)))
            for picture in self._pictures
            if picture.name in samples
        }

    def _looked(self, state: RegionState, samples: Mapping[str, NDArray[Any]], now_s: float) -> RegionState:
        if state.looked_s is not None and now_s - state.looked_s < self._settings.every_s:
            return state
        pictures = self._worth_a_look(state, samples, now_s)
        for picture in pictures:
            if (box := self._detected(picture, samples[picture.name])) is not None:
                face = box.mapped(self._to_reference(picture.name, state.sizes))
                return replace(state, face=face, seen_s=now_s, looked_s=now_s, sensor=picture.name)
        return replace(state, looked_s=now_s) if pictures else state

    def _worth_a_look(self, state: RegionState, samples: Mapping[str, NDArray[Any]], now_s: float) -> list[Modality]:
        """The pictures there are, depth only once no other sensor has shown anything for a while."""
        there = [picture for picture in self._pictures if picture.name in samples]
        dark = state.bright_s is None or now_s - state.bright_s > self._settings.keep_s
        return there if dark else [picture for picture in there if not _is_depth(picture)]

    def _detected(self, picture: Modality, sample: NDArray[Any]) -> Box | None:
        flat = sample[..., 0] if sample.ndim == 3 and sample.shape[2] == 1 else sample
        if flat.dtype == np.uint16 and flat.ndim == 2:
            return nearest_head(flat, picture.range)
        if flat.dtype != np.uint8 or flat.ndim not in (2, 3):
            return None
        return self._detector.find(np.ascontiguousarray(flat))

    def _to_reference(self, name: str, sizes: Mapping[str, tuple[int, int]]) -> Matrix:
        """Calibrated, or of two pictures that show the same field."""
        given = self._settings.to_reference.get(name)
        if given is not None:
            return given
        (height, width), (high, wide) = sizes[name], sizes.get(self._reference, sizes[name])
        return ((wide / width, 0.0, 0.0), (0.0, high / height, 0.0), (0.0, 0.0, 1.0))


def _is_depth(modality: Modality) -> bool:
    return modality.dtype == "uint16"


def _size(picture: NDArray[Any]) -> tuple[int, int]:
    return int(picture.shape[0]), int(picture.shape[1])


@lru_cache(maxsize=64)
def _inverse(matrix: Matrix) -> Matrix:
    rows = np.linalg.inv(np.array(matrix, np.float64)).tolist()
    return tuple(tuple(float(value) for value in row) for row in rows)  # type: ignore[return-value]


def load_calibration(path: Path) -> dict[str, Matrix]:
    """The homographies of a TOML file: one `[sensor.NAME]` with `to_reference`, three rows of three numbers.

    Raises:
        UsageError: no such file, or what it says is no homography.
    """
    where = f"--calibration {path}"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: not TOML: {error}") from error
    sensors = table.get("sensor")
    if set(table) != {"sensor"} or not isinstance(sensors, dict):
        raise UsageError(f"{where}: expected one [sensor.NAME] table per sensor")
    return {name: _matrix(entry, f"{where}: sensor.{name}") for name, entry in sensors.items()}


def _matrix(entry: Any, where: str) -> Matrix:
    rows = entry.get("to_reference") if isinstance(entry, dict) and set(entry) == {"to_reference"} else None
    try:
        values = np.array(rows, np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (3, 3) or not np.isfinite(values).all() or abs(np.linalg.det(values)) < 1e-9:
        raise UsageError(f"{where}: expected to_reference = three rows of three numbers that can be inverted")
    return tuple(tuple(float(value) for value in row) for row in values.tolist())  # type: ignore[return-value]
