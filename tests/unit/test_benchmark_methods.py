"""What benchmarks/methods.py computes from its turns, and that its processes take them."""

from __future__ import annotations

import importlib
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_runtime.engines import engine_status
from mars_runtime.engines.protocol import NATIVE
from mars_runtime.models import find_model
from tests.fake_engine import FakeEngine, manifest


@pytest.fixture(scope="module")
def methods(repository: Path) -> Iterator[ModuleType]:
    sys.path.insert(0, str(repository / "benchmarks"))
    yield importlib.import_module("methods")
    sys.path.remove(str(repository / "benchmarks"))


@pytest.fixture(scope="module")
def turns(methods: ModuleType) -> ModuleType:
    return importlib.import_module("method_turns")


def processes(methods: ModuleType, *precisions: str) -> list[Any]:
    return [methods.Process(path="x", precision=p, threads=n) for p in precisions for n in (1, 2)]


def rounds_of(*medians: float) -> NDArray[np.float64]:
    """Twenty-one rounds with the same noise for all, so that every ratio is certain."""
    noise = np.random.default_rng(0).uniform(1.0, 3.0, (21, 1))
    measured: NDArray[np.float64] = noise / np.median(noise) * np.array([medians])
    return measured


def test_threads_are_compared_within_a_precision_and_precisions_at_equal_and_at_best_threads(
    methods: ModuleType,
) -> None:
    line = methods.line_of("route", processes(methods, "fp32", "int8"), rounds_of(8.0, 4.0, 2.0, 3.0))
    assert line.ms == {"fp32": {1: 8.0, 2: 4.0}, "int8": {1: 2.0, 2: 3.0}}
    assert {kind: ratios[2].value for kind, ratios in line.threads.items()} == pytest.approx({"fp32": 0.5, "int8": 1.5})
    assert [ratio.value for ratio in line.int8] == pytest.approx([2 / 8, 2 / 4])


def test_one_precision_is_compared_with_none(methods: ModuleType) -> None:
    assert methods.line_of("route", processes(methods, "int8"), rounds_of(2.0, 3.0)).int8 == []


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(100.0, 2.0), (400.0, 0.5)], 200.0),
        ([(50.0, 3.0), (100.0, 2.0), (400.0, 0.5), (900.0, 0.4)], 200.0),
        ([(100.0, 1.0), (400.0, 0.5)], 100.0),
        ([(100.0, 2.0), (400.0, 1.5)], None),
        ([(100.0, 0.9), (400.0, 0.5)], None),
        ([(100.0, 0.9), (200.0, 1.1), (400.0, 0.5)], None),
    ],
)
def test_more_threads_win_from_where_the_ratio_passes_one_if_it_does_so_once(
    methods: ModuleType, points: list[tuple[float, float]], expected: float | None
) -> None:
    found = methods.crossing("an engine", "int8", 2, points)
    if expected is None:
        assert found.macs is None
    else:
        assert found.macs == pytest.approx(expected)
        # The same point on the straight line between the two models, in logarithms.
        at = np.interp(math.log(found.macs), np.log([m for m, _ in points]), np.log([r for _, r in points]))
        assert at == pytest.approx(0.0, abs=1e-12)


def test_a_turn_times_every_stage_and_every_kind_of_decision(turns: ModuleType) -> None:
    engine = FakeEngine(manifest())
    found = turns.turn(engine, turns.sample_of(engine.manifest), pause_s=0.0, fastest=False)
    assert list(found)[:6] == ["encode_rgb", "encode_depth", "encode_ir", "route", "an expert", "head"]
    assert list(found)[6:] == [turns.WHOLE, *(f"decision, {name} alone" for name in ("rgb", "depth", "ir"))]
    assert engine.manifest.active_experts == 2
    # The fake's stages last 0.1 ms each.
    assert found["an expert"] == pytest.approx(0.05) and found["route"] == pytest.approx(0.1)
    asked = {frozenset(samples) for samples, _ in engine.calls}
    assert asked == {frozenset(("rgb", "depth", "ir")), *(frozenset((name,)) for name in ("rgb", "depth", "ir"))}


def test_the_fastest_call_is_no_slower_than_the_median_one(turns: ModuleType) -> None:
    class Slowing(FakeEngine):
        def infer(self, samples: Any, features: Any) -> Any:
            found = super().infer(samples, features)
            found.latency_ms["head"] = float(len(self.calls))
            return found

    sample = turns.sample_of(manifest())
    fastest, median = (
        turns.turn(Slowing(manifest()), sample, pause_s=0.0, fastest=fastest)["head"] for fastest in (True, False)
    )
    assert fastest < median


def test_a_second_file_of_one_precision_is_refused(methods: ModuleType) -> None:
    if not any(status.available for status in engine_status() if status.name == NATIVE):
        pytest.skip(f"{NATIVE} is not here")
    groups = methods.grouped(["face_antispoof.pte", "face_antispoof.onnx"], [1, 2])
    assert [[p.threads for p in found] for _, _, found in groups] == [[1, 2], [1, 2]]
    message = "face_antispoof.pte is a second int8 file of one model and format; give one of each"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        methods.grouped(["face_antispoof.pte", "face_antispoof.pte"], [1])


def test_a_real_model_has_its_turns_in_processes_of_their_own(methods: ModuleType, repository: Path) -> None:
    if not any(status.available for status in engine_status() if status.name == NATIVE):
        pytest.skip(f"{NATIVE} is not here")
    command = [sys.executable, str(repository / "benchmarks/methods.py"), str(find_model("spoken_digits.pte"))]
    command += ["--rounds", "2", "--threads", "1", "--threads", "3", "--patience", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[0].startswith("spoken_digits") and rows[0].endswith("MMAC")
    assert rows[1:] == [
        "encode_audio", "encode_image", "route", "an expert", "head",
        methods.WHOLE, "decision, audio alone", "decision, image alone",
    ]  # fmt: skip
    assert "executorch-native, int8, 3 threads: " in done.stdout


def test_a_file_that_is_not_there_ends_with_one_line_and_2(methods: ModuleType, repository: Path) -> None:
    command = [sys.executable, str(repository / "benchmarks/methods.py"), "/nowhere.pte"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("methods: ")
