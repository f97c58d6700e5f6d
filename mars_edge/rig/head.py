"""A head is drawn from its identity number alone: the same number gives the same skull, skin and hair, always.

Simulated anatomy, not a statistical face model: an ellipsoid with Gaussian features whose sizes vary by about 10 %.
Skin colour follows a two-chromophore picture (melanin, haemoglobin); in the near infrared melanin absorbs little, so
skin of every colour reflects 0.45 to 0.6 there (Jacques 2013, "Optical properties of biological tissues", Phys. Med.
Biol. 58). Dark hair absorbs less near 850 nm than in the visible; the pupil is dark, the iris brighter than it looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mars_edge.rig.scene import Wear
from mars_edge.rig.surface import (
    FLOOR_MM,
    GRID,
    Array,
    Materials,
    U,
    V,
    bump,
    mix,
    pair,
    smooth_noise,
    step,
)

HEAD_SALT = 0x48454144
EYES_V_MM = -20.0


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The numbers of one simulated head: lengths in mm, shares in 0..1."""

    half_width: float
    half_height: float
    depth: float
    jaw: float
    eye_u: float
    eye_v: float
    socket: float
    brow: float
    nose_length: float
    nose_height: float
    nose_width: float
    mouth_v: float
    mouth_width: float
    lip: float
    chin: float
    cheek: float
    melanin: float
    blood: float
    hair: tuple[float, float, float]
    hair_ir: float
    hair_style: int
    hairline: float
    beard: float
    iris: tuple[float, float, float]
    cloth: tuple[float, float, float]
    cloth_ir: float


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head on the surface grid: height (G, G) in mm, its materials, and masks (G, G) in 0..1 that attacks reuse."""

    anatomy: Anatomy
    height: Array
    materials: Materials
    eyes: Array
    face: Array


def draw_anatomy(identity: int) -> Anatomy:
    """Return the anatomy that belongs to `identity`, the same in every process."""
    rng = np.random.default_rng([HEAD_SALT, identity])

    def about(mean: float, share: float = 0.08) -> float:
        return float(mean * (1.0 + share * np.clip(rng.standard_normal(), -2.2, 2.2)))

    melanin = float(rng.beta(1.1, 1.3))
    grey = rng.random() < 0.15
    tone = float(rng.uniform(0.35, 0.6)) if grey else float(np.exp(rng.uniform(np.log(0.025), np.log(0.3))))
    warmth = 0.03 if grey else float(rng.uniform(0.05, 0.45))
    iris_tone = float(rng.uniform(0.04, 0.2))
    blue = float(rng.uniform(0.4, 1.5))
    return Anatomy(
        half_width=about(74.0, 0.05),
        half_height=about(112.0, 0.05),
        depth=about(92.0, 0.05),
        jaw=float(rng.uniform(0.08, 0.3)),
        eye_u=about(31.5, 0.05),
        eye_v=EYES_V_MM + float(rng.normal(0.0, 2.0)),
        socket=about(11.0, 0.18),
        brow=about(5.0, 0.3),
        nose_length=about(46.0),
        nose_height=about(22.0, 0.13),
        nose_width=about(10.5, 0.13),
        mouth_v=about(51.0, 0.06),
        mouth_width=about(22.0, 0.1),
        lip=about(5.0, 0.25),
        chin=about(8.0, 0.3),
        cheek=about(4.5, 0.35),
        melanin=melanin,
        blood=float(rng.uniform(0.2, 0.9)),
        hair=(tone, tone * (1.0 - 0.6 * warmth), tone * (1.0 - warmth)),
        hair_ir=float(np.clip(0.16 + 0.8 * tone + rng.normal(0.0, 0.04), 0.08, 0.6)),
        hair_style=int(rng.choice(4, p=(0.12, 0.45, 0.13, 0.30))),
        hairline=float(rng.normal(-66.0, 7.0)),
        beard=float(rng.uniform(0.25, 1.0)) if rng.random() < 0.28 else 0.0,
        iris=(iris_tone, iris_tone * (0.6 + 0.3 * blue), iris_tone * blue),
        cloth=_dye(rng),
        cloth_ir=float(rng.uniform(0.2, 0.75)),
    )


@lru_cache(maxsize=48)
def build_head(identity: int, wear: Wear, eyes_closed: bool) -> Head:
    """Return the simulated head of `identity` as it is dressed; cached, so treat its arrays as read-only."""
    a = draw_anatomy(identity)
    rng = np.random.default_rng([HEAD_SALT, identity, 1])
    skull = _skull(a)
    face = step(skull, 5.0, 20.0)
    skin = skull + face * _features(a, rng)
    height, body = _with_body(a, skin)
    height, hair = _with_hair(a, height, skull, rng)
    colour, infrared, eyes = _skin_materials(a, rng, eyes_closed)
    colour, infrared = _cover(colour, infrared, hair, a.hair, a.hair_ir, unreliable=0.35, rng=rng)
    colour, infrared = _cover(colour, infrared, body * (1.0 - hair), a.cloth, a.cloth_ir, unreliable=0.03, rng=rng)
    if wear.hat:
        height, colour, infrared = _with_hat(a, wear.hat, skull, height, colour, infrared)
    if wear.glasses:
        height, colour, infrared = put_on_glasses(a, wear.glasses, height, colour, infrared)
    visible = face * (1.0 - hair) * (1.0 - body)
    materials = Materials(colour=colour, infrared=infrared)
    return Head(anatomy=a, height=_limit_slope(height), materials=materials, eyes=eyes, face=visible)


def _dye(rng: np.random.Generator) -> tuple[float, float, float]:
    """Linear RGB albedo of a dyed cloth."""
    level = float(np.exp(rng.uniform(np.log(0.04), np.log(0.6))))
    r, g, b = np.clip(level * np.exp(rng.normal(0.0, 0.35, 3)), 0.02, 0.8)
    return (float(r), float(g), float(b))


def _skull(a: Anatomy) -> Array:
    """Ellipsoid above the ear plane, narrowing towards the chin; FLOOR_MM outside."""
    narrow = 1.0 - a.jaw * step(V, 60.0, 130.0)
    r2 = (np.abs(U)[None, :] / (a.half_width * narrow)[:, None]) ** 2.3
    r2 = r2 + (np.abs(V[:, None] + 6.0) / a.half_height) ** 2.3
    h = a.depth * np.sqrt(np.maximum(1.0 - r2, 0.0))
    # Behind the rim the skull goes back down: a finite slope keeps the ray caster's iteration stable.
    return np.asarray(np.where(r2 < 1.0, h, np.maximum(-180.0 * (r2 - 1.0), FLOOR_MM)), np.float32)


def _features(a: Anatomy, rng: np.random.Generator) -> Array:
    h = -a.socket * pair(a.eye_u, a.eye_v, 13.0, 8.5)
    h += 5.0 * pair(a.eye_u, a.eye_v + 0.5, 8.0, 6.0)
    h += a.brow * pair(a.eye_u - 3.0, a.eye_v - 14.0, 17.0, 5.0)
    h += a.cheek * pair(46.0, 12.0, 15.0, 14.0) - 3.0 * pair(42.0, 50.0, 13.0, 17.0)
    h += _nose(a)
    m, lip = a.mouth_v, a.lip
    h += lip * bump(0.0, m - 5.5, 0.75 * a.mouth_width, 4.0) + 1.15 * lip * bump(
        0.0, m + 6.0, 0.65 * a.mouth_width, 4.5
    )
    h -= 4.5 * bump(0.0, m, 0.9 * a.mouth_width, 2.2) + 3.5 * bump(0.0, m + 17.0, 17.0, 5.0)
    h += 4.0 * bump(0.0, m, 30.0, 18.0) + a.chin * bump(0.0, m + 34.0, 17.0, 11.0)
    h += 0.5 * smooth_noise(rng, 24) + 0.9 * smooth_noise(rng, 9)
    return np.asarray(h, np.float32)


def _nose(a: Anatomy) -> Array:
    top = a.eye_v - 4.0
    t = np.clip((V - top) / a.nose_length, 0.0, 1.25)
    rise = (0.22 + 0.78 * t**1.2) * step(V, top, 14.0) * (1.0 - step(V, top + 1.1 * a.nose_length, 9.0))
    width = a.nose_width * (0.62 + 0.38 * t)
    ridge = np.exp(-0.5 * (U[None, :] / width[:, None]) ** 2) * (a.nose_height * rise)[:, None]
    wings = 6.0 * pair(1.15 * a.nose_width, top + a.nose_length, 5.5, 5.5)
    return np.asarray(ridge + wings, np.float32)


def _with_body(a: Anatomy, height: Array) -> tuple[Array, Array]:
    """Add ears, neck and shoulders; return the new height and the (G, G) mask of clothes."""
    ears = np.where(pair(a.half_width + 6.0, -2.0, 9.0, 24.0) > 0.45, -4.0, FLOOR_MM)
    neck = np.where(V[:, None] > 40.0, 42.0 * np.sqrt(np.maximum(1.0 - (U / 58.0) ** 2, 0.0))[None, :] - 8.0, FLOOR_MM)
    neck = np.where(np.abs(U)[None, :] < 57.5, neck, FLOOR_MM)
    slope = 148.0 + 0.0016 * U**2
    below = (V[:, None] - slope[None, :]) / 60.0
    chest = np.where(below > 0.0, -25.0 + 75.0 * np.sqrt(np.clip(below, 0.0, 1.0)), FLOOR_MM)
    new = np.maximum.reduce([height, ears, neck, chest]).astype(np.float32)
    return new, ((chest >= new - 0.5) & (chest > FLOOR_MM)).astype(np.float32)


def _with_hair(a: Anatomy, height: Array, skull: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Raise the scalp by the hair's thickness and let long hair fall behind; return height and hair mask (G, G)."""
    strands = smooth_noise(rng, 48) + 1.5 * smooth_noise(rng, 12)
    if a.hair_style == 0:
        return height, np.zeros((GRID, GRID), np.float32)
    edge = a.hairline + 0.0105 * U**2 + 2.5 * smooth_noise(rng, 10)
    scalp = (1.0 - step((V[:, None] - edge).astype(np.float32), 0.0, 7.0)) * (skull > -40.0)
    thick = (0.0, 7.0, 3.0, 11.0)[a.hair_style]
    new = height + scalp * (thick + 1.2 * strands)
    mask = scalp
    if a.hair_style == 3:
        fall = float(rng.uniform(40.0, 170.0))
        above = np.abs(np.minimum(V, 0.0) + 6.0) / (a.half_height + 9.0)
        r2 = (np.abs(U)[None, :] / (a.half_width + 17.0)) ** 2.4 + above[:, None] ** 2.4
        curtain = np.where((r2 < 1.0) & (V[:, None] < fall), 46.0 * np.sqrt(np.maximum(1.0 - r2, 0.0)), FLOOR_MM)
        over = (curtain > new).astype(np.float32)
        new = np.where(over > 0, curtain + 1.5 * strands, new)
        mask = np.maximum(mask, over)
    return new.astype(np.float32), mask.astype(np.float32)


