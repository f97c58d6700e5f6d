"""What a terminal may be given, which obeys control characters of a file name, and what happens when it is gone."""

from __future__ import annotations

import os
import sys


def printable(text: str) -> str:
    """`text` with every character that a terminal would act on as its escape sequence in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def discard_stdout() -> None:
    """What is still buffered for stdout is dropped at the interpreter's exit instead of failing there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
