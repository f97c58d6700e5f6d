"""Frames in a row from one sensor, and what is measured of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.encoding import array
from mars_runtime.facts import FactFinder
from mars_runtime.health import SampleSeen
from mars_runtime.limits import SensorKind
from mars_runtime.sensors.driver import Frame, Traits

_DEFAULTS = {f.name: f.default for f in fields(SampleSeen)}
_RAW = Traits(description="raw", rate_hz=10.0, raw=True)
_COMPRESSED = Traits(description="compressed", rate_hz=10.0)
_FILE = Traits(description="file", rate_hz=10.0, finite=True)
_STILL = Traits(description="still", rate_hz=10.0, static=True)
Arrays = Sequence[NDArray[Any]]
Case = tuple[str, SensorKind, Traits, Arrays, Sequence[int | None]]


def facts_cases() -> list[dict[str, Any]]:
    """Each sensor's frames with the facts of each, those at their defaults left out."""
    return [*(_case(*case) for case in _cases()), _large_case()]


def seen_table(seen: SampleSeen) -> dict[str, Any]:
    """The facts that differ from their defaults, and the receipt."""
    values = {name: getattr(seen, name) for name in _DEFAULTS}
    return {name: value for name, value in values.items() if name == "at_s" or value != _DEFAULTS[name]}


def _case(name: str, kind: SensorKind, traits: Traits, arrays: Arrays, numbers: Sequence[int | None]) -> dict[str, Any]:
    finder = FactFinder(kind, rate_hz=8000.0)
    frames = []
    for index, (data, sequence) in enumerate(zip(arrays, numbers, strict=True)):
        at_s = 100.0 + index * traits.period_s
        seen = finder.facts(Frame(data=data, sequence=sequence), traits, at_s)
        frames.append({"data": array(data), "sequence": sequence, "at_s": at_s, "facts": seen_table(seen)})
    return {"name": name, "kind": kind, "audio_rate_hz": 8000.0, "traits": _kept(traits), "frames": frames}


def _large_case() -> dict[str, Any]:
    """Pictures so large that every step of thinning shows, each stored as the tile that it repeats.

    What is measured of their texture is noise averaged over areas: which areas decides whether it is there.
    """
    random = np.random.default_rng(701)
    tiles = [np.clip(random.normal(128.0, spread, (75, 60)), 0, 255).astype(np.uint8) for spread in (8.0, 5.0)]
    name, repeats = "infrared, compressed, 600 x 600", (8, 10)
    case = _case(name, "infrared", _COMPRESSED, [np.tile(tile, repeats) for tile in tiles], [None] * 2)
    small = [frame | {"data": array(tile)} for frame, tile in zip(case["frames"], tiles, strict=True)]
    return case | {"repeats": list(repeats), "frames": small}


def _kept(traits: Traits) -> dict[str, Any]:
    return {key: getattr(traits, key) for key in ("rate_hz", "raw", "static", "finite")}


def _cases() -> Iterator[Case]:
    random = np.random.default_rng(700)
    noisy = [random.integers(40, 200, (20, 24, 3), np.uint8) for _ in range(3)]
    yield "colour, raw", "colour", _RAW, noisy, [0, 1, 2]
    yield "colour, numbers that stand", "colour", _RAW, noisy, [5, 5, 4]
    yield "colour, raw and repeated", "colour", _RAW, [noisy[0], noisy[0], noisy[1]], [None] * 3
    still = [noisy[0], noisy[0], np.clip(noisy[0].astype(int) + 3, 0, 255).astype(np.uint8), noisy[2], noisy[2]]
    yield "colour, compressed and still", "colour", _COMPRESSED, still, [None] * 5
    yield "colour, a file may be still", "colour", _FILE, still[:2], [None] * 2
    yield "colour, a still image repeats", "colour", _STILL, still[:2], [None] * 2
    black, white = np.zeros((20, 24), np.uint8), np.full((20, 24), 255, np.uint8)
    yield "infrared, dark and bright", "infrared", _RAW, [black, black, white, white], [0, 1, 2, 3]
    slope = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1))
    field = np.clip(30 + random.normal(0.0, 0.8, (60, 80)), 0, 255).astype(np.uint8)
    half = slope.copy()
    half[:, :40] = field[:, :40]
    yield "infrared, textured, covered and half covered", "infrared", _RAW, [slope, field, half], [0, 1, 2]
    large = random.normal(120.0, 12.0, (130, 400, 3)).clip(0, 255).astype(np.uint8)
    yield "colour, larger than what is looked at", "colour", _RAW, [large], [0]
    yield "colour, too small for blocks and noise", "colour", _RAW, [noisy[0][:2, :2], noisy[0][:9, :9]], [0, 1]
    yield from _depths(random)
    yield from _sounds(random)
    rows = random.normal(0.0, 1.0, (5, 3)).astype(np.float32)
    bad = rows.copy()
    bad[1, 1] = np.nan
    yield "rows, not a number, repeated", "other", _RAW, [rows, bad, rows, rows], [None] * 4
    yield from _at_the_bounds()


