"""Who decides how many threads an engine has, in processes of their own: ExecuTorch's pool belongs to the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mars_edge.artifact import verify
from mars_edge.errors import EngineError
from mars_edge.manifest import subset_cost
from mars_runtime.engines import open_engine
from mars_runtime.engines.native import NativeRunner
from mars_runtime.engines.protocol import BINDING, NATIVE, ONNX
from mars_runtime.engines.threads import MACS_PER_THREAD
from mars_runtime.models import find_model
from tests.contract.conftest import Artifacts, require_engine

_BEGIN = """
import sys
import numpy as np
from mars_edge.errors import EngineError
from mars_runtime.engines import graph, open_engine, opening, threads
KIND, FILE = sys.argv[1:]
def large(cores):
    "From now on every model is large, on a machine with so many cores."
    threads.MACS_PER_THREAD = dict.fromkeys(threads.MACS_PER_THREAD, 1)
    for module in (opening, graph):
        module.usable_cores = lambda: cores
def answer(engine):
    rng = np.random.default_rng(0)
    samples = {m.name: rng.random(m.shape, dtype=np.float32) for m in engine.manifest.modalities}
    return engine.infer(samples, {}).logits.tobytes()
"""
FILES = {NATIVE: "face_antispoof.pte", BINDING: "face_antispoof.pte", ONNX: "face_antispoof.onnx"}
OURS = (NATIVE, ONNX)


def run(kind: str, script: str, file: str | Path | None = None) -> str:
    """What a script prints in a fresh process; it finds the engine's name in KIND and a file in FILE."""
    require_engine(kind)
    command = [sys.executable, "-c", _BEGIN + script, kind, str(file or FILES[kind])]
    path = {"PYTHONPATH": ":".join(entry for entry in sys.path if entry)}
    result = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert result.returncode == 0, result.stderr
    # What the official binding imports talks on stderr.
    assert kind == BINDING or result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("kind", OURS)
def test_a_small_model_takes_one_thread_and_a_large_one_a_thread_per_core(kind: str) -> None:
    manifest = open_engine(FILES[kind], engine=kind).manifest
    assert 0 < subset_cost(manifest, manifest.names).macs < 2 * MACS_PER_THREAD[manifest.precision]
    printed = run(
        kind,
        "engine = open_engine(FILE, engine=KIND)\n"
        "print(engine.threads)\n"
        "engine.close()\n"
        "large(3)\n"
        "engine = open_engine(FILE, engine=KIND)\n"
        "print(engine.threads)\n",
    )
    assert printed == "1\n3\n"


@pytest.mark.parametrize("kind", OURS)
def test_a_number_that_is_given_is_the_number_that_runs(kind: str) -> None:
    printed = run(
        kind,
        "large(3)\nfor n in (2, 1, 4):\n e = open_engine(FILE, engine=KIND, threads=n)\n print(e.threads)\n e.close()",
    )
    assert printed == "2\n1\n4\n"


@pytest.mark.parametrize("kind", OURS)
def test_the_chosen_number_gives_the_bits_of_the_same_number_given(kind: str) -> None:
    run(
        kind,
        "large(3)\n"
        "answers = []\n"
        "for given in (None, 3, 1):\n"
        "    engine = open_engine(FILE, engine=KIND, threads=given)\n"
        "    answers.append(answer(engine))\n"
        "    engine.close()\n"
        "assert answers[0] == answers[1]\n",
    )


_SHARED = """
first = open_engine(FILE, engine=KIND)
before = answer(first)
large(3)
second = open_engine(FILE, engine=KIND)
print(first.threads, second.threads)
assert answer(first) == answer(second) == before
first.close()
third = open_engine(FILE, engine=KIND)
print(third.threads)
second.close()
third.close()
alone = open_engine(FILE, engine=KIND)
print(alone.threads)
assert answer(alone) == before
alone.close()
given = open_engine(FILE, engine=KIND, threads=2, self_test=False)
second = open_engine(FILE, engine=KIND)
print(given.threads, second.threads)
try:
    open_engine(FILE, engine=KIND, threads=3)
except EngineError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", [NATIVE, pytest.param(BINDING, marks=pytest.mark.slow)])
def test_a_second_engine_leaves_the_pool_and_the_answers_of_the_first_alone(kind: str) -> None:
    printed = run(kind, _SHARED)
    refused = "the process already runs a model with 2 threads; close it before asking for 3"
    # A number that was given holds before the first inference, too.
    assert printed.splitlines() == ["1 1", "1", "3", "2 2", refused]


def test_every_onnxruntime_engine_has_threads_of_its_own() -> None:
    printed = run(
        ONNX,
        "first, second = open_engine(FILE), open_engine(FILE, threads=2)\n"
        "large(3)\n"
        "print(first.threads, second.threads, open_engine(FILE).threads)\n",
    )
    assert printed == "1 2 3\n"


def test_engines_that_open_at_once_all_answer() -> None:
    printed = run(
        NATIVE,
        "from concurrent.futures import ThreadPoolExecutor\n"
        "expected = answer(open_engine(FILE, threads=1))\n"
        "large(3)\n"
        "for _ in range(5):\n"
        "    with ThreadPoolExecutor(8) as pool:\n"
        "        engines = list(pool.map(lambda _: open_engine(FILE, self_test=False), range(8)))\n"
        "        answers = set(pool.map(answer, engines))\n"
        "    assert len({engine.threads for engine in engines}) == 1\n"
        "    for engine in engines:\n        engine.close()\n"
        "    assert answers == {expected}\n"
        "print('done')\n",
    )
    assert printed == "done\n"


def test_a_model_without_costs_runs_on_every_core(tiny: Artifacts) -> None:
    printed = run(NATIVE, "large(3)\nprint(open_engine(FILE).threads)\n", tiny.in_place)
    assert printed == "3\n"


def test_a_preferred_number_out_of_range_is_refused() -> None:
    require_engine(NATIVE)
    runner = NativeRunner(verify(find_model(FILES[NATIVE])).payload)
    for wrong in (0, -1, 257):
        with pytest.raises(EngineError, match=rf"^threads must be 1 to 256, not {wrong}$"):
            runner.prefer_threads(wrong)
    runner.close()
    with pytest.raises(EngineError, match=r"^the engine is closed$"):
        runner.prefer_threads(1)
