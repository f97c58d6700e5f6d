"""The simulated rig as a data set: rendered once, kept in a cache folder."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge.modality import Modality
from mars_training.data.split import Source, Split, preprocess_all
from mars_training.recipe import DataRecipe, SplitName

LABELS = ("spoof", "live")


def cache_folder() -> Path:
    """`$MARS_EDGE_CACHE`, or `~/.cache/mars-edge`."""
    chosen = os.environ.get("MARS_EDGE_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "mars-edge"


def describe(recipe: DataRecipe) -> Source:
    """The rig's modalities and classes."""
    return Source(
        modalities=_modalities(recipe),
        labels=LABELS,
        positive_label="live",
        note="simulated rig: no claim about real faces",
    )


def _modalities(recipe: DataRecipe) -> tuple[Modality, ...]:
    from mars_edge import rig

    own = tuple(rig.modalities())
    return tuple(dataclasses.replace(m, size=(recipe.size, recipe.size)) for m in own) if recipe.size else own


def read(recipe: DataRecipe, split: SplitName) -> Split:
    """The rendered samples of one split, preprocessed; groups are species."""
    from mars_edge import rig

    count = {"train": recipe.train, "validation": recipe.validation, "test": recipe.test}[split]
    raw = _rendered(split, count, recipe.seed)
    return Split(
        inputs={m.name: preprocess_all(m, raw[m.name]) for m in _modalities(recipe)},
        labels=torch.from_numpy(raw["label"].astype(np.int64)),
        groups=torch.from_numpy(raw["species"].astype(np.int64)),
        group_names=tuple(str(name) for name in rig.SPECIES),
        raw={m.name: raw[m.name] for m in rig.modalities()},
    )


def _rendered(split: SplitName, count: int, seed: int) -> dict[str, NDArray[Any]]:
    path = cache_folder() / f"rig-{split}-{count}-{seed}-{_rig_digest()}.npz"
    if path.exists():
        with np.load(path) as stored:
            return {key: stored[key] for key in stored.files}
    samples = _render(split, count, seed)
    _store(path, samples)
    return samples


def _render(split: SplitName, count: int, seed: int) -> dict[str, NDArray[Any]]:
    from mars_edge import rig

    print(
        f"rendering {count} {split} samples on the simulated rig (once; then cached) ...", file=sys.stderr, flush=True
    )
    workers = len(os.sched_getaffinity(0))
    return dict(rig.render_split(split, count, seed=seed, workers=workers))


def _store(path: Path, samples: dict[str, NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with partial.open("wb") as file:
        np.savez(file, **samples)  # type: ignore[arg-type]
    partial.replace(path)


def _rig_digest() -> str:
    """A digest of the rig's own source: a changed rig never meets samples of the old one."""
    from mars_edge import rig

    assert rig.__file__ is not None
    folder = Path(rig.__file__).parent
    files = sorted(folder.glob("*.py")) if Path(rig.__file__).name == "__init__.py" else [Path(rig.__file__)]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]
