"""Raw samples of every kind and the tensors they become."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.encoding import array
from mars_edge.errors import UsageError
from mars_edge.modality import Modality

Raw = NDArray[Any] | str
Case = tuple[str, Modality, Raw]

# (channels, raw height and width, height and width of the tensor): every path through the resize.
_SHAPES: dict[str, tuple[int, tuple[int, int], tuple[int, int]]] = {
    "as it is": (3, (9, 7), (9, 7)),
    "as it is, grey": (1, (9, 7), (9, 7)),
    "halved": (1, (16, 12), (8, 6)),
    "halved, 2 channels": (2, (12, 16), (6, 8)),
    "halved, 3 channels": (3, (14, 18), (7, 9)),
    "halved, 4 channels": (4, (12, 10), (6, 5)),
    "halved, 5 channels": (5, (12, 10), (6, 5)),
    "a third": (3, (18, 21), (6, 7)),
    "a third by a fifth": (1, (18, 25), (6, 5)),
    "a quarter by a half": (3, (20, 18), (5, 9)),
    "shrunk by a fraction": (3, (17, 23), (7, 9)),
    "shrunk by a fraction, grey": (1, (31, 22), (12, 16)),
    "shrunk by a fraction, 6 channels": (6, (13, 11), (7, 6)),
    "shrunk a little": (3, (13, 15), (12, 14)),
    "shrunk in height alone": (3, (19, 8), (8, 8)),
    "shrunk in width alone, 5 channels": (5, (8, 19), (8, 7)),
    "grown": (3, (7, 9), (17, 20)),
    "grown, grey": (1, (5, 6), (13, 16)),
    "grown, 5 channels": (5, (5, 4), (9, 11)),
    "doubled": (1, (6, 7), (12, 14)),
    "grown in height, shrunk in width": (3, (6, 19), (11, 8)),
    "grown in width, shrunk in height": (1, (18, 5), (7, 9)),
    "from one pixel": (3, (1, 1), (4, 5)),
    "to one pixel": (1, (9, 8), (1, 1)),
}


def preprocess_cases() -> list[dict[str, Any]]:
    """Each case with its tensor, or with what is said where it is refused."""
    # On x86-64 OpenCV lets Intel's library enlarge 16-bit and float pictures; it adds in another order, which turns the
    # rounding of about one pixel in 5000 to the other side. The vectors are OpenCV's own arithmetic, as on Arm.
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        return _cases()
    finally:
        cv2.ipp.setUseIPP(before)


def _cases() -> list[dict[str, Any]]:
    return [_case(*case) for case in (*_images(), *_holes(), *_floats(), *_sounds(), *_rows(), *_texts(), *_refused())]


def _case(name: str, modality: Modality, raw: Raw) -> dict[str, Any]:
    case: dict[str, Any] = {"name": name, "modality": modality.to_dict()}
    case["raw"] = raw if isinstance(raw, str) else array(raw)
    try:
        return case | {"tensor": array(modality.preprocess(raw))}
    except UsageError as error:
        return case | {"refused": str(error)}


def _picture(shape: tuple[int, ...], dtype: type[np.generic], top: int, seed: int) -> NDArray[Any]:
    """Noise on a gradient: every value differs from its neighbours, and ties of the rounding occur."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0.2, 0.8, shape[1])[None, :, None] * top
    return np.clip(slope + random.normal(0.0, 0.2 * top, shape), 1, top).round().astype(dtype)


def _image(channels: int, size: tuple[int, int], dtype: str) -> Modality:
    bounds = {"uint8": (0.0, 255.0), "uint16": (300.0, 800.0), "float32": (-1.0, 1.0)}[dtype]
    return Modality(name="picture", kind="image", channels=channels, size=size, dtype=dtype, range=bounds)  # type: ignore[arg-type]


def _images() -> Iterator[Case]:
    for seed, (name, (channels, raw, size)) in enumerate(_SHAPES.items()):
        picture = _picture((*raw, channels), np.uint8, 255, seed)
        picture = picture[:, :, 0] if channels == 1 and seed % 2 else picture
        yield f"uint8 {name}", _image(channels, size, "uint8"), picture
        depth = _picture((*raw, channels), np.uint16, 1000, 100 + seed)
        yield f"uint16 {name}", _image(channels, size, "uint16"), depth


def _holes() -> Iterator[Case]:
    """Zeros in a uint16 picture are no measurements and enter no average."""
    for seed, name in enumerate(("halved", "a third", "shrunk by a fraction", "grown", "doubled", "shrunk a little")):
        channels, raw, size = _SHAPES[name]
        picture = _picture((*raw, channels), np.uint16, 1000, 200 + seed)
        picture[np.random.default_rng(300 + seed).random(picture.shape) < 0.4] = 0
        yield f"uint16 with holes {name}", _image(channels, size, "uint16"), picture
    yield "uint16 of nothing but holes", _image(1, (4, 4), "uint16"), np.zeros((9, 9), np.uint16)


