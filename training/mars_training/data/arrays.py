"""Arrays in .npy files, from any thread."""

from __future__ import annotations

import threading
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError

# The header is a Python literal, and CPython 3.11 counts the depth of the literal it is building once for all
# threads: two at a time can end in a SystemError (github.com/python/cpython/issues/106905).
_header = threading.Lock()


def load_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, as it is; threads read their data together and only the headers one after the other.

    Raises:
        UsageError: not a whole .npy file of numbers.
    """
    try:
        # Mapped first: a header that claims more than the file holds is refused instead of allocated.
        with _header:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError, BadZipFile) as error:
        # The first sentence alone: the next one of NumPy's advises to unpickle the file.
        reason = str(error).partition(". ")[0] or "it is empty"
        raise UsageError(f"{path} is not an .npy file of numbers: {reason}") from None
    if not isinstance(mapped, np.ndarray):
        raise UsageError(f"{path} is an archive of arrays; give one array, saved by numpy.save")
    return np.array(mapped)
