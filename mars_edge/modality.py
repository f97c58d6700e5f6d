"""What one modality is: kind, shape, value range, rate; a user's own modality is one TOML table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError

Kind = Literal["image", "audio", "sequence", "vector", "text"]
SampleType = Literal["uint8", "uint16", "float32"]

# Fields that mean something only for some kinds; set for another kind they would be silently ignored.
_FIELDS_OF_KIND: dict[str, tuple[str, ...]] = {
    "image": ("channels", "size", "dtype", "range"),
    "audio": ("window_s", "mel_bands", "frame_s"),
    "sequence": ("channels", "length", "dtype", "range"),
    "vector": ("length", "dtype", "range"),
    "text": ("length", "vocabulary"),
}
_LARGEST = 2**31
_NARROWEST = 1e-30  # a narrower range overflows the float32 factor that scales it to 0..1


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One input of a model, complete enough to turn a raw sample into the network's tensor.

    Attributes:
        name: lower-case identifier; names the sensor, the encoder and the command-line flag.
            "none" is taken: it is the label of the empty subset.
        kind: image | audio | sequence | vector | text.
        channels: image channels (1 to 16), or columns of a sequence.
        size: image height and width in pixels after preprocessing.
        dtype: element type of the raw sample (audio is always float32). In a uint16 image 0 means
            "no measurement", as depth cameras send it: such pixels are left out when it is resized.
        range: raw values that map to 0 and 1; values outside are clipped.
        rate_hz: nominal sensor rate (frames, rows or audio samples per second).
        window_s: audio only, seconds of signal per decision; shorter signals are zero-padded at the end.
        mel_bands: audio only, rows of the log-mel spectrogram.
        frame_s: audio only, length of the analysis frame in seconds; frames advance by half of it.
        length: sequence: rows after resampling in time; vector: number of values; text: words kept.
        vocabulary: text only, number of buckets that words and word pairs are hashed into; 0 is no word.
    """

    name: str
    kind: Kind
    channels: int = 1
    size: tuple[int, int] | None = None
    dtype: SampleType = "float32"
    range: tuple[float, float] = (0.0, 1.0)
    rate_hz: float = 15.0
    window_s: float | None = None
    mel_bands: int = 40
    frame_s: float = 0.032
    length: int | None = None
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the preprocessed tensor without the batch axis.

        image (C, H, W); audio (1, mel_bands, frames); sequence (C, length); vector (length,); text (2, length).
        """
        if self.kind == "image":
            assert self.size is not None
            return (self.channels, *self.size)
        if self.kind == "audio":
            return (1, self.mel_bands, self.audio_frames)
        assert self.length is not None
        if self.kind == "text":
            return (2, self.length)
        return (self.channels, self.length) if self.kind == "sequence" else (self.length,)

    @property
    def window_samples(self) -> int:
        """Audio samples in one window."""
        assert self.window_s is not None
        return round(self.window_s * self.rate_hz)

    @property
    def frame_samples(self) -> int:
        """Audio samples in one analysis frame."""
        return round(self.frame_s * self.rate_hz)

    @property
    def hop_samples(self) -> int:
        """Audio samples between the starts of two analysis frames."""
        return self.frame_samples // 2

    @property
    def audio_frames(self) -> int:
        """Analysis frames that fit wholly into one window."""
        return 1 + (self.window_samples - self.frame_samples) // self.hop_samples

    def preprocess(self, raw: NDArray[Any] | str) -> NDArray[np.float32]:
        """The network's input of `shape`, float32, from one raw sample: an array, or a str for text.

        Raises:
            UsageError: not an array (for text: not a str), rank, channel count or element type is not what this
                modality declares, an array is empty, or a value is not finite.
        """
        from mars_edge.preprocess import preprocess

        return preprocess(self, raw)

    def to_dict(self) -> dict[str, Any]:
        """Only the fields that differ from their defaults, as plain JSON types."""
        defaults = {f.name: f.default for f in fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key in ("name", "kind") or value != defaults[key]
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Modality:
        """The modality a TOML table or JSON object describes.

        Raises:
            UsageError: an unknown key, a missing key, or a value of the wrong type or range.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise UsageError(f"unknown modality key {unknown[0]!r}; known keys: {', '.join(known)}")
        missing = [key for key in ("name", "kind") if key not in table]
        if missing:
            raise UsageError(f"modality table lacks {missing[0]!r}; it needs name and kind")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        return cls(**values)


