"""A surface is a height field with materials: the one kind of object the simulated rig renders.

Axes: G = grid cells per side. Object frame: u to the image's right, v down, height h towards the camera, all in mm.
A point of the surface is (u, v, -h) in a frame whose z axis points away from the camera.

The one design decision: everything in front of the cameras (a head, a sheet of paper, a panel, a mask) is *one* height
field, so that one ray caster serves every species and three cameras see one and the same geometry.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

GRID = 192
CELL_MM = 2.0
U_MIN_MM = -192.0
V_MIN_MM = -160.0
FLOOR_MM = -130.0
"""Height that means "nothing here": rays that end on it see the background."""

U = (U_MIN_MM + CELL_MM * np.arange(GRID)).astype(np.float32)
V = (V_MIN_MM + CELL_MM * np.arange(GRID)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Optical properties of a simulated surface on its grid, linear light, 0..1.

    colour: (G, G, 4) albedo red, green, blue and specular strength.
    infrared: (G, G, 4) albedo, specular strength, wrap (subsurface softening of the shading), depth unreliability.
    emission: (G, G, 3) light the surface sends out itself, or None. Emitters here are blind in the infrared.
    """

    colour: Array
    infrared: Array
    emission: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A height field ready to be cast rays at: normals and occlusion belong to `height`.

    height: (G, G) mm. geometry: (G, G, 4) unit normal (object frame) and ambient occlusion 0..1.
    gloss: exponent of the specular lobe; large is mirror-like.
    """

    height: Array
    geometry: Array
    materials: Materials
    gloss: float


def make_surface(height: Array, materials: Materials, *, gloss: float) -> Surface:
    """Return the surface whose normals are the gradients of `height` (G, G) in mm."""
    h = np.ascontiguousarray(height, np.float32)
    return Surface(height=h, geometry=_geometry(h), materials=materials, gloss=gloss)


def _geometry(height: Array) -> Array:
    hu = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=1 / (8 * CELL_MM))
    hv = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=1 / (8 * CELL_MM))
    inverse = 1.0 / np.sqrt(hu * hu + hv * hv + 1.0)
    # Hollows see less of the sky: height below its own neighbourhood stands in for the blocked solid angle. Clipping
    # keeps the drop at a silhouette from darkening the whole rim.
    visible = np.maximum(height, FLOOR_MM + 70.0)
    hollow = cv2.blur(visible, (15, 15)) - visible
    occlusion = np.clip(1.0 - 0.025 * hollow, 0.5, 1.0)
    return np.dstack([-hu * inverse, -hv * inverse, -inverse, occlusion]).astype(np.float32)


def bump(cu: float, cv: float, su: float, sv: float) -> Array:
    """Return a (G, G) Gaussian of height 1 at (cu, cv) mm with standard deviations su, sv in mm."""
    return np.outer(_gauss(V, cv, sv), _gauss(U, cu, su))


def pair(cu: float, cv: float, su: float, sv: float) -> Array:
    """Return two (G, G) Gaussians of height 1, mirrored at u = 0."""
    return np.outer(_gauss(V, cv, sv), _gauss(U, cu, su) + _gauss(U, -cu, su))


def _gauss(x: Array, centre: float, sigma: float) -> Array:
    z = (x - np.float32(centre)) / np.float32(sigma)
    return np.asarray(np.exp(-0.5 * z * z), np.float32)


def step(x: Array, edge: float, width: float) -> Array:
    """Return a smooth step from 0 (x well below `edge`) to 1, `width` wide."""
    t = np.clip((x - edge) / width + 0.5, 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), np.float32)


def mix(base: Array, value: Array | tuple[float, ...] | float, mask: Array) -> Array:
    """Return `base` where `mask` is 0 and `value` where it is 1; mask is (G, G), base (G, G) or (G, G, C)."""
    if base.ndim == 2:
        return np.asarray(base + mask * (np.asarray(value, np.float32) - base), np.float32)
    channels = base.shape[2]
    # Merged planes instead of broadcasting: NumPy is slow on a last axis of three or four.
    wide = cv2.merge([mask.astype(np.float32)] * channels)
    if np.ndim(value) == 3:
        return np.asarray(base + wide * (np.asarray(value, np.float32) - base), np.float32)
    levels = np.broadcast_to(np.asarray(value, np.float32), (channels,))
    return np.asarray(base * (1.0 - wide) + cv2.merge([mask * level for level in levels]), np.float32)


def smooth_noise(rng: np.random.Generator, cells: int, size: int = GRID) -> Array:
    """Return (size, size) smooth noise of unit variance order, with about `cells` blobs a side."""
    coarse = rng.standard_normal((cells, cells), np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
