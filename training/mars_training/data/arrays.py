"""Arrays in .npy files, from any thread."""

from __future__ import annotations

import threading
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError

# The header is a Python literal, and CPython 3.11 counts the depth of the literal it is building once for all
# threads: two at a time can end in a SystemError (github.com/python/cpython/issues/106905).
_header = threading.Lock()
_MAGIC = b"\x93NUMPY"


def load_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, as it is; threads read their data together and only the headers one after the other.

    Raises:
        UsageError: not a whole .npy file of numbers.
    """
    try:
        with path.open("rb") as file:
            # What starts otherwise NumPy would take for an archive or a pickle.
            if file.read(len(_MAGIC)) != _MAGIC:
                raise UsageError(f"{path} is not an .npy file of numbers: it does not start as one")
        with _header:
            # Mapped first: a header that claims more than the file holds is refused instead of allocated.
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise UsageError(f"{path} is not an .npy file of numbers: {error}") from None
    return np.array(mapped)
