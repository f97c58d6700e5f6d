"""What healthy sensors show: six kinds of normal stream, rendered by the simulated rig or synthesised.

Axes: H and W pixels of a picture, C channels, T audio samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mars_edge.modality import Modality
from mars_runtime.sensors.driver import Traits
from mars_runtime.sensors.vision import load_opencv

SensorName = Literal["rgb", "depth", "ir", "video", "audio"]
StreamName = Literal["moving", "still", "night", "wall", "strobe", "quiet"]
SENSORS: tuple[SensorName, ...] = ("rgb", "depth", "ir", "video", "audio")
STREAMS: dict[StreamName, tuple[SensorName, ...]] = {
    "moving": ("rgb", "depth", "ir", "video", "audio"),
    "still": ("rgb", "depth", "ir", "video"),
    "night": ("rgb", "depth", "ir", "video"),
    "wall": ("rgb", "depth", "ir", "video"),
    "strobe": ("ir",),
    "quiet": ("audio",),
}
# What the fault table itself calls for in a stream: right to be said, and never a mask.
EXPECTED: dict[StreamName, tuple[str, ...]] = {"night": ("dark",), "wall": ("covered",), "quiet": ("audio-silent",)}
RATE_HZ = 15.0
AUDIO_HZ = 16000
HOP_S = 0.1
WINDOW_S = 1.0
_JPEG_QUALITY = 80
# Seven stops too little light for a colour camera at its longest exposure.
_NIGHT_EV = -7.0
_WALL_MM = 900.0
_OUT_OF_VIEW_MM = 6000.0
# Sound levels, root mean square of full scale.
_ROOM, _SPEECH = 10 ** (-54 / 20), 10 ** (-24 / 20)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One sensor of the bench.

    Attributes:
        stamped: its samples carry the device's time stamp.
        numbered: its samples carry frame numbers.
    """

    name: SensorName
    modality: Modality
    traits: Traits
    stamped: bool
    numbered: bool


@lru_cache(maxsize=8)
def source(name: SensorName) -> Source:
    """The sensor called `name`: three raw cameras of the rig, its colour as compressed video, a microphone."""
    from mars_edge.rig import modalities

    if name == "audio":
        modality = Modality(name="audio", kind="audio", rate_hz=float(AUDIO_HZ), window_s=WINDOW_S)
        traits = Traits(description="microphone", rate_hz=1.0 / HOP_S, raw=True, simulated=True, start_grace_s=2.0)
        return Source(name=name, modality=modality, traits=traits, stamped=False, numbered=False)
    modality = next(m for m in modalities() if m.name == ("rgb" if name == "video" else name))
    raw = name != "video"
    traits = Traits(description=name, rate_hz=RATE_HZ, raw=raw, simulated=True)
    return Source(name=name, modality=modality, traits=traits, stamped=raw, numbered=raw)


@lru_cache(maxsize=64)
def samples(stream: StreamName, sensor: SensorName, count: int, seed: int) -> tuple[NDArray[Any], ...]:
    """`count` consecutive samples of a healthy sensor; the same arguments give the same arrays.

    Raises:
        ValueError: the stream has no such sensor.
    """
    if sensor not in STREAMS[stream]:
        raise ValueError(f"stream {stream} has no {sensor}")
    if sensor == "audio":
        return tuple(_sound(stream, count, seed))
    if sensor == "video":
        return tuple(_compressed(picture) for picture in samples(stream, "rgb", count, seed))
    if stream == "strobe":
        return tuple(_strobed(samples("moving", "ir", count, seed), seed))
    if stream == "wall":
        return tuple(_wall(sensor, count, seed))
    return tuple(_rendered(stream, sensor, count, seed))


def _rendered(stream: StreamName, sensor: SensorName, count: int, seed: int) -> list[NDArray[Any]]:
    from mars_edge.rig import Rig, render

    rig = Rig(seed=seed, rate_hz=RATE_HZ)
    scenes = [rig.scene_at(number / RATE_HZ) for number in range(count)]
    if stream == "still":
        # The same instant over and over: only the sensors' noise differs.
        scenes = [replace(scenes[0], seed=scene.seed) for scene in scenes]
    if stream == "night":
        scenes = [
            replace(scene, imaging=replace(scene.imaging, exposure_ev=_NIGHT_EV), lighting=_moonlight(scene.lighting))
            for scene in scenes
        ]
    return [render(scene, sensor) for scene in scenes]


def _moonlight(lighting: Any) -> Any:
    """No sun in the infrared band: at night only the emitter lights it."""
    return replace(lighting, sun_ir=0.0, ambient_ir=0.0)


def _compressed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cv2 = load_opencv()
    _, code = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    decoded: NDArray[np.uint8] = cv2.imdecode(code, cv2.IMREAD_UNCHANGED)
    return decoded


def _strobed(lit: tuple[NDArray[Any], ...], seed: int) -> list[NDArray[Any]]:
    """The emitter flashes in every second frame; the others show what is left of ambient light, and noise."""
    rng = np.random.default_rng([seed, 1])
    unlit = [np.clip(0.03 * p + rng.normal(3.0, 1.5, p.shape), 0, 255).astype(np.uint8) for p in lit]
    return [on if number % 2 == 0 else off for number, (on, off) in enumerate(zip(lit, unlit, strict=True))]


def _wall(sensor: SensorName, count: int, seed: int) -> list[NDArray[Any]]:
    """A plain wall without any pattern fills the view."""
    from mars_edge.rig import Rig
    from mars_edge.rig.cameras import INFRARED_CAMERA, SIZE, expose_colour, expose_infrared, look, measure_depth
    from mars_edge.rig.species import surface_of

    rng = np.random.default_rng([seed, 2])
    scene = Rig(seed=seed, rate_hz=RATE_HZ).scene_at(0.0)
    if sensor == "rgb":
        plain = np.ones((SIZE, SIZE, 3), np.float32)
        return [expose_colour(plain, scene.imaging, rng) for _ in range(count)]
    signal = np.full((SIZE, SIZE), 0.3, np.float32)
    if sensor == "ir":
        return [expose_infrared(signal, scene.imaging, rng) for _ in range(count)]
    empty = look(INFRARED_CAMERA, surface_of(scene), replace(scene.pose, x_mm=_OUT_OF_VIEW_MM), _WALL_MM)
    doubt = np.full((SIZE, SIZE), 0.05, np.float32)
    return [measure_depth(empty, signal, doubt, scene.imaging, rng) for _ in range(count)]


def _sound(stream: StreamName, count: int, seed: int) -> list[NDArray[np.float32]]:
    """Overlapping windows: a room's noise, and in the moving stream bursts at the rate of syllables."""
    rng = np.random.default_rng([seed, 3])
    hop, window = round(HOP_S * AUDIO_HZ), round(WINDOW_S * AUDIO_HZ)
    total = window + (count - 1) * hop
    signal: NDArray[Any] = _ROOM * rng.standard_normal(total)
    if stream == "moving":
        t_s = np.arange(total) / AUDIO_HZ
        syllables = np.maximum(np.sin(2 * np.pi * 2.3 * t_s + rng.uniform(0, 6)), 0.0)
        phrases = np.sin(2 * np.pi * 0.21 * t_s + rng.uniform(0, 6)) > -0.4
        signal = signal + _SPEECH * syllables * phrases * rng.standard_normal(total)
    signal = np.clip(signal, -1.0, 1.0).astype(np.float32)
    return [signal[number * hop : number * hop + window] for number in range(count)]
