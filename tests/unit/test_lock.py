"""A folder has one owner at a time, and none once its owner's process is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mars_edge.errors import UsageError
from mars_training.lock import refuse_if_used, sole_user

_OWNER = """
import sys
from pathlib import Path
from mars_training.lock import sole_user
with sole_user(Path(sys.argv[1]), "busy"):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == b"in\n"
        for ask in (lambda: sole_user(tmp_path, "busy").__enter__(), lambda: refuse_if_used(tmp_path, "busy")):
            with pytest.raises(UsageError) as error:
                ask()
            assert str(error.value) == "busy"
        owner.kill()
        owner.wait()
    refuse_if_used(tmp_path, "busy")
    with sole_user(tmp_path, "busy"), pytest.raises(UsageError), sole_user(tmp_path, "busy"):
        pass
    with sole_user(tmp_path, "busy"):
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_asking_makes_no_folder(tmp_path: Path) -> None:
    refuse_if_used(tmp_path / "none", "busy")
    assert not (tmp_path / "none").exists()
