"""A fresh interpreter that finds what this one finds: for work in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """This process's environment, with its module path; the folder it was started in stands for an empty entry."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
