"""The run of the documentation that is recorded, replayed and compared, in short."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("mcap_protobuf")


@pytest.fixture
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_recorded_run", repository / "docs" / "make_recorded_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_recorded_replayed_and_decided_more_strictly_is_told_in_its_own_numbers(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "RUN", script.RUN.replace("@4s+4s --max-seconds 16", "@0.6s+4s --max-seconds 2.5"))
    lines = list(script.block())
    summary = json.loads(lines[4])
    assert summary["equal"] == summary["decisions"] > 10
    assert f"({summary['decisions']} decisions)" in lines[2]
    table = lines[lines.index("decided on    then      stricter  decisions") + 1 : -1]
    assert sum(int(row.split()[-1]) for row in table) == summary["decisions"]
    assert all(("depth" in row.split()[0]) == (row.split()[2] != "abstain") for row in table)
    assert lines[-1].endswith("differ: requires depth")


def test_streams_of_other_decisions_are_not_compared(script: ModuleType) -> None:
    decision: dict[str, Any] = {"seq": 0, "subset": "rgb", "verdict": "accept", "reason": None}
    with pytest.raises(AssertionError):
        list(script.compared([decision], [{**decision, "seq": 1}]))


def test_a_command_that_fails_ends_the_script_with_its_reason(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"mars-edge replay no\.mcap --model .*: exit code 2: mars-edge: no\.mcap"):
        script.mars_edge("replay no.mcap --model face_antispoof.pte")
