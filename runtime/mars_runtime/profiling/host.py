"""What the kernel and the board's own tools say, read below any root, which tests make up."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_TOOL_TIMEOUT_S = 3.0

Run = Callable[[Sequence[str]], "str | None"]


def run_tool(command: Sequence[str]) -> str | None:
    """What a tool prints; None where it is not installed, fails or does not end within 3 s."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        result = subprocess.run([program, *command[1:]], capture_output=True, timeout=_TOOL_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode("utf-8", errors="replace").strip() or None


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine: the root of its files, and how its tools are called."""

    root: Path = Path("/")
    run: Run = run_tool

    def text(self, path: str) -> str | None:
        """The file's text without the zeros and spaces around it; None where it cannot be read or is empty."""
        try:
            content = (self.root / path).read_bytes()
        except OSError:
            return None
        return content.decode("utf-8", errors="replace").strip("\0 \t\r\n") or None

    def number(self, path: str) -> float | None:
        """The number in a file; None where there is none."""
        text = self.text(path)
        try:
            return None if text is None else float(int(text, 0))
        except ValueError:
            return None

    def matching(self, pattern: str) -> Iterator[str]:
        """Paths below the root that fit a glob pattern, in the order of the numbers in them."""
        found = (str(path.relative_to(self.root)) for path in self.root.glob(pattern))
        yield from sorted(found, key=lambda path: (len(path), path))
