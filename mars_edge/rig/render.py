"""Rendering is a pure function of a scene and a modality: equal arguments give equal arrays, in any process."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_edge.rig.cameras import (
    COLOUR_CAMERA,
    INFRARED_CAMERA,
    SIZE,
    expose_colour,
    expose_infrared,
    infrared_radiance,
    look,
    measure_depth,
    radiance,
)
from mars_edge.rig.scene import Scene
from mars_edge.rig.species import surface_of

MODALITIES: tuple[str, ...] = ("rgb", "depth", "ir")


def modalities() -> tuple[Modality, ...]:
    """Return the three modalities of the simulated rig in fusion order: rgb, depth, ir."""
    size = (SIZE, SIZE)
    # Depth is scaled over the stage only: eight bits over it keep 2 mm, and a nose is 20 mm.
    return (
        Modality(name="rgb", kind="image", channels=3, size=size, dtype="uint8", range=(0.0, 255.0)),
        Modality(name="depth", kind="image", channels=1, size=size, dtype="uint16", range=(300.0, 800.0)),
        Modality(name="ir", kind="image", channels=1, size=size, dtype="uint8", range=(0.0, 255.0)),
    )


def render(scene: Scene, modality: str) -> NDArray[Any]:
    """Return one simulated raw frame, the same for the same scene and modality.

    Returns:
        "rgb": (112, 112, 3) uint8 RGB. "depth": (112, 112) uint16 mm, 0 = invalid. "ir": (112, 112) uint8.

    Raises:
        UsageError: `modality` is none of MODALITIES.
    """
    if modality not in MODALITIES:
        raise UsageError(f"unknown modality {modality!r}; the simulated rig has {', '.join(MODALITIES)}")
    rng = np.random.default_rng([scene.seed, MODALITIES.index(modality)])
    surface = surface_of(scene)
    wall = (scene.background_seed, scene.background_mm)
    if modality == "rgb":
        view = look(COLOUR_CAMERA, surface, scene.pose, scene.background_mm)
        return expose_colour(radiance(view, surface, scene.lighting, wall), scene.imaging, rng)
    view = look(INFRARED_CAMERA, surface, scene.pose, scene.background_mm)
    signal, doubt = infrared_radiance(view, surface, scene.lighting, wall)
    if modality == "ir":
        return expose_infrared(signal, scene.imaging, rng)
    return measure_depth(view, signal, doubt, scene.imaging, rng)


def render_all(scene: Scene) -> dict[str, NDArray[Any]]:
    """Return the frames of all MODALITIES, each equal to `render(scene, modality)`."""
    return {modality: render(scene, modality) for modality in MODALITIES}


def true_depth_mm(scene: Scene) -> NDArray[np.float32]:
    """Return the exact (112, 112) float32 depth in mm that the infrared imager faces, without any sensor error."""
    return look(INFRARED_CAMERA, surface_of(scene), scene.pose, scene.background_mm).z
