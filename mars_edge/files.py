"""Files that are whole or not there: written beside their place under another name, then renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mars_edge.errors import UsageError


def write_whole(path: Path, content: bytes | str) -> None:
    """Put `content` (text as UTF-8) at `path` in one step; a reader sees the old file or the new one.

    Raises:
        OSError: the folder cannot be written to.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = None
    try:
        # Short, whatever the file is called: with its own name the part's could be too long for the file system.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            # A full disk names no file, a refused one that of the part.
            error.filename, error.filename2 = str(path), None
        raise


def make_folder(path: Path, flag: str) -> None:
    """Make one folder, unless it is there; those above it must be there, since a missing one is a slip of the pen.

    Raises:
        UsageError: it is a file, or the folder above it is missing or cannot be written to.
    """
    if path.is_dir():
        return
    require_place(path, flag)
    try:
        path.mkdir()
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror}") from error


def require_place(path: Path, flag: str) -> None:
    """Refuse a file that could not be written in the end, before any work is done for it.

    Raises:
        UsageError: it is a folder, or its folder is missing or cannot be written to.
    """
    if not path.name or path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{flag} {path}: folder {path.parent} cannot be written to")
