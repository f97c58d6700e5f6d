"""The float32 artifact that belongs to one of lower precision, so that both can be measured side by side.

It is looked for under one name, NAME.fp32.SUFFIX for NAME.SUFFIX, NAME.int8.SUFFIX and NAME.fp16.SUFFIX, in the folder
of the file and among the bundled models. A name only says where to look: whether it is one is decided by what both
manifests say of their origin. Files of earlier versions do not name their checkpoint and have no twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mars_edge.artifact import verify
from mars_edge.errors import EngineError, ModelFileError
from mars_edge.manifest import Manifest
from mars_runtime import models
from mars_runtime.engines import read_manifest

_FLOAT = "fp32"


def twin_of(path: Path, manifest: Manifest) -> Path | None:
    """The float32 artifact of the same weights, format and target as `path`, whose manifest is given.

    None where there is none, and of a float32 artifact. At most three files are read, whatever else lies there; one
    that is damaged or of another run is passed over.
    """
    if manifest.precision == _FLOAT or not _names_checkpoint(manifest):
        return None
    return next((place for place in _places(path, manifest) if _is_twin(place, manifest)), None)


def _places(path: Path, manifest: Manifest) -> Iterator[Path]:
    """Files that exist under the name of a twin, each once: beside `path`, then bundled."""
    base = path.stem.removesuffix(f".{manifest.precision}")
    beside = path.with_name(f"{base}.{_FLOAT}{path.suffix}")
    bundled = models.bundled_models()
    names = [f"{name}.{_FLOAT}{path.suffix}" for name in (base, manifest.name)]
    candidates = (beside, *(models.FOLDER / name for name in names if name in bundled))
    yield from dict.fromkeys(place.resolve() for place in candidates if place.is_file())


def _is_twin(place: Path, manifest: Manifest) -> bool:
    try:
        found = read_manifest(verify(place))
    except (ModelFileError, EngineError):
        return False
    return found.precision == _FLOAT and _origin(found) == _origin(manifest)


def _names_checkpoint(manifest: Manifest) -> bool:
    return isinstance(manifest.provenance.get("checkpoint"), str)


def _origin(manifest: Manifest) -> tuple[Any, ...]:
    """What two artifacts of the same weights have in common, whatever precision they are in."""
    pruned = manifest.provenance.get("experts")
    return (
        manifest.provenance.get("checkpoint"),
        pruned.get("how") if isinstance(pruned, dict) else pruned,
        manifest.name,
        manifest.target,
        manifest.modalities,
        manifest.labels,
        (manifest.experts, manifest.active_experts),
    )
