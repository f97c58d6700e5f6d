"""The vectors that other implementations must reproduce are what this one answers, and cover what it can answer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from contract import generate
from contract.encoding import array, read_array
from contract.generate import FOLDER, VECTORS, difference, document
from mars_runtime.health_table import ROWS


def vectors(name: str) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return table


@pytest.mark.parametrize("name", VECTORS)
def test_the_committed_vectors_are_up_to_date(name: str) -> None:
    assert difference(vectors(name), json.loads(document(VECTORS[name]())), name) is None


@pytest.mark.parametrize("name", VECTORS)
def test_case_names_are_not_used_twice(name: str) -> None:
    names = [case["name"] for case in vectors(name) if "name" in case]
    assert len(set(names)) == len(names)


def test_every_reason_of_the_fault_table_occurs() -> None:
    found = {step["summary"]["reason"] for case in vectors("health") for step in case["steps"]}
    others = {"starting", "absent", "ended", "disconnected", "lost", "stale", "unusable", "clock", "frozen"}
    assert found == {row.reason for row in ROWS} | others | {"recovering", "flapping", "rate-low", None}


def test_every_kind_of_modality_is_accepted_and_refused_somewhere() -> None:
    cases = vectors("preprocess")
    accepted = {case["modality"]["kind"] for case in cases if "tensor" in case}
    refused = {case["modality"]["kind"] for case in cases if "refused" in case}
    assert accepted == {"image", "audio", "sequence", "vector", "text"}
    assert refused == accepted - {"text"}


def test_every_verdict_occurs() -> None:
    found = {case["outcome"]["verdict"] for case in vectors("policy")}
    assert found == {"accept", "reject", "abstain", "a", "b"}


def test_every_way_of_taking_no_part_occurs_in_the_loop() -> None:
    steps = [step for case in vectors("loop") for step in case["steps"]]
    reasons = {found["reason"] for step in steps for found in step["decision"]["modalities"].values()}
    transport = {"starting", "absent", "stale", "lost", "disconnected", "frozen", "unusable", "ended", "recovering"}
    assert reasons == transport | {None, "dark", "skew", "not configured", "no sample"}
    assert {step["decision"]["verdict"] for step in steps} == {"accept", "reject", "abstain"}
    assert any(step["asked"] and step["asked"]["cached"] != "none" for step in steps)


def test_a_vector_that_differs_is_found() -> None:
    wanted = vectors("preprocess")
    given = copy.deepcopy(wanted)
    tensor = read_array(given[3]["tensor"]).copy()
    tensor.flat[2] += 2e-6
    given[3]["tensor"] = array(tensor)
    assert difference(given, wanted, "preprocess") == "preprocess[3].tensor: differs by up to 2e-06"


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, "x: has ['a'], expected ['a', 'b']"),
        ([1], [1, 2], "x: has 1 entries, expected 2"),
        ([1.0], [1.1], "x[0]: is 1.0, expected 1.1"),
        ({"a": "stale"}, {"a": "lost"}, "x.a: is 'stale', expected 'lost'"),
        (1, True, "x: is 1, expected True"),
        ([1.0], [1.0 + 1e-9], None),
    ],
)
def test_the_first_difference_is_named(given: Any, wanted: Any, message: str | None) -> None:
    assert difference(given, wanted, "x") == message


def test_check_says_what_is_out_of_date_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = document([{"experts": [0]}])
    (tmp_path / "gates.json").write_text(stale)
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    monkeypatch.setattr(generate, "VECTORS", {"gates": lambda: [{"experts": [1]}]})
    monkeypatch.setattr("sys.argv", ["generate", "--check"])
    assert generate.main() == 1
    assert capsys.readouterr().err == "gates.json is out of date: gates[0].experts[0]: is 0, expected 1\n"
    assert (tmp_path / "gates.json").read_text() == stale
    monkeypatch.setattr("sys.argv", ["generate"])
    assert generate.main() == 0
    assert json.loads((tmp_path / "gates.json").read_text()) == [{"experts": [1]}]
