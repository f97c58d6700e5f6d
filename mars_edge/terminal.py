"""What a terminal may be given: it obeys the control characters that a file name or a model can hold."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with every character that a terminal would act on as its escape sequence in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