def _number(value: object) -> bool:
    """A finite number of a size that products of two of them do not overflow."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST


def _check(m: Modality) -> None:
    if not isinstance(m.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", m.name) or m.name == "none":
        raise UsageError(f"modality name {m.name!r} is not a lower-case identifier, e.g. depth")
    where = f"modality {m.name!r}"
    if m.kind not in get_args(Kind):
        raise UsageError(f"{where}: unknown kind {m.kind!r}; allowed: {', '.join(get_args(Kind))}")
    _check_unused(m, where)
    if m.dtype not in get_args(SampleType):
        raise UsageError(f"{where}: unknown dtype {m.dtype!r}; allowed: {', '.join(get_args(SampleType))}")
    if not (_pair(m.range) and all(map(_number, m.range)) and m.range[1] - m.range[0] >= _NARROWEST):
        raise UsageError(f"{where}: range {m.range!r} must be two finite numbers, low < high")
    if not (_number(m.rate_hz) and m.rate_hz > 0):
        raise UsageError(f"{where}: rate_hz {m.rate_hz!r} must be a finite number above 0")
    checks = {
        "image": _check_image,
        "audio": _check_audio,
        "sequence": _check_sequence,
        "vector": _check_length,
        "text": _check_text,
    }
    checks[m.kind](m, where)


def _check_unused(m: Modality, where: str) -> None:
    used = ("name", "kind", "rate_hz", *_FIELDS_OF_KIND[m.kind])
    for f in fields(m):
        if f.name not in used and getattr(m, f.name) != f.default:
            raise UsageError(f"{where}: {f.name} has no meaning for kind {m.kind}; its keys: {', '.join(used)}")


def _pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _check_image(m: Modality, where: str) -> None:
    if not (_whole(m.channels, 1) and m.channels <= 16):
        raise UsageError(f"{where}: channels {m.channels!r} must be a whole number from 1 to 16")
    if m.size is None or not _pair(m.size) or not all(_whole(v, 1) for v in m.size):
        raise UsageError(f"{where}: size {m.size!r} must be [height, width] in pixels")


def _check_audio(m: Modality, where: str) -> None:
    if not (_number(m.frame_s) and m.frame_s > 0):
        raise UsageError(f"{where}: frame_s {m.frame_s!r} must be a finite number above 0")
    if m.window_s is None or not (_number(m.window_s) and m.window_s >= m.frame_s):
        raise UsageError(f"{where}: window_s {m.window_s!r} must be at least frame_s ({m.frame_s} s)")
    if not _whole(m.mel_bands, 1):
        raise UsageError(f"{where}: mel_bands {m.mel_bands!r} must be a whole number from 1")
    if m.frame_samples < 2:
        raise UsageError(f"{where}: frame_s {m.frame_s!r} at {m.rate_hz} Hz is under 2 samples")


def _check_length(m: Modality, where: str) -> None:
    if not _whole(m.length, 1):
        raise UsageError(f"{where}: length {m.length!r} must be a whole number from 1")


def _check_sequence(m: Modality, where: str) -> None:
    _check_length(m, where)
    if not _whole(m.channels, 1):
        raise UsageError(f"{where}: channels {m.channels!r} must be a whole number from 1")


def _check_text(m: Modality, where: str) -> None:
    _check_length(m, where)
    # Beyond 2^24 a float32, which every tensor is, no longer holds every whole number.
    if not (_whole(m.vocabulary, 2) and m.vocabulary is not None and m.vocabulary <= 2**24):
        raise UsageError(f"{where}: vocabulary {m.vocabulary!r} must be a whole number from 2 to {2**24}")
