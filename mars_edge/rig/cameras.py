"""A camera turns a posed surface into an exact view, and a view plus light into what its simulated sensor reports.

Axes: S = image side in pixels. Rig frame: origin in the infrared imager, x right, y down, z forward, mm.
Colour: Lambert plus a specular lobe, auto-exposure, white-balance error, gamma 2.2, Poisson-Gaussian noise.
Infrared: an active emitter beside the imager, inverse-square falloff, sunlight on top; saturates.
Depth: active stereo on the infrared imager. Disparity d = f b / z is correlated over a window, noisy and quantised, so
the error in z grows with z squared; no value where light is missing, saturated, specular, grazing or occluded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from mars_edge.rig.scene import Imaging, Lighting, Pose
from mars_edge.rig.surface import CELL_MM, FLOOR_MM, U_MIN_MM, V_MIN_MM, Array, Surface, smooth_noise

SIZE = 112
FOCAL_PX = 225.0
EMITTER_MM = (18.0, 4.0, 0.0)
STEREO_FOCAL_PX = 410.0
STEREO_BASELINE_MM = 50.0
DISPARITY_STEP_PX = 1.0 / 16.0
DEPTH_RANGE_MM = (200.0, 1600.0)
_DAMPING = (0.5,) * 8 + (0.7,) * 3 + (0.4,) * 4
WALL_TEXELS = 128
WALL_TEXEL_MM = 12.0


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole without distortion: image side and focal length in pixels, centre in the rig frame in mm."""

    size: int
    focal_px: float
    centre_mm: tuple[float, float, float]


