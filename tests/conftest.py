"""Fixtures every suite shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real recordings: MARS_EDGE_DATA, else `../shared/data` beside the checkout.

    The data sets are no part of the project; a test that needs them is skipped where they are absent.
    """
    given = os.environ.get("MARS_EDGE_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    for needed in ("free-spoken-digit-dataset/recordings", "optdigits"):
        if not (folder / needed).is_dir():
            where = "MARS_EDGE_DATA" if given else "../shared/data"
            pytest.skip(f"{where} has no {needed}: set MARS_EDGE_DATA to the folder with both data sets")
    return folder
