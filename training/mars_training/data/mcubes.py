"""MCubeS: street scenes by colour, polarisation and near infrared, a material in every pixel.

Axes: H height, W width.
Layout: `list_folder/{train,val,test}.txt` with one id a line; `polL_color`, `NIR_warped`, `NIR_warped_mask` and
`GT` hold `ID.png`, `polL_aolp_sin`, `polL_aolp_cos` and `polL_dolp` hold `ID.npy`; all are 1024 x 1224, and the left
192 columns, which the near-infrared camera did not see, are dropped. Pixels that the near-infrared mask names get
the label `IGNORED`, for every subset of modalities, so that all subsets are measured on the same pixels.
Source: Liang et al., "Multimodal Material Segmentation", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.columns import RawRows, columns, label_maps
from mars_training.data.files import need_files, read_codes, read_list, read_map, read_unit
from mars_training.data.listing import Entry, Listing
from mars_training.data.split import IGNORED, Source, Split
from mars_training.recipe import DataRecipe, SplitName

LABELS = (
    "asphalt", "concrete", "metal", "road_marking", "fabric", "glass", "plaster", "plastic", "rubber", "sand",
    "gravel", "ceramic", "cobblestone", "brick", "grass", "wood", "leaf", "water", "human", "sky",
)  # fmt: skip
STORED = (1024, 1224)
LEFT = 192
LISTS: dict[SplitName, str] = {"train": "train", "validation": "val", "test": "test"}
_FOLDERS = {
    "polL_color": ".png",
    "polL_aolp_sin": ".npy",
    "polL_aolp_cos": ".npy",
    "polL_dolp": ".npy",
    "NIR_warped": ".png",
    "NIR_warped_mask": ".png",
    "GT": ".png",
}


def describe(recipe: DataRecipe) -> Source:
    """Four images of one size, 20 materials."""
    size = _size(recipe)

    # float32 throughout: in a uint16 image 0 would mean "no measurement", and here it is only dark.
    def image(name: str, channels: int, low: float = 0.0) -> Modality:
        return Modality(name=name, kind="image", channels=channels, size=size, range=(low, 1.0))

    return Source(
        modalities=(image("rgb", 3), image("aolp", 2, -1.0), image("dolp", 1), image("nir", 1)),
        labels=LABELS,
        positive_label=None,
        note="files in the layout of MCubeS",
        task="segmentation",
    )


def _size(recipe: DataRecipe) -> tuple[int, int]:
    height, width = STORED[0], STORED[1] - LEFT
    return (recipe.size, round(recipe.size * width / height)) if recipe.size else (height, width)


def read(recipe: DataRecipe, split: SplitName, folder: Path) -> Split:
    """The scenes of one split, in one group; labels are maps.

    Raises:
        UsageError: no list, or a file of a listed scene is not there.
    """
    listed = folder / "list_folder" / f"{LISTS[split]}.txt"
    scenes = [_Scene(folder, cells[0]) for _, cells in read_list(listed, 1)]
    scenes = scenes[: recipe.limit or None]
    need_files([scene.path(kind) for scene in scenes for kind in _FOLDERS], listed)
    raw = {name: RawRows(scenes, sample) for name, sample in _SAMPLES.items()}
    size = _size(recipe)
    return Split(
        inputs=columns(describe(recipe).modalities, raw),
        labels=label_maps(RawRows(scenes, partial(_labels, size=size)), size),
        groups=torch.zeros(len(scenes), dtype=torch.int64),
        group_names=("all",),
        raw=raw,
    )


def listing(recipe: DataRecipe, split: SplitName, folder: Path) -> Listing:
    """The scenes of one split; groups are recordings: a scene's id without its last number.

    Raises:
        UsageError: no list.
    """
    rows = read_list(folder / "list_folder" / f"{LISTS[split]}.txt", 1)
    scenes = [_Scene(folder, cells[0]) for _, cells in rows]
    entries = [
        Entry(
            id=scene.name,
            label=None,
            group=scene.name.rpartition("_")[0] or None,
            files={name: scene.path(kind) for name, kind in _FILES.items()},
            label_files=(scene.path("GT"), scene.path("NIR_warped_mask")),
        )
        for scene in scenes
    ]
    return Listing(
        entries=entries,
        raw={name: RawRows(scenes, sample) for name, sample in _SAMPLES.items()},
        maps=RawRows(scenes, partial(_labels, size=(STORED[0], STORED[1] - LEFT))),
    )


_FILES = {
    "rgb": "polL_color",
    "aolp": "polL_aolp_sin",
    "aolp cos": "polL_aolp_cos",
    "dolp": "polL_dolp",
    "nir": "NIR_warped",
}


@dataclass(frozen=True)
class _Scene:
    folder: Path
    name: str

    def path(self, kind: str) -> Path:
        return self.folder / kind / f"{self.name}{_FOLDERS[kind]}"

    def image(self, kind: str, channels: int) -> NDArray[np.float32]:
        return _cut(read_unit(self.path(kind), channels), self.path(kind))

    def map(self, kind: str) -> NDArray[np.float32]:
        return _cut(read_map(self.path(kind)), self.path(kind))

    def codes(self, kind: str) -> NDArray[np.uint8]:
        return _cut(read_codes(self.path(kind)), self.path(kind))


def _cut(values: NDArray[Any], path: Path) -> NDArray[Any]:
    if values.shape[:2] != STORED:
        raise UsageError(f"{path} is {values.shape[0]} x {values.shape[1]}; expected {STORED[0]} x {STORED[1]}")
    return values[:, LEFT:]


def _aolp(scene: _Scene) -> NDArray[np.float32]:
    return np.stack([scene.map("polL_aolp_sin"), scene.map("polL_aolp_cos")], axis=2)


_SAMPLES: dict[str, Callable[[_Scene], NDArray[np.float32]]] = {
    "rgb": lambda scene: scene.image("polL_color", 3),
    "aolp": _aolp,
    "dolp": lambda scene: scene.map("polL_dolp"),
    "nir": lambda scene: scene.image("NIR_warped", 1),
}


def _labels(scene: _Scene, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The classes (H, W), `IGNORED` where near infrared saw nothing, each pixel from the nearest stored one.

    Raises:
        UsageError: a value that is neither a class nor `IGNORED`.
    """
    labels = scene.codes("GT")
    wrong = labels[(labels >= len(LABELS)) & (labels != IGNORED)]
    if wrong.size:
        raise UsageError(
            f"{scene.path('GT')} holds the label {wrong[0]}; allowed: 0 to {len(LABELS) - 1} and {IGNORED}"
        )
    seen: NDArray[Any] = np.where(scene.codes("NIR_warped_mask") > 0, np.uint8(IGNORED), labels)
    if seen.shape != size:
        seen = cv2.resize(seen, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return seen


def check_mirror(flip: bool, negated: tuple[int, ...]) -> None:
    """Return if the recipe either does not mirror, or says which of sine (0) and cosine (1) a mirror negates.

    A mirror turns the angle phi into pi - phi. Files with the sine and cosine of 2 phi then have their sine negated,
    files with those of phi itself, over 0 to pi, their cosine; only the files at hand can say which they are.

    Raises:
        UsageError: the recipe mirrors and names no channel of aolp.
    """
    if flip and not negated:
        raise UsageError(
            "augment.flip mirrors polarisation angles: name the channel to negate, flip_negates = { aolp = [0] } "
            "if the files hold sin and cos of twice the angle, { aolp = [1] } of the angle itself, or set flip = false"
        )