COLOUR_CAMERA = Camera(size=SIZE, focal_px=FOCAL_PX, centre_mm=(22.0, 0.0, 0.0))
INFRARED_CAMERA = Camera(size=SIZE, focal_px=FOCAL_PX, centre_mm=(0.0, 0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class View:
    """What a camera's rays hit, exactly.

    z: (S, S) mm along the optical axis. present: (S, S) bool, False where the wall is seen. normal: (3, S, S) in the
    rig frame. occlusion: (S, S). rays: (3, S, S) with z = 1; to_eye: (3, S, S) unit vectors back along them.
    u, v: (S, S) grid coordinates for material look-ups.
    Vectors are stored by component: NumPy is several times faster on long rows than on rows of three.
    """

    z: Array
    present: NDArray[np.bool_]
    normal: Array
    occlusion: Array
    rays: Array
    to_eye: Array
    u: Array
    v: Array


@lru_cache(maxsize=4)
def _rays(size: int, focal_px: float) -> Array:
    axis = ((np.arange(size) - (size - 1) / 2) / focal_px).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return np.stack([x, y, np.ones_like(x)])


@lru_cache(maxsize=4)
def _to_eye(size: int, focal_px: float) -> Array:
    return _unit(-_rays(size, focal_px))


def rotation(pose: Pose) -> Array:
    """Return the (3, 3) matrix from the object frame to the rig frame: roll, then pitch, then yaw."""
    yaw, pitch, roll = np.deg2rad([pose.yaw_deg, pose.pitch_deg, pose.roll_deg])
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(about_y @ about_x @ about_z, np.float32)


def look(camera: Camera, surface: Surface, pose: Pose, wall_mm: float) -> View:
    """Return the exact view of `surface` at `pose` before a wall at `wall_mm`, without any sensor."""
    turn = rotation(pose)
    offset = np.array([pose.x_mm, pose.y_mm, pose.distance_mm], np.float32)
    # The pose's distance is that of the face's front, so that it means the same for a head and a sheet.
    front = offset + turn @ np.array([0.0, 0.0, _front_mm(surface)], np.float32)
    rays = _rays(camera.size, camera.focal_px)
    origin = turn.T @ (np.array(camera.centre_mm, np.float32) - front)
    local = _turned(turn.T, rays)
    eta, u, v = _intersect(surface, origin, local)
    s = (-eta - origin[2]) / local[2]
    geometry = cv2.split(_sample(surface.geometry, u, v))
    present = (eta > FLOOR_MM + 12.0) & (s < wall_mm)
    z = np.where(present, s, np.float32(wall_mm))
    return View(
        z=z.astype(np.float32),
        present=present,
        normal=_turned(turn, np.stack(geometry[:3]).astype(np.float32)),
        occlusion=np.asarray(geometry[3], np.float32),
        rays=rays,
        to_eye=_to_eye(camera.size, camera.focal_px),
        u=u,
        v=v,
    )


def _turned(turn: Array, vectors: Array) -> Array:
    return np.asarray((turn @ vectors.reshape(3, -1)).reshape(vectors.shape), np.float32)


def _front_mm(surface: Surface) -> float:
    rows, columns = slice(60, 110), slice(70, 123)
    return float(surface.height[rows, columns].max())


def _intersect(surface: Surface, origin: Array, local: Array) -> tuple[Array, Array, Array]:
    """Follow each ray down from above the surface; return height, and grid coordinates, where it meets it.

    Damped fixed-point iteration on the height: starting above and damping makes the first crossing win. Steep rims
    would make it oscillate, so a step that leaves the interval known to hold a crossing becomes a bisection.
    """
    slope_u = -local[0] / local[2] / CELL_MM
    slope_v = -local[1] / local[2] / CELL_MM
    # At height eta the ray is at s = (-eta - o_z) / d_z, so u is linear in eta.
    u0 = (origin[0] - U_MIN_MM) / CELL_MM + origin[2] * slope_u
    v0 = (origin[1] - V_MIN_MM) / CELL_MM + origin[2] * slope_v
    top = float(surface.height.max()) + 1.0
    eta, high, low = (np.full(u0.shape, level, np.float32) for level in (top, top, FLOOR_MM))
    for damping in _DAMPING:
        gap = _sample(surface.height, u0 + slope_u * eta, v0 + slope_v * eta, outside=FLOOR_MM) - eta
        above = gap < 0
        np.copyto(high, eta, where=above)
        np.copyto(low, eta, where=~above)
        eta = eta + np.float32(damping) * gap
        np.copyto(eta, 0.5 * (low + high), where=(eta < low) | (eta > high))
    return eta, u0 + slope_u * eta, v0 + slope_v * eta


def _sample(grid: Array, u: Array, v: Array, *, outside: float | None = None) -> Array:
    """Look up a surface grid bilinearly; beyond it, the edge's value or `outside`."""
    mode = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT
    found = cv2.remap(grid, u, v, cv2.INTER_LINEAR, borderMode=mode, borderValue=outside or 0.0)
    return np.asarray(found, np.float32)


def _unit(v: Array) -> Array:
    return np.asarray(v / np.sqrt(_dot(v, v)), np.float32)


def _dot(a: Array, b: Array | tuple[float, float, float]) -> Array:
    """Return the scalar product over the first axis of (3, S, S) vectors, or with one direction."""
    x, y, z = (np.float32(c) for c in b) if isinstance(b, tuple) else b
    return np.asarray(a[0] * x + a[1] * y + a[2] * z, np.float32)


def _direction(d: tuple[float, float, float]) -> Array:
    return np.array(d, np.float32).reshape(3, 1, 1)


def _lobe(normal: Array, half: Array, gloss: float) -> Array:
    """Normalised Blinn-Phong lobe; the factor keeps the reflected energy when the lobe narrows."""
    cosine = np.maximum(_dot(normal, half), 1e-4)
    return np.asarray((gloss + 8.0) / 8.0 * np.exp(gloss * np.log(cosine)), np.float32)


@lru_cache(maxsize=32)
def _wall(seed: int) -> tuple[Array, Array]:
    """Return the wall's colour (T, T, 3) and infrared (T, T) albedo: plaster with rectangles, as rooms have."""
    rng = np.random.default_rng([0x57414C4C, seed])
    base = np.exp(rng.uniform(np.log(0.15), np.log(0.8))) * np.exp(rng.normal(0.0, 0.12, 3))
    shade = 1.0 + 0.06 * smooth_noise(rng, 6, WALL_TEXELS) + 0.05 * smooth_noise(rng, 40, WALL_TEXELS)
    colour = (shade[..., None] * base).astype(np.float32)
    infrared = (shade * rng.uniform(0.3, 0.8)).astype(np.float32)
    for _ in range(int(rng.integers(2, 9))):
        x, y = rng.integers(0, WALL_TEXELS, 2)
        w, h = rng.integers(6, 60, 2)
        colour[y : y + h, x : x + w] = rng.uniform(0.03, 0.9) * np.exp(rng.normal(0.0, 0.25, 3))
        infrared[y : y + h, x : x + w] = rng.uniform(0.1, 0.9)
    return np.clip(colour, 0.01, 1.0), np.clip(infrared, 0.01, 1.0)


def _wall_coordinates(view: View, wall_mm: float) -> tuple[Array, Array]:
    scale = wall_mm / WALL_TEXEL_MM
    x = view.rays[0] * scale + WALL_TEXELS / 2
    return x, view.rays[1] * scale + WALL_TEXELS / 2


def radiance(view: View, surface: Surface, light: Lighting, wall: tuple[int, float]) -> Array:
    """Return linear colour (S, S, 3), before any sensor."""
    red, green, blue, shine = cv2.split(_sample(surface.materials.colour, view.u, view.v))
    emitted = None
    if surface.materials.emission is not None:
        emitted = cv2.split(_sample(surface.materials.emission, view.u, view.v))
    texture = cv2.split(_wall_texture(view, wall, 0))
    key, key_lobe = _lamp(view, light.key_direction, surface.gloss)
    fill, fill_lobe = _lamp(view, light.fill_direction, surface.gloss)
    # Glossy surfaces also mirror the room: a faint veil even where no lamp is in the lobe.
    veil = 0.5 * shine * view.occlusion
    planes = []
    for c, albedo in enumerate((red, green, blue)):
        ambient, k, f = np.float32(light.ambient[c]), np.float32(light.key[c]), np.float32(light.fill[c])
        out = albedo * (ambient * view.occlusion + k * key + f * fill)
        out += ambient * veil + shine * (k * key_lobe + f * fill_lobe)
        if emitted is not None:
            out += emitted[c]
        planes.append(np.where(view.present, out, texture[c] * (ambient + np.float32(0.5) * k)))
    return np.asarray(cv2.merge(planes), np.float32)


def _lamp(view: View, direction: tuple[float, float, float], gloss: float) -> tuple[Array, Array]:
    """Return diffuse and specular response (S, S) to a distant lamp of unit irradiance."""
    lit = np.maximum(_dot(view.normal, direction), 0.0) * (0.4 + 0.6 * view.occlusion)
    lobe = _lobe(view.normal, _unit(view.to_eye + _direction(direction)), gloss)
    return lit, lobe * (lit > 0)


def _wall_texture(view: View, wall: tuple[int, float], band: int) -> Array:
    x, y = _wall_coordinates(view, wall[1])
    found = cv2.remap(_wall(wall[0])[band], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(found, np.float32)


def infrared_radiance(view: View, surface: Surface, light: Lighting, wall: tuple[int, float]) -> tuple[Array, Array]:
    """Return infrared signal (S, S), 1 = a white sheet facing the emitter at 500 mm, and unreliability (S, S)."""
    material = _sample(surface.materials.infrared, view.u, view.v)
    albedo, shine, wrap, doubt = cv2.split(material)
    to_emitter = _direction(EMITTER_MM) - view.rays * view.z
    square = _dot(to_emitter, to_emitter)
    to_emitter = np.asarray(to_emitter / np.sqrt(square), np.float32)
    power = 250000.0 / square
    lit = np.maximum((_dot(view.normal, to_emitter) + wrap) / (1.0 + wrap), 0.0)
    lobe = _lobe(view.normal, _unit(to_emitter + view.to_eye), surface.gloss)
    flat = light.ambient_ir * view.occlusion
    flat = flat + light.sun_ir * np.maximum(_dot(view.normal, light.key_direction), 0.0)
    # The cavity term: light that bounces within hollows softens the emitter's own shading.
    signal = albedo * (power * lit * (0.5 + 0.5 * view.occlusion) + flat) + shine * power * lobe
    texture = _wall_texture(view, wall, 1)
    behind = texture * (250000.0 / (wall[1] * wall[1]) + light.ambient_ir + 0.3 * light.sun_ir)
    signal = np.where(view.present, signal, behind)
    return signal.astype(np.float32), np.where(view.present, doubt, np.float32(0.05)).astype(np.float32)


def _centre_mean(image: Array) -> float:
    a, b = image.shape[0] // 4, 3 * image.shape[0] // 4
    return float(image[a:b, a:b].mean())


@lru_cache(maxsize=4)
def _vignette(size: int) -> Array:
    rays = _rays(size, 1.15 * size)
    return np.asarray(1.0 / (1.0 + rays[0] ** 2 + rays[1] ** 2), np.float32)


def _grain(rng: np.random.Generator, clean: Array, noise: float) -> Array:
    """Add shot and read noise of a sensor whose noise at full scale is `noise`."""
    sigma = noise * np.sqrt(np.maximum(clean, 0.0) + 0.02)
    return np.asarray(clean + sigma * rng.standard_normal(clean.shape, np.float32), np.float32)


@lru_cache(maxsize=1)
def _gamma_table() -> NDArray[np.uint8]:
    return np.asarray(255.0 * (np.arange(65536) / 65535.0) ** (1 / 2.2) + 0.5, np.uint8)


def expose_colour(linear: Array, imaging: Imaging, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the sensor's (S, S, 3) RGB uint8 picture of `linear` (S, S, 3)."""
    gain = 0.22 * 2.0**imaging.exposure_ev / max(_centre_mean(linear), 1e-3)
    # Auto white balance pulls the mean half-way to grey, then errs.
    mean = linear.reshape(-1, 3).mean(0)
    balance = (mean.mean() / np.maximum(mean, 1e-3)) ** 0.5
    balance = balance * np.array([imaging.white_balance[0], 1.0, imaging.white_balance[1]], np.float32)
    image = cv2.GaussianBlur(linear * (gain * balance).astype(np.float32), (0, 0), imaging.blur_px)
    image = _grain(rng, image * _vignette(image.shape[0])[..., None], imaging.noise)
    return np.asarray(_gamma_table()[(65535.0 * np.clip(image, 0.0, 1.0)).astype(np.uint16)])


def expose_infrared(signal: Array, imaging: Imaging, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the sensor's (S, S) uint8 picture; the gain control corrects brightness only in part."""
    gain = 2.0**imaging.ir_exposure_ev * (0.38 / max(_centre_mean(signal), 0.04)) ** 0.8
    image = cv2.GaussianBlur(signal * np.float32(gain), (0, 0), imaging.ir_blur_px)
    image = _grain(rng, image * _vignette(image.shape[0]), imaging.ir_noise)
    return np.asarray(255.0 * np.clip(image, 0.0, 1.0) + 0.5, np.uint8)


def measure_depth(
    view: View, signal: Array, doubt: Array, imaging: Imaging, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Return the sensor's (S, S) uint16 depth in mm, 0 where it finds no match."""
    strength = STEREO_FOCAL_PX * STEREO_BASELINE_MM
    disparity = cv2.blur(strength / view.z, (3, 3))
    noise = rng.standard_normal((2, *view.z.shape), np.float32)
    weak = 1.0 + 0.12 / np.maximum(signal, 0.02)
    error = 2.4 * cv2.GaussianBlur(noise[0], (0, 0), 1.1) + 5.0 * cv2.GaussianBlur(noise[0], (0, 0), 3.0)
    measured = disparity + (0.5 * imaging.depth_noise_px) * weak * error
    measured = np.round(measured / DISPARITY_STEP_PX) * DISPARITY_STEP_PX
    z = strength / np.maximum(measured, 1.0)
    holes = _holes(view, signal, doubt, imaging, noise[1])
    near, far = DEPTH_RANGE_MM
    return np.where(holes | (z < near) | (z > far), 0.0, np.round(z)).astype(np.uint16)


def _holes(view: View, signal: Array, doubt: Array, imaging: Imaging, noise: Array) -> NDArray[np.bool_]:
    facing = _dot(view.normal, view.to_eye)
    grazing = view.present & (facing < 0.22)
    # The second imager sits to the left: what it cannot see lies just left of every near edge.
    shift = STEREO_FOCAL_PX * STEREO_BASELINE_MM / view.z * (FOCAL_PX / STEREO_FOCAL_PX)
    occluded = np.zeros_like(grazing)
    for step in (1, 3, 6, 10):
        occluded[:, step:] |= (shift[:, :-step] - shift[:, step:]) > step + 0.5
    # Chance of a failed match, compared with smooth noise so that holes are patches and not pepper.
    risk = 1.0 - np.exp(-3.0 * doubt) + np.clip(1.0 - signal / 0.10, 0.0, 1.0) + 2.0 * np.clip(signal - 1.6, 0.0, 0.5)
    risk = np.clip(0.6 * risk + imaging.depth_dropout, 0.0, 0.97)
    patches = 2.9 * cv2.GaussianBlur(noise, (0, 0), 1.4) + 3.0 * cv2.GaussianBlur(noise, (0, 0), 4.0)
    return np.asarray(grazing | occluded | (patches > 1.8 - 3.4 * risk))