def _skin_colour(a: Anatomy) -> Array:
    light = np.log(np.array([0.70, 0.50, 0.40], np.float32))
    dark = np.log(np.array([0.155, 0.085, 0.055], np.float32))
    blood = np.array([0.0, -0.22, -0.18], np.float32) * (a.blood - 0.4)
    return np.asarray(np.exp(light + (dark - light) * a.melanin + blood), np.float32)


def _skin_materials(a: Anatomy, rng: np.random.Generator, closed: bool) -> tuple[Array, Array, Array]:
    """Return colour (G, G, 4), infrared (G, G, 4) and the mask of the two eye openings (G, G)."""
    skin = _skin_colour(a)
    spots = 1.0 + 0.05 * smooth_noise(rng, 30) + 0.04 * smooth_noise(rng, 8)
    rgb = spots[..., None] * skin
    ir = (0.56 - 0.10 * a.melanin) * (1.0 + 0.025 * smooth_noise(rng, 14))
    red = 0.35 * a.blood * (pair(42.0, 14.0, 16.0, 14.0) + bump(0.0, 18.0, 9.0, 8.0))
    rgb = rgb * (1.0 - red[..., None] * np.array([0.0, 0.35, 0.3], np.float32))
    ir *= 1.0 - 0.16 * pair(a.eye_u, a.eye_v + 9.0, 13.0, 5.0)
    rgb, ir = _lips(a, rgb, ir)
    rgb, ir = _brows_and_beard(a, rgb, ir, rng)
    rgb, ir, eyes, wet = _eyes(a, rgb, ir, closed)
    shine = 0.035 * (1.0 + 0.8 * bump(0.0, -55.0, 30.0, 20.0) + 0.8 * bump(0.0, 15.0, 8.0, 18.0)) + 0.06 * wet
    colour = np.dstack([rgb, shine]).astype(np.float32)
    wrap = np.full((GRID, GRID), 0.15, np.float32)
    infrared = np.dstack([ir, 0.8 * shine, wrap, 0.25 * eyes]).astype(np.float32)
    return colour, infrared, eyes


