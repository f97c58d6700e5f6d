"""Damaged files and abused runners: a named error every time, never a crash, never a silent answer."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mars_edge.artifact import verify
from mars_edge.errors import EngineError, ModelFileError
from mars_runtime.engines import Engine, open_engine
from mars_runtime.engines.native import NativeRunner
from mars_runtime.engines.protocol import NATIVE, ONNX
from tests.contract.conftest import Artifacts, require_engine
from tests.helpers.tiny_artifact import NAMES, sample

FORMATS = ["in_place", "onnx"]


def is_refused(data: bytes, path: Path) -> bool:
    path.write_bytes(data)
    try:
        open_engine(path).close()
    except ModelFileError as error:
        return str(path) in str(error) and "\n" not in str(error)
    return False


@pytest.mark.parametrize("artifact", FORMATS)
def test_a_file_cut_at_any_of_200_places_is_refused(artifact: str, tiny: Artifacts, tmp_path: Path) -> None:
    whole = getattr(tiny, artifact).read_bytes()
    source = random.Random(1)
    cuts = [0, 1, len(whole) - 1, *(source.randrange(len(whole)) for _ in range(197))]
    accepted = [cut for cut in cuts if not is_refused(whole[:cut], tmp_path / "cut")]
    assert accepted == []


@pytest.mark.parametrize("artifact", FORMATS)
def test_every_one_of_2000_flipped_bytes_is_refused(artifact: str, tiny: Artifacts, tmp_path: Path) -> None:
    data = bytearray(getattr(tiny, artifact).read_bytes())
    source = random.Random(2)
    accepted = []
    for _ in range(2000):
        position, change = source.randrange(len(data)), source.randrange(1, 256)
        data[position] ^= change
        if not is_refused(bytes(data), tmp_path / "flipped"):
            accepted.append((position, change))
        data[position] ^= change
    assert accepted == []


def test_random_files_are_refused(tmp_path: Path) -> None:
    source = random.Random(3)
    heads = [b"", b"\x1c\0\0\0ET12", b"\x08\x0a\x12", b"PK\3\4"]
    for index in range(200):
        data = heads[index % 4] + source.randbytes(source.randrange(5000))
        assert is_refused(data, tmp_path / "random")


def test_500_random_wrong_calls_are_refused_and_the_next_right_one_is_answered(tiny_pte: Path) -> None:
    require_engine(NATIVE)
    runner = NativeRunner(verify(tiny_pte).payload)
    source = np.random.default_rng(4)
    feature = source.random((1, 4, 8, 8), dtype=np.float32)
    expected = runner.execute("route", [feature] * 3)
    for _ in range(500):
        with pytest.raises(EngineError, match=r"^(method 'route'|no method)"):
            runner.execute(*wrong_call(source, feature))
    for ours, again in zip(expected, runner.execute("route", [feature] * 3), strict=True):
        assert np.array_equal(ours, again)
    runner.close()


def wrong_call(source: np.random.Generator, feature: Any) -> tuple[str, list[Any]]:
    """A method name or an argument list that no method of the tiny program takes."""
    kind = source.integers(4)
    inputs = [feature] * 3
    if kind == 0:
        return "route" + chr(source.integers(33, 0x2FF)), inputs
    if kind == 1:
        return "route", [feature] * int(source.choice([0, 1, 2, 4, 40]))
    spoiled = int(source.integers(3))
    if kind == 2:
        inputs[spoiled] = feature.astype(source.choice(["f2", "f8", "i8", "u1", "?", "c8", "S3"]))
    else:
        shape = tuple(int(n) for n in source.integers(0, 9, size=source.integers(0, 6)))
        inputs[spoiled] = np.zeros(shape if shape != feature.shape else (), np.float32)
    return "route", inputs


def test_an_unknown_handle_is_refused_by_the_library_itself(tiny_pte: Path) -> None:
    require_engine(NATIVE)
    runner = NativeRunner(verify(tiny_pte).payload)
    runner.close()
    for call in (runner.methods, runner.memory, lambda: runner.describe("route"), lambda: runner.execute("route", [])):
        with pytest.raises(EngineError, match=r"^the engine is closed$"):
            call()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def growth_over(engine: Engine, rounds: int) -> int:
    """Resident bytes added by `rounds` inferences after a warm-up that fills every pool."""
    arrays = sample(0)
    for _ in range(300):
        engine.infer(arrays, {})
    before = resident_bytes()
    for round_ in range(rounds):
        name = NAMES[round_ % 3]
        engine.infer({name: arrays[name]}, {})
    return resident_bytes() - before


def test_memory_stays_flat_over_1000_inferences(engine: Engine) -> None:
    assert growth_over(engine, 1000) < 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_stays_flat_over_100_000_executions(engine: Engine) -> None:
    # With one modality a .pte executes five methods: encoder, route, two experts, head.
    executions_per_inference = 1 if engine.name == ONNX else 5
    assert growth_over(engine, 100_000 // executions_per_inference) < 2_000_000


def test_opening_and_closing_300_times_leaves_no_memory_behind(tiny_pte: Path) -> None:
    require_engine(NATIVE)
    for _ in range(30):
        open_engine(tiny_pte, engine=NATIVE).close()
    before = resident_bytes()
    for _ in range(300):
        open_engine(tiny_pte, engine=NATIVE).close()
    assert resident_bytes() - before < 2_000_000


def hammer_all(engine: Engine, seconds: float) -> int:
    """Eight threads, each checking every answer it gets; how many answers there were."""
    inputs = [sample(seed) for seed in range(8)]
    expected = [engine.infer(arrays, {}).logits for arrays in inputs]
    until = time.monotonic() + seconds

    def hammer(index: int) -> int:
        count = 0
        while time.monotonic() < until:
            assert np.array_equal(engine.infer(inputs[index], {}).logits, expected[index])
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(hammer, range(8)))


def test_eight_threads_hammering_one_engine_get_only_right_answers(engine: Engine) -> None:
    assert hammer_all(engine, 0.5) > 8


@pytest.mark.slow
def test_eight_threads_hammering_one_engine_for_a_minute_get_only_right_answers(engine: Engine) -> None:
    assert hammer_all(engine, 60) > 1000