def _at_the_bounds() -> Iterator[Case]:
    """The values nearest to each bound on both sides of it: another bound gives other facts."""
    shades = [np.full((20, 24), value, np.uint8) for value in (25, 26, 249, 250)]
    yield "colour, at the bounds of dark and saturated", "colour", _RAW, shades, range(4)
    depths = [np.full((24, 20), value, np.uint16) for value in (64224, 64225)]
    yield "depth, at the bound of saturated", "depth", _RAW, depths, range(2)
    # Each thinned column is deeper than the one before by 9.8 % and 10.2 %: of one surface, and of none.
    stairs = [(1000 * np.tile(ratio ** (np.arange(24) // 4), (24, 1))).astype(np.uint16) for ratio in (1.098, 1.102)]
    yield "depth, at the bound of one surface", "depth", _RAW, stairs, range(2)
    # 49 and 50 neighbourhoods of 3 x 3.
    strips = [(500 + np.arange(3 * width).reshape(3, width) * 37 % 11).astype(np.uint16) for width in (51, 52)]
    yield "depth, at the bound of too little to measure", "depth", _RAW, strips, range(2)
    # Of 2000 pixels one percent is 20.
    lit = [_with_pixels((40, 50), count, 100) for count in (19, 19, 20, 20)]
    yield (
        "infrared, repeated with too little to tell by, and enough",
        "infrared",
        _RAW,
        lit,
        [None] * 4,
    )
    # Every fourth pixel of 120 x 120 is 900: by one shade in 229 of them they differ by less than 0.001.
    few, many = (_with_pixels((30, 30), count, 1).repeat(4, 0).repeat(4, 1) for count in (229, 230))
    none = np.zeros((120, 120), np.uint8)
    yield "infrared, stands still", "infrared", _COMPRESSED, [none, few, none], [None] * 3
    yield "infrared, hardly moves", "infrared", _COMPRESSED, [none, many, none], [None] * 3
    # The deviation of the areas of a block is 2.016, 2.041: 0.008 of the range is 2.04.
    pale = [_blocks(*given) for given in ((18, 10), (17, 13))]
    yield "infrared, at the bound of texture", "infrared", _RAW, pale, range(2)
    full = np.float32(0.999)
    below = np.nextafter(full, np.float32(0.0))
    windows = [np.tile(np.array([level, -level], np.float32), 400) for level in (below, full)]
    yield "sound, at the bound of full scale", "audio", _RAW, windows, [None] * 2


def _with_pixels(shape: tuple[int, int], count: int, value: int) -> NDArray[np.uint8]:
    """Black but for so many pixels."""
    picture = np.zeros(shape, np.uint8)
    picture.flat[:count] = value
    return picture


def _blocks(quarters: int, count: int) -> NDArray[np.uint8]:
    """5 x 5 blocks of 6 x 6 areas of 2 x 2 pixels, `count` areas of each brighter by `quarters` of a shade."""
    areas = np.where(np.arange(36).reshape(6, 6) < count, quarters, 0).repeat(2, 0).repeat(2, 1)
    # Whole shades whose mean over an area is the wanted one.
    dither = np.tile([[0, 1], [2, 3]], (6, 6))
    return np.tile(100 + (areas + dither) // 4, (5, 5)).astype(np.uint8)


def _depths(random: np.random.Generator) -> Iterator[Case]:
    scattered = random.integers(300, 800, (24, 20), np.uint16)
    slope = np.linspace(400, 700, 90)[None, :] + np.linspace(0, 60, 70)[:, None]
    face = np.clip(slope + random.normal(0.0, 2.0, slope.shape), 1, 65535).astype(np.uint16)
    holes, few = face.copy(), face.copy()
    holes[random.random(holes.shape) < 0.1] = 0
    few[random.random(few.shape) < 0.95] = 0
    glare, nothing = np.full((24, 20), 65535, np.uint16), np.zeros((24, 20), np.uint16)
    pictures = [face, holes, few, scattered, glare, nothing, face[:2, :2]]
    yield "depth, whole, with holes, nearly gone, scattered, at its end, gone, tiny", "depth", _RAW, pictures, range(7)
    yield "depth of one channel, larger than what is looked at", "depth", _RAW, [np.tile(face, (2, 3))[:, :, None]], [0]
    yield "depth of another type", "depth", _RAW, [scattered.astype(np.float32)], [0]


def _sounds(random: np.random.Generator) -> Iterator[Case]:
    noise = random.normal(0.0, 0.1, 1600).astype(np.float32)
    ends_silent, loud = noise.copy(), noise.copy()
    ends_silent[-500:] = 0.0
    loud[-100:] = 1.0
    silence = np.zeros(1600, np.float32)
    windows = [noise, ends_silent, silence, silence, loud]
    yield "sound of a live microphone", "audio", _RAW, windows, [None] * 5
    yield "sound of a file", "audio", _FILE, windows[:3], [None] * 3
