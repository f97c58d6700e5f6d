"""Each species is built from what it is physically made of; nothing is labelled by painting a cue onto a picture.

Where the infrared differences come from (simulated after these, numbers chosen by us):
- Dye-based printing inks are transparent near 850 nm, carbon-black pigment is not, so one and the same colour print is
  blank paper or a grey picture in the infrared (metameric infrared inks, standard in security printing). An attacker
  who knows this prints an infrared capture instead, which fools an infrared camera by itself (Chingovska et al. 2016,
  "Face recognition systems under spoofing attacks", the MSSpoof data); most of our sheets do.
- A liquid-crystal or OLED panel emits next to nothing above 700 nm: a replay is a dark glass plate that mirrors the
  emitter (the reason why near-infrared face cameras reject replays; e.g. Zhang et al. 2020, CASIA-SURF).
- Silicone scatters light further below its surface than skin and carries no blood or melanin patterns, so its infrared
  shading is softer and its contrast lower; its level depends on pigments and overlaps with skin (George et al. 2020,
  "Biometric face presentation attack detection with multi-channel CNN", WMCA). Its *shape* is a true head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from mars_edge.rig.cameras import Camera, View, infrared_radiance, look, radiance
from mars_edge.rig.head import Head, build_head, put_on_glasses
from mars_edge.rig.scene import Artefact, Pose, Scene, Wear, sample_lighting
from mars_edge.rig.surface import (
    CELL_MM,
    FLOOR_MM,
    GRID,
    U_MIN_MM,
    V_MIN_MM,
    Array,
    Materials,
    Surface,
    U,
    V,
    bump,
    make_surface,
    mix,
    pair,
    smooth_noise,
)

SKIN_GLOSS = 14.0
PHOTO_MM = 900.0
SHEET_CENTRE_V_MM = 5.0
# Chosen so that one photo pixel is one grid cell at the face: the print is life-size before `Artefact.scale`.
_PHOTO_CAMERA = Camera(size=GRID, focal_px=PHOTO_MM / CELL_MM, centre_mm=(0.0, 0.0, 0.0))
_PHOTO_POSE = Pose(
    yaw_deg=0.0,
    pitch_deg=0.0,
    roll_deg=0.0,
    x_mm=-(U_MIN_MM + CELL_MM * (GRID - 1) / 2),
    y_mm=-(V_MIN_MM + CELL_MM * (GRID - 1) / 2),
    distance_mm=PHOTO_MM,
)


def surface_of(scene: Scene) -> Surface:
    """Return what stands before the cameras in `scene`; cached on everything but pose, light, sensors and noise."""
    # Where no real eye can be seen a blink changes nothing: do not build the same thing twice.
    blinks = scene.eyes_closed and scene.species in ("bona_fide", "cutout_print")
    return _build(scene.species, scene.identity, scene.bearer, scene.wear, blinks, scene.artefact)


@lru_cache(maxsize=24)
def _build(species: str, identity: int, bearer: int, wear: Wear, eyes_closed: bool, artefact: Artefact) -> Surface:
    if species == "bona_fide":
        head = build_head(identity, wear, eyes_closed)
        return make_surface(head.height, head.materials, gloss=SKIN_GLOSS)
    # A bearer who is hidden behind a held sheet is not built: a head costs more than a frame.
    behind = build_head(bearer, replace(wear, glasses=0), eyes_closed) if artefact.worn else None
    if species == "silicone_mask":
        assert behind is not None
        return _mask(identity, behind, wear, artefact)
    photo = _photo(identity, wear, artefact.seed)
    if species == "screen_replay":
        return _panel(photo, artefact)
    return _sheet(photo, behind, artefact)


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A picture of somebody, linear, 0..1: colour (G, G, 3), infrared (G, G), person (G, G) 1 where not background."""

    colour: Array
    infrared: Array
    person: Array


def _photo(identity: int, wear: Wear, seed: int) -> Photo:
    """Return a picture of `identity` taken head-on under its own light."""
    rng = np.random.default_rng([0x50484F54, seed])
    light, wall = sample_lighting(rng), (int(rng.integers(1 << 31)), PHOTO_MM + float(rng.uniform(600.0, 2400.0)))
    head = build_head(identity, wear, False)
    surface = make_surface(head.height, head.materials, gloss=SKIN_GLOSS)
    view: View = look(_PHOTO_CAMERA, surface, _PHOTO_POSE, wall[1])
    colour = radiance(view, surface, light, wall)
    infrared, _ = infrared_radiance(view, surface, light, wall)
    face = (slice(40, 120), slice(60, 132))
    colour *= 0.3 / max(float(colour[face].mean()), 1e-3)
    mean = colour.reshape(-1, 3).mean(0)
    colour *= (mean.mean() / np.maximum(mean, 1e-3)) ** 0.7
    infrared *= 0.45 / max(float(infrared[face].mean()), 1e-3)
    return Photo(
        colour=np.asarray(np.clip(colour, 0.0, 1.0), np.float32),
        infrared=np.asarray(np.clip(infrared, 0.0, 1.0), np.float32),
        person=view.present.astype(np.float32),
    )


