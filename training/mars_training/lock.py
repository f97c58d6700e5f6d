"""One owner at a time for a folder that a process writes; the lock goes with the process, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mars_edge.errors import UsageError

_NAME = ".lock"


@contextmanager
def sole_user(folder: Path, busy: str) -> Iterator[None]:
    """Nobody else enters this for `folder` meanwhile; the folder is made, an empty hidden file stays in it.

    Raises:
        UsageError: somebody is in it already; the message is `busy`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(busy) from None
        except OSError as error:
            # Some network file systems have no locks; its error names no file.
            raise UsageError(f"{folder} cannot be locked ({error.strerror}); choose a folder on a local disk") from None
        yield


def refuse_if_used(folder: Path, busy: str) -> None:
    """Nothing, unless somebody is in `folder`; makes no folder.

    Raises:
        UsageError: somebody is; the message is `busy`.
    """
    if (folder / _NAME).exists():
        with sole_user(folder, busy):
            return