def _lips(a: Anatomy, rgb: Array, ir: Array) -> tuple[Array, Array]:
    lip = np.minimum(1.0, 1.3 * bump(0.0, a.mouth_v, 0.62 * a.mouth_width, 5.0 + 0.5 * a.lip))
    slit = bump(0.0, a.mouth_v + 0.5, 0.85 * a.mouth_width, 1.7)
    nostrils = pair(6.5, a.eye_v + a.nose_length + 2.5, 3.3, 2.2)
    rgb = rgb * (1.0 - lip[..., None] * np.array([0.18, 0.50, 0.42], np.float32))
    dark = 1.0 - np.minimum(0.8 * slit + 0.75 * nostrils, 0.9)
    ir = ir * (1.0 - 0.10 * lip) * (0.25 + 0.75 * dark)
    return (rgb * dark[..., None]).astype(np.float32), ir.astype(np.float32)


def _brows_and_beard(a: Anatomy, rgb: Array, ir: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    arch = a.eye_v - 15.0 + 0.006 * (np.abs(U) - a.eye_u) ** 2
    brow = np.exp(-0.5 * ((V[:, None] - arch) / 3.0) ** 2) * step(np.abs(U), a.eye_u - 17.0, 8.0)
    brow = brow * (1.0 - step(np.abs(U), a.eye_u + 16.0, 8.0))
    edge = 38.0 - 0.004 * (np.abs(U) - 60.0) ** 2 * np.sign(60.0 - np.abs(U))
    beard = step((V[:, None] - edge).astype(np.float32), 0.0, 14.0) * (1.0 - step(V, 130.0, 20.0))[:, None]
    around = 1.0 - np.minimum(1.0, 1.4 * bump(0.0, a.mouth_v + 1.0, 0.8 * a.mouth_width, 6.0))
    hairy = np.clip(0.85 * brow + a.beard * beard * around * (0.85 + 0.15 * smooth_noise(rng, 40)), 0.0, 0.95)
    return mix(rgb, a.hair, hairy), mix(ir, a.hair_ir, hairy.astype(np.float32))


def _eyes(a: Anatomy, rgb: Array, ir: Array, closed: bool) -> tuple[Array, Array, Array, Array]:
    x = (np.abs(U) - a.eye_u)[None, :]
    y = (V - a.eye_v)[:, None]
    lens = (np.abs(x) / 14.5) ** 2 + (np.abs(y) / 6.2) ** 1.7
    opening = np.clip((1.12 - lens) * 4.0, 0.0, 1.0).astype(np.float32)
    lash = np.exp(-0.5 * ((y + 5.2 - 0.02 * x * x) / 1.5) ** 2) * (np.abs(x) < 15.0)
    if closed:
        lash = np.exp(-0.5 * ((y - 3.0 + 0.012 * x * x) / 1.3) ** 2) * (np.abs(x) < 14.0)
        nothing = np.zeros((GRID, GRID), np.float32)
        return _darken(rgb, 0.6 * lash), _darken(ir, 0.4 * lash), opening, nothing
    r = np.sqrt(x * x + y * y)
    iris, pupil = (np.clip(radius - r, 0.0, 1.0).astype(np.float32) for radius in (6.8, 2.9))
    ball = mix(np.broadcast_to(np.array([0.62, 0.58, 0.55], np.float32), rgb.shape), a.iris, iris)
    ball = mix(ball, (0.01, 0.01, 0.01), pupil)
    ball_ir = mix(mix(np.full((GRID, GRID), 0.42, np.float32), 0.26, iris), 0.03, pupil)
    rgb, ir = mix(rgb, ball, opening), mix(ir, ball_ir, opening)
    return _darken(rgb, 0.65 * lash), _darken(ir, 0.35 * lash), opening, opening


def _darken(albedo: Array, share: NDArray[np.floating[Any]]) -> Array:
    keep = 1.0 - share
    return np.asarray(albedo * (keep[..., None] if albedo.ndim == 3 else keep), np.float32)


def _cover(
    colour: Array,
    infrared: Array,
    mask: Array,
    rgb: tuple[float, float, float],
    ir: float,
    *,
    unreliable: float,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Return materials with a matt, textured cover (hair, cloth) where `mask` (G, G) is 1."""
    texture = np.clip(1.0 + 0.14 * smooth_noise(rng, 56) + 0.08 * smooth_noise(rng, 12), 0.4, 1.7)
    over = np.dstack([texture * rgb[0], texture * rgb[1], texture * rgb[2], np.full_like(texture, 0.012)])
    flat = np.full_like(texture, 0.01)
    over_ir = np.dstack([texture * ir, flat, 8.0 * flat, unreliable + 0.0 * flat])
    return mix(colour, over.astype(np.float32), mask), mix(infrared, over_ir.astype(np.float32), mask)


def _with_hat(
    a: Anatomy, seed: int, skull: Array, height: Array, colour: Array, infrared: Array
) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng([HEAD_SALT, seed, 2])
    edge = a.eye_v - 38.0 + 0.0015 * U**2
    mask = ((V[:, None] < edge) & (skull > -60.0)).astype(np.float32)
    brim = bump(0.0, a.eye_v - 40.0, 45.0, 7.0) * float(rng.uniform(0.0, 32.0))
    tone, tone_ir = _dye(rng), float(rng.uniform(0.2, 0.7))
    colour, infrared = _cover(colour, infrared, mask, tone, tone_ir, unreliable=0.05, rng=rng)
    return (height + mask * (12.0 + brim)).astype(np.float32), colour, infrared


def put_on_glasses(a: Anatomy, kind: int, height: Array, colour: Array, infrared: Array) -> tuple[Array, Array, Array]:
    """Return height, colour and infrared with glasses of `kind` (1 clear, 2 sunglasses) before the eyes."""
    x = (np.abs(U) - a.eye_u - 2.0)[None, :]
    y = (V - a.eye_v - 4.0)[:, None]
    r = ((np.abs(x) / 25.0) ** 3 + (np.abs(y) / 19.0) ** 3) ** (1 / 3)
    frame = np.exp(-0.5 * ((r - 1.0) / 0.065) ** 2)
    bridge = (np.abs(U) < 8.0)[None, :] * np.exp(-0.5 * ((y + 6.0) / 2.2) ** 2)
    arms = (np.abs(x) > 24.0) * (x > 0) * np.exp(-0.5 * ((y + 6.0) / 2.2) ** 2) * (np.abs(U) < a.half_width)[None, :]
    rim = np.clip(frame + bridge + arms, 0.0, 1.0).astype(np.float32)
    lens = np.clip((1.0 - r) * 8.0, 0.0, 1.0).astype(np.float32)
    dark = 0.93 if kind == 2 else 0.06
    # Many sunglasses pass near infrared; the lens still throws back a mirror image of the emitter.
    glass = mix(colour, np.array([0.02, 0.02, 0.02, 0.25], np.float32), dark * lens)
    glass_ir = mix(infrared, np.array([0.08, 0.3, 0.0, 0.8], np.float32), (0.45 if kind == 2 else 0.12) * lens)
    glass_ir[..., 3] = np.maximum(glass_ir[..., 3], 0.4 * lens)
    new = height + 7.0 * rim * np.clip(1.0 - np.abs(U) / 90.0, 0.0, 1.0)
    glass = mix(glass, np.array([0.03, 0.03, 0.035, 0.1], np.float32), rim)
    glass_ir = mix(glass_ir, np.array([0.10, 0.1, 0.0, 0.4], np.float32), rim)
    return np.asarray(new, np.float32), glass, glass_ir


def _limit_slope(height: Array) -> Array:
    """Soften edges by about one cell; steeper walls than that make the ray iteration oscillate."""
    return np.asarray(cv2.GaussianBlur(height, (3, 3), 0.7), np.float32)