def _floats() -> Iterator[Case]:
    for seed, name in enumerate(("as it is", "halved", "a third", "shrunk by a fraction", "grown", "from one pixel")):
        channels, raw, size = _SHAPES[name]
        random = np.random.default_rng(400 + seed)
        picture = random.normal(0.0, 0.8, (*raw, channels)).astype(np.float32)
        yield f"float32 {name}", _image(channels, size, "float32"), picture
    huge = np.full((6, 6, 1), 3e38, np.float32)
    huge[::2] = -3e38
    yield "float32 of huge numbers of both signs", _image(1, (3, 3), "float32"), huge


def _sound(rate_hz: float, window_s: float, **more: Any) -> Modality:
    return Modality(name="voice", kind="audio", rate_hz=rate_hz, window_s=window_s, **more)


def _sounds() -> Iterator[Case]:
    random = np.random.default_rng(500)
    seconds = np.arange(4000) / 8000.0
    tone = np.sin(2.0 * np.pi * 440.0 * seconds).astype(np.float32)
    noise = random.normal(0.0, 0.1, 4000).astype(np.float32)
    telephone = _sound(8000.0, 0.2, mel_bands=12)
    yield "audio of noise, longer than the window", telephone, noise
    yield "audio of a full-scale tone", telephone, tone[:1600]
    yield "audio shorter than the window", telephone, noise[:700]
    yield "audio of one sample", telephone, noise[:1]
    yield "audio of silence", telephone, np.zeros(1600, np.float32)
    # Of a full-scale tone the strongest band has -5.9 dB: -80 dB, which is silence, is 0.000197 of its amplitude.
    for share in (0.000196, 0.000198):
        yield f"audio of a tone at {share}", telephone, (tone[:1600] * share).astype(np.float32)
    yield "audio beyond full scale", telephone, (tone[:1600] * 4.0).astype(np.float32)
    yield "audio at 16 kHz", _sound(16000.0, 0.1, mel_bands=20), noise[:1600]
    yield "audio in frames of 220 samples", _sound(11025.0, 0.1, frame_s=0.02, mel_bands=10), noise[:1103]
    yield "audio in frames of 25 samples", _sound(1000.0, 0.3, frame_s=0.025, mel_bands=4), noise[:300]


def _rows() -> Iterator[Case]:
    random = np.random.default_rng(600)
    rows = random.normal(0.0, 2.0, (9, 3)).astype(np.float32)
    motion = Modality(name="motion", kind="sequence", channels=3, length=9, range=(-2.0, 2.0))
    longer = Modality(name="motion", kind="sequence", channels=3, length=14, range=(-2.0, 2.0))
    yield "sequence as it is", motion, rows
    yield "sequence stretched", longer, rows
    yield "sequence squeezed", motion, random.normal(0.0, 2.0, (31, 3)).astype(np.float32)
    yield "sequence of one row", motion, rows[:1]
    bytes_ = Modality(name="motion", kind="sequence", channels=2, length=5, dtype="uint8", range=(0.0, 255.0))
    yield "sequence of bytes", bytes_, random.integers(0, 256, (8, 2), np.uint8)
    vector = Modality(name="weather", kind="vector", length=6, range=(-10.0, 30.0))
    yield "vector", vector, random.normal(10.0, 20.0, 6).astype(np.float32)
    counts = Modality(name="counts", kind="vector", length=4, dtype="uint16", range=(0.0, 3000.0))
    yield "vector of uint16", counts, np.array([0, 1, 1500, 65535], np.uint16)


def _texts() -> Iterator[Case]:
    words = Modality(name="note", kind="text", length=6, vocabulary=1000)
    for name, text in {
        "text": "Two eggs, and 200 g of flour",
        "text longer than its tensor": "one two three four five six seven eight",
        "text without a word": " -- _ ?!",
        "text that is empty": "",
        "text in other scripts": "Crème BRÛLÉE über 寿司 борщ",
        "text of compatible characters": "ﬁnal ½ ＡＢＣ x² İ",
        "text with underscores": "snake_case __dunder__",
    }.items():
        yield name, words, text


def _refused() -> Iterator[Case]:
    grey, colour = _image(1, (4, 4), "uint8"), _image(3, (4, 4), "uint8")
    real = _image(1, (4, 4), "float32")
    voice = _sound(8000.0, 0.2, mel_bands=12)
    motion = Modality(name="motion", kind="sequence", channels=3, length=9)
    bad = np.zeros((5, 5), np.float32)
    bad[2, 3] = np.nan
    yield "refused: another element type", grey, np.zeros((4, 4), np.uint16)
    yield "refused: another number of channels", colour, np.zeros((4, 4, 4), np.uint8)
    yield "refused: a grey picture for a colour one", colour, np.zeros((4, 4), np.uint8)
    yield "refused: an empty picture", grey, np.zeros((0, 4), np.uint8)
    yield "refused: not a number", real, bad
    yield "refused: infinite sound", voice, np.array([0.0, np.inf], np.float32)
    yield "refused: sound of two channels", voice, np.zeros((100, 2), np.float32)
    yield "refused: no sound", voice, np.zeros(0, np.float32)
    yield "refused: rows of another width", motion, np.zeros((4, 2), np.float32)
    yield "refused: no rows", motion, np.zeros((0, 3), np.float32)
    yield "refused: a vector of another length", Modality(name="v", kind="vector", length=3), np.zeros(4, np.float32)
