"""The models that come with mars-edge, found by name."""

from __future__ import annotations

from pathlib import Path

from mars_edge.errors import UsageError

FOLDER = Path(__file__).parent / "models"


def bundled_models() -> tuple[str, ...]:
    """File names of the models inside the package."""
    return tuple(sorted(path.name for path in FOLDER.glob("*") if path.suffix in (".pte", ".onnx")))


def find_model(name: Path | str) -> Path:
    """The file `name` means: a path that exists, else a bundled model of that name.

    Raises:
        UsageError: neither exists, or it is a device.
    """
    path = Path(name)
    if path.exists():
        if not (path.is_file() or path.is_dir()):
            # A device or a pipe would be read for ever.
            raise UsageError(f"{path} is no regular file; name a model file")
        return path
    if str(name) in bundled_models():
        return FOLDER / path
    raise UsageError(f"no model file {name}; bundled models: {', '.join(bundled_models()) or 'none'}")
