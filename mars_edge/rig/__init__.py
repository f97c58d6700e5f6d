"""The simulated sensor rig renders colour, depth and infrared of one and the same simulated head or attack.

Everything here is simulated: an explicit physical model (geometry, materials, light, sensors) stands in for cameras.
It is the built-in demonstration and the training data of the bundled face model, and supports no claim about real
faces. The model is *hard alone, solvable together*: see the table in `scene.py` for which modality sees what and why.
"""

from mars_edge.rig.cameras import SIZE
from mars_edge.rig.dataset import IDENTITIES, Split, draw_split, render_split
from mars_edge.rig.live import Rig
from mars_edge.rig.render import MODALITIES, modalities, render, render_all, true_depth_mm
from mars_edge.rig.scene import (
    ATTACKS,
    SPECIES,
    Artefact,
    Imaging,
    Lighting,
    Pose,
    Scene,
    Wear,
    sample_scene,
)

__all__ = [
    "ATTACKS",
    "IDENTITIES",
    "MODALITIES",
    "SIZE",
    "SPECIES",
    "Artefact",
    "Imaging",
    "Lighting",
    "Pose",
    "Rig",
    "Scene",
    "Split",
    "Wear",
    "draw_split",
    "modalities",
    "render",
    "render_all",
    "render_split",
    "sample_scene",
    "true_depth_mm",
]
