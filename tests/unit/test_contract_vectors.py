"""The vectors that other implementations must reproduce are what this one answers, and cover what it can answer."""

from __future__ import annotations

import copy
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from contract import generate
from contract.encoding import array, read_array
from contract.generate import FOLDER, VECTORS, difference, document
from mars_edge import preprocess
from mars_runtime import facts, health, limits, skew, surface
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


# A rule of this implementation, the number that it is, and numbers a little apart that other vectors must follow from.
RULES = [
    ("facts", facts, "STILL_SHARE", "0.001", ("0.002", "0.00101", "0.00099")),
    ("facts", facts, "TEXTURE_SHARE", "0.008", ("0.0082", "0.0079")),
    ("facts", facts, "_FULL_SCALE_AUDIO", "0.999", ("0.9", "0.9989", "0.9991")),
    ("facts", facts, "_UNCLIPPED_SHARE", "0.01", ("0.1", "0.0101", "0.0095")),
    ("facts", facts, "_THINNED_SIDE", "120", ("157", "100")),
    ("facts", facts, "_TEXTURE_SIDE", "180", ("235", "150")),
    ("facts", facts, "_BLOCK_CELLS", "12", ("16", "8")),
    ("facts", facts, "BLOCKS", "5", ("4", "6")),
    ("facts", facts, "_NOISE_ROWS", "24", ("23", "25")),
    ("facts", facts, "_NOISE_COLUMNS", "320", ("300", "340")),
    ("facts", facts, "_TRIMMED_MEAN", "0.51483", ("0.515",)),
    ("facts", facts.FactFinder, "_measured", "< 25.5", ("< 26.5", "< 24.5", "<= 26")),
    ("facts", facts, "_saturated", "0.98", ("0.97", "0.99", "0.97999", "0.98002")),
    ("facts", facts.FactFinder, "_sound", "1e-6", ("1e-5", "1e-7")),
    ("facts", surface, "STEP_SHARE", "0.1", ("0.13", "0.103", "0.097")),
    ("facts", surface, "_FEWEST", "50", ("49", "51")),
    ("limits", limits, "_NO_CALLBACK_S", "0.5", ("0.6", "0.4")),
    ("limits", limits, "limits_of", "2.0 *", ("2.6 *", "1.9 *")),
    ("limits", vars(limits.Limits)["stale_after_s"], "func", "0.2", ("0.26", "0.19")),
    ("limits", vars(limits.Limits)["skew_after_s"], "func", "0.05", ("0.06", "0.04")),
    ("health", health, "_observe_clock", "0.1 *", ("0.9 *", "0.11 *", "0.09 *")),
    ("health", health, "_observe_clock", "zero = event.stamped_s <= 0.0", ("zero = event.stamped_s <= 0.01",)),
    ("skew", skew, "_AS_FAST", "1.1", ("1.3", "1.104", "1.098")),
    ("preprocess", preprocess, "log_mel", "0.0, 1.0)", ("0.0, 1.3)", "0.1, 1.0)")),
    ("preprocess", preprocess, "_AUDIO_FLOOR_DB", "-80.0", ("-79.9", "-80.1")),
    # Every floor below the -80 dB that become 0 gives the same tensors; from there on it shows.
    ("preprocess", preprocess, "log_mel", "1e-12", ("1.02e-8", "2e-8")),
]


@pytest.mark.parametrize(
    ("vector", "owner", "name", "number", "other"),
    [(vector, owner, name, number, other) for vector, owner, name, number, others in RULES for other in others],
    ids=[f"{name} {number} {other}" for _, _, name, number, others in RULES for other in others],
)
def test_another_number_in_a_rule_is_another_vector(
    vector: str, owner: Any, name: str, number: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(getattr(owner, name), int | float):
        kind = type(getattr(owner, name))
        assert getattr(owner, name) == kind(number)
        monkeypatch.setattr(owner, name, kind(other))
    else:
        put(getattr(owner, name), number, other, monkeypatch)
    assert difference(vectors(vector), json.loads(document(VECTORS[vector]())), vector) is not None


def test_a_floor_under_what_becomes_silence_is_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    put(preprocess.log_mel, "1e-12", "1e-9", monkeypatch)
    assert difference(vectors("preprocess"), json.loads(document(VECTORS["preprocess"]())), "preprocess") is None


def put(function: Any, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function with another number in its source, for everybody who has it already."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1
    scope: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + source.replace(old, new), function.__name__, "exec")
    exec(code, dict(vars(inspect.getmodule(function))), scope)
    made = scope[function.__name__]
    monkeypatch.setattr(function, "__code__", getattr(made, "func", made).__code__)


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