def _reproduce(picture: Array, artefact: Artefact, rng: np.random.Generator) -> Array:
    """Return the picture (G, G, 3) as the device shows it: contrast, gamut, sharpness and grain of printer or panel."""
    # A square root is near enough to a display gamma of 2.2 and a tenth of its cost.
    tone = np.sqrt(picture)
    tone = 0.5 + artefact.contrast * (tone - 0.5)
    grey = tone.mean(-1, keepdims=True)
    tone = grey + artefact.saturation * (tone - grey)
    if artefact.grain > 0:
        tone = tone + artefact.grain * rng.standard_normal(tone.shape, np.float32)
    out = np.square(np.clip(tone, 0.0, 1.0)) * np.array(artefact.tint, np.float32)
    if artefact.blur_cells > 0.2:
        out = cv2.GaussianBlur(out, (0, 0), artefact.blur_cells)
    return np.asarray(np.clip(out, 0.0, 1.0), np.float32)


def _on_sheet(picture: Array, artefact: Artefact) -> tuple[Array, Array]:
    """Lay `picture` on the bent sheet by arc length; return it on the grid and the arc length (G,) in mm."""
    c = artefact.curvature_per_mm
    arc = U if c == 0 else (np.arcsin(np.clip(U * c, -1.0, 1.0)) / c).astype(np.float32)
    x = (arc / artefact.scale - U_MIN_MM) / CELL_MM
    y = ((V - SHEET_CENTRE_V_MM) / artefact.scale + SHEET_CENTRE_V_MM - V_MIN_MM) / CELL_MM
    gx, gy = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    laid = cv2.remap(picture, gx, gy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(laid, np.float32), np.asarray(arc, np.float32)


def _outline(arc: Array, artefact: Artefact) -> Array:
    """Return (G, G) 1 inside the sheet: an oval cut along the face when worn, else a rectangle."""
    x = np.abs(arc)[None, :] / (artefact.width_mm / 2)
    y = np.abs(V - SHEET_CENTRE_V_MM)[:, None] / (artefact.height_mm / 2)
    inside = x**2.6 + y**2.6 < 1.0 if artefact.worn else np.maximum(x, y) < 1.0
    rises = np.abs(U * artefact.curvature_per_mm) < 0.985
    return np.asarray(inside & rises[None, :], np.float32)


def _sheet(photo: Photo, behind: Head | None, artefact: Artefact) -> Surface:
    rng = np.random.default_rng([0x53484545, artefact.seed])
    laid, arc = _on_sheet(_reproduce(photo.colour, artefact, rng), artefact)
    laid_ir, _ = _on_sheet(photo.infrared, artefact)
    inside = _outline(arc, artefact) * (1.0 - _holes(artefact))
    if artefact.silhouette:
        inside = inside * (_on_sheet(photo.person, artefact)[0] > 0.5)
    height = _sheet_height(behind, artefact)
    if artefact.curvature_per_mm > 0:
        height = height + 1.2 * smooth_noise(rng, 5)
    ink = laid_ir if artefact.infrared_photo else laid.mean(-1)
    infrared = artefact.paper_ir * (1.0 - artefact.carbon * (1.0 - ink))
    ones = np.ones((GRID, GRID), np.float32)
    colour = np.dstack([0.02 + 0.86 * laid, artefact.specular * ones])
    ir = np.dstack([infrared, artefact.specular * ones, 0.05 * ones, 0.02 * ones])
    if behind is not None:
        height = np.where(inside > 0, height, behind.height)
        colour = mix(behind.materials.colour, colour, inside)
        ir = mix(behind.materials.infrared, ir, inside)
    else:
        height = np.where(inside > 0, height, FLOOR_MM)
    materials = Materials(colour=colour.astype(np.float32), infrared=ir.astype(np.float32))
    return make_surface(height, materials, gloss=artefact.gloss)


def _sheet_height(behind: Head | None, artefact: Artefact) -> Array:
    c = artefact.curvature_per_mm
    bend = np.zeros_like(U) if c == 0 else (np.sqrt(np.maximum(1.0 - (U * c) ** 2, 0.0)) - 1.0) / c
    sheet = np.tile(bend.astype(np.float32), (GRID, 1))
    if behind is None:
        return sheet
    face = np.maximum(behind.height, 0.0)
    if artefact.drape > 0:
        # Paper pressed on a face follows its large relief only: it does not stretch.
        soft = cv2.GaussianBlur(face, (0, 0), 6.5)
        top = float(soft[60:110, 76:117].max())
        return np.asarray(artefact.drape * soft + (1.0 - artefact.drape) * (top + sheet) + artefact.gap_mm, np.float32)
    nose_out = "nose" in artefact.holes
    rest = float(np.percentile(face[70:105, 82:111], 70.0 if nose_out else 100.0))
    return np.asarray(rest + artefact.gap_mm + sheet, np.float32)


def _holes(artefact: Artefact) -> Array:
    shapes = {
        "eyes": pair(32.0, -20.0, 13.0, 7.0),
        "nose": bump(0.0, 12.0, 15.0, 20.0),
        "mouth": bump(0.0, 51.0, 24.0, 9.0),
    }
    mask = np.zeros((GRID, GRID), np.float32)
    for part in artefact.holes.split("+") if artefact.holes else ():
        mask = np.maximum(mask, shapes[part] > 0.5)
    return np.asarray(mask, np.float32)


def _panel(photo: Photo, artefact: Artefact) -> Surface:
    """A glass plate that sends out a picture in the visible and nothing in the infrared."""
    rng = np.random.default_rng([0x50414E45, artefact.seed])
    laid, arc = _on_sheet(_reproduce(photo.colour, artefact, rng), artefact)
    inside = _outline(arc, artefact)
    margin = replace(artefact, width_mm=artefact.width_mm - 24.0, height_mm=artefact.height_mm - 24.0)
    lit = _outline(arc, margin)
    phase = rng.uniform(0.0, 2 * np.pi)
    ripple = 1.0 + artefact.moire * np.sin(phase + 0.5 * U[None, :] + float(rng.uniform(-0.4, 0.4)) * V[:, None])
    emission = artefact.level * laid * (lit * ripple)[..., None]
    ones = np.ones((GRID, GRID), np.float32)
    colour = np.dstack([0.015 * ones, 0.015 * ones, 0.017 * ones, artefact.specular * ones])
    infrared = np.dstack([artefact.infrared_albedo * ones, 0.5 * artefact.specular * ones, 0.0 * ones, 0.15 * ones])
    height = np.where(inside > 0, 0.0, FLOOR_MM).astype(np.float32)
    materials = Materials(
        colour=colour.astype(np.float32),
        infrared=infrared.astype(np.float32),
        emission=emission.astype(np.float32),
    )
    return make_surface(height, materials, gloss=artefact.gloss)


def _mask(identity: int, behind: Head, wear: Wear, artefact: Artefact) -> Surface:
    """A head-shaped silicone skin with the bearer's real eyes in its eye openings."""
    worn = build_head(identity, replace(wear, glasses=0), False)
    openings = worn.eyes
    silicone = worn.face * (1.0 - openings)
    rim = np.clip(cv2.GaussianBlur(openings, (0, 0), 1.2) * 2.0, 0.0, 1.0) * (1.0 - openings)
    height = cv2.GaussianBlur(worn.height, (0, 0), 0.7) - artefact.gap_mm * openings
    rgb = cv2.GaussianBlur(worn.materials.colour[..., :3], (0, 0), 0.7)
    grey = rgb.mean(-1, keepdims=True)
    rgb = (grey + artefact.saturation * (rgb - grey)) * np.array(artefact.tint, np.float32)
    ones = np.ones((GRID, GRID), np.float32)
    made = np.dstack([rgb * (1.0 - 0.35 * rim[..., None]), artefact.specular * ones]).astype(np.float32)
    pattern = worn.materials.infrared[..., 0]
    level = float(np.average(pattern, weights=silicone + 1e-6))
    albedo = artefact.infrared_albedo * (1.0 + artefact.relief_ir * (pattern / level - 1.0))
    albedo = albedo * (1.0 - 0.3 * rim)
    made_ir = np.dstack([albedo, 0.6 * artefact.specular * ones, artefact.wrap * ones, 0.03 * ones])
    colour = mix(mix(worn.materials.colour, behind.materials.colour, openings), made, silicone)
    infrared = mix(worn.materials.infrared, behind.materials.infrared, openings)
    infrared = mix(infrared, made_ir.astype(np.float32), silicone)
    if wear.glasses:
        height, colour, infrared = put_on_glasses(worn.anatomy, wear.glasses, height, colour, infrared)
    materials = Materials(colour=colour.astype(np.float32), infrared=infrared.astype(np.float32))
    return make_surface(np.asarray(height, np.float32), materials, gloss=artefact.gloss)
