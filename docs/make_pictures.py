"""Write docs/rig.png: a contact sheet of the simulated rig, one row per species, three modalities a subject.

Run from the repository's root: python docs/make_pictures.py [OUTPUT.png] [SEED]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mars_edge.rig import MODALITIES, SIZE, SPECIES, render_all, sample_scene
from mars_edge.rig.dataset import IDENTITIES

SUBJECTS = 2
MARGIN = 22


def shown(frame: NDArray[Any], modality: str) -> NDArray[np.uint8]:
    """Return a BGR picture (S, S, 3) of a raw frame; depth is coloured over 300..900 mm and black where invalid."""
    if modality == "rgb":
        return np.ascontiguousarray(frame[..., ::-1]).astype(np.uint8)
    if modality == "ir":
        return np.dstack([frame] * 3).astype(np.uint8)
    scaled = np.clip((900.0 - frame.astype(np.float32)) / 600.0, 0.0, 1.0)
    coloured = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_TURBO)
    return np.where(frame[..., None] > 0, coloured, 0).astype(np.uint8)


def contact_sheet(seed: int) -> NDArray[np.uint8]:
    """Return the sheet as a BGR picture: a row per species, `SUBJECTS` triples of colour, depth, infrared."""
    rows = []
    for row, species in enumerate(SPECIES):
        rng = np.random.default_rng([seed, row])
        scenes = [sample_scene(rng, species, identities=IDENTITIES["train"]) for _ in range(SUBJECTS)]
        frames = [render_all(scene) for scene in scenes]
        strip = np.hstack([shown(frame[m], m) for frame in frames for m in MODALITIES])
        bar = np.full((MARGIN, strip.shape[1], 3), 255, np.uint8)
        cv2.putText(bar, f"simulated: {species}", (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        rows += [bar, strip]
    return np.vstack(rows)


def main() -> None:
    """Write the picture to a temporary file, then rename it."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/rig.png")
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    temporary = path.with_suffix(".tmp.png")
    sheet = contact_sheet(seed)
    # 32 grey levels a channel are enough to look at and halve the file.
    cv2.imwrite(str(temporary), sheet & 0xF8, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    temporary.replace(path)
    print(f"{path}: {sheet.shape[1]} x {sheet.shape[0]}, {path.stat().st_size} bytes, {SIZE} px a frame")


if __name__ == "__main__":
    main()
