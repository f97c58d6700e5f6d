"""What is decided on while time is measured: raw samples as sensors give them, so that preprocessing is timed too.

Axes: H rows and W columns of a picture, C channels, T audio samples or rows of a sequence, L values or words.
Generated samples are seeded and shaped like a healthy sensor's: a smooth scene with a little noise in the middle half
of the range, depth pictures with holes; eight different ones per modality in turn. Files are those of `predict`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.modality import Modality
from mars_runtime.facts import FactFinder
from mars_runtime.health import SampleSeen
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits
from mars_runtime.sensors.simulated import World
from mars_runtime.sensors.source import SensorSpec, make_driver

PICTURE = (480, 640)
_VARIANTS = 8
# Windows of sound and rows of a sequence arrive in overlapping pieces, pictures at the camera's own rate.
_WINDOW_RATE_HZ = 15.0
_HOLES = 0.02
_NOISE = 0.004
_WORDS = ("red", "light", "left", "door", "open", "person", "walks", "slowly", "to", "the", "window", "and", "waits")


@dataclass(frozen=True, kw_only=True)
class Input:
    """The samples of one modality.

    Attributes:
        frames: used in turn.
        facts: what health is told about each of them.
        traits: of the sensor they stand for.
        description: where they come from, their shape and type.
        digest: of all their bytes, shortened; equal for equal samples.
    """

    modality: Modality
    frames: Sequence[Frame]
    facts: Sequence[SampleSeen]
    traits: Traits
    description: str
    digest: str


def generated(manifest: Manifest, *, picture: tuple[int, int] = PICTURE, seed: int = 0) -> dict[str, Input]:
    """Samples for every modality; the same seed gives the same ones.

    Args:
        manifest: of the model.
        picture: height and width of every generated picture.
        seed: of the generator.
    """
    found = {}
    for index, modality in enumerate(manifest.modalities):
        generator = np.random.default_rng((seed, index))
        samples = [_sample(modality, generator, picture) for _ in range(_VARIANTS)]
        found[modality.name] = _input(modality, samples, f"generated, seed {seed}", static=False)
    return found


def from_files(manifest: Manifest, paths: Mapping[str, Path]) -> dict[str, Input]:
    """The first sample, of a recording up to eight, of each file.

    Raises:
        UsageError: a file does not fit its modality.
    """
    found = {}
    for name, path in paths.items():
        modality = manifest.modality(name)
        found[name] = _input(modality, _read(modality, path), f"file {path.name}", static=True)
    return found


def single(modality: Modality, sample: Any) -> Input:
    """One sample for ever."""
    return _input(modality, [sample], "one sample", static=True)


def _input(modality: Modality, samples: Sequence[Any], origin: str, *, static: bool) -> Input:
    rate_hz = modality.rate_hz if modality.kind == "image" else _WINDOW_RATE_HZ
    traits = Traits(description=origin, rate_hz=rate_hz, static=static)
    frames = [Frame(data=sample) for sample in samples]
    finder = FactFinder.of(modality)
    known = [_facts(finder, frame, traits) for frame in frames]
    return Input(
        modality=modality,
        frames=frames,
        facts=known,
        traits=traits,
        description=f"{origin}, {_shape(samples[0])}",
        digest=_digest(samples),
    )


def _facts(finder: FactFinder, frame: Frame, traits: Traits) -> SampleSeen:
    """What a capture thread would say; nothing is measured on text."""
    return SampleSeen(at_s=0.0) if isinstance(frame.data, str) else finder.facts(frame, traits, 0.0)


def _shape(sample: Any) -> str:
    if isinstance(sample, str):
        return f"{len(sample)} characters"
    return f"{' x '.join(map(str, sample.shape))} {sample.dtype}"


def _digest(samples: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.encode() if isinstance(sample, str) else np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()[:16]


def _sample(modality: Modality, generator: np.random.Generator, picture: tuple[int, int]) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "image": lambda: _picture(modality, generator, picture),
        "audio": lambda: _sound(modality, generator),
        "sequence": lambda: _rows(modality, generator),
        "vector": lambda: _values(modality, generator, (modality.length or 1,)),
        "text": lambda: " ".join(generator.choice(_WORDS, size=modality.length or 1)),
    }
    return makers[modality.kind]()


def _picture(modality: Modality, generator: np.random.Generator, size: tuple[int, int]) -> NDArray[Any]:
    """(H, W) or (H, W, C) of the modality's type: a smooth scene in the middle half of the range, noise, holes."""
    import cv2

    height, width = size
    planes = []
    for _ in range(modality.channels):
        scene = cv2.resize(generator.random((9, 12), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        planes.append(0.25 + 0.5 * scene + generator.normal(0.0, _NOISE, (height, width)).astype(np.float32))
    low, high = modality.range
    values = np.clip(low + (high - low) * np.stack(planes, axis=-1), low, high)
    made = values if modality.dtype == "float32" else np.rint(values)
    image: NDArray[Any] = made.astype(modality.dtype)
    if modality.dtype == "uint16":
        # Depth cameras miss patches, not single pixels.
        holes = (generator.random((24, 32)) < _HOLES).astype(np.uint8)
        image[cv2.resize(holes, (width, height), interpolation=cv2.INTER_NEAREST) > 0] = 0
    return np.ascontiguousarray(image[:, :, 0] if modality.channels == 1 else image)


def _sound(modality: Modality, generator: np.random.Generator) -> NDArray[np.float32]:
    """(T,): three tones in noise, in -1..1."""
    at_s = np.arange(modality.window_samples) / modality.rate_hz
    tones = sum(np.sin(2.0 * np.pi * hz * at_s) for hz in generator.uniform(100.0, modality.rate_hz / 4.0, size=3))
    sound: NDArray[np.float32] = (0.2 * tones + generator.normal(0.0, 0.02, at_s.size)).astype(np.float32)
    return np.clip(sound, -1.0, 1.0)


def _rows(modality: Modality, generator: np.random.Generator) -> NDArray[Any]:
    return _values(modality, generator, (modality.length or 1, modality.channels))


def _values(modality: Modality, generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    """Uniform in the middle half of the range."""
    low, high = modality.range
    values = low + (high - low) * generator.uniform(0.25, 0.75, shape)
    made: NDArray[Any] = (values if modality.dtype == "float32" else np.rint(values)).astype(modality.dtype)
    return made


def _read(modality: Modality, path: Path) -> list[Any]:
    if modality.kind == "text":
        return [_text(modality, path)]
    spec = SensorSpec(name=modality.name, source=str(path))
    driver = make_driver(spec, modality, World(0, modality.rate_hz))
    driver.open()
    try:
        samples: list[Any] = []
        # A still gives the same picture for ever.
        while len(samples) < (1 if driver.traits.static else _VARIANTS):
            try:
                frame = driver.read(1.0)
            except SourceEndedError:
                break
            if frame is not None:
                samples.append(frame.data)
                if frame.last:
                    break
    finally:
        driver.close()
    for sample in samples:
        modality.preprocess(sample)
    return samples


def _text(modality: Modality, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"profile: --{modality.name} {path}: not readable as UTF-8 text") from error
