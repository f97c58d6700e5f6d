"""What every engine must do, held against the plain dense computation in torch."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mars_edge.artifact import seal, verify, write_sealed
from mars_edge.errors import EngineError, ModelFileError, UsageError
from mars_edge.subsets import all_subsets
from mars_runtime.engines import Engine, open_engine, read_manifest
from mars_runtime.engines.binding import PythonRunner
from mars_runtime.engines.native import NativeRunner
from mars_runtime.engines.one_call import OneCallEngine
from mars_runtime.engines.protocol import BINDING, NATIVE, ONNX
from mars_runtime.engines.staged import StagedEngine
from tests.contract.conftest import ENGINE_CASES, Artifacts, require_engine
from tests.helpers.tiny_artifact import NAMES, TinyModel, lower, sample, serialise, write_onnx

FEATURE = (1, 4, 8, 8)
# Every modality is new, cached or missing; at least one is there.
PRESENCES = [state for state in product(("new", "cached", "missing"), repeat=3) if set(state) != {"missing"}]


def split(state: tuple[str, ...], seed: int, model: TinyModel) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays = sample(seed)
    roles = dict(zip(NAMES, state, strict=True))
    samples = {name: arrays[name] for name in NAMES if roles[name] == "new"}
    cached = {name: arrays[name] for name in NAMES if roles[name] == "cached"}
    return samples, model.answer(cached, {})[2] if cached else {}


@pytest.mark.parametrize("state", PRESENCES, ids="-".join)
def test_an_engine_answers_as_the_dense_computation(engine: Engine, tiny: Artifacts, state: tuple[str, ...]) -> None:
    for seed in range(3):
        samples, cached = split(state, seed, tiny.model)
        result = engine.infer(samples, cached)
        logits, gates, features = tiny.model.answer(samples, cached)
        np.testing.assert_allclose(result.logits, logits, atol=2e-6)
        assert result.logits.shape == (3,) and result.logits.dtype == np.float32
        assert [index for index, _ in result.experts] == list(gates)
        np.testing.assert_allclose([gate for _, gate in result.experts], list(gates.values()), atol=1e-6)
        assert list(result.features) == [name for name in NAMES if name in features]
        for name, feature in features.items():
            np.testing.assert_allclose(result.features[name], feature, atol=2e-6)


@pytest.mark.parametrize("subset", all_subsets(NAMES), ids="+".join)
def test_cached_features_give_the_same_answer_as_new_samples(engine: Engine, subset: tuple[str, ...]) -> None:
    arrays = sample(3)
    fresh = engine.infer({name: arrays[name] for name in subset}, {})
    again = engine.infer({}, fresh.features)
    assert np.array_equal(again.logits, fresh.logits)
    assert again.experts == fresh.experts


def test_only_what_ran_has_a_latency(engine: Engine) -> None:
    arrays = sample(0)
    cached = engine.infer({"depth": arrays["depth"]}, {}).features
    latency = engine.infer({"rgb": arrays["rgb"]}, cached).latency_ms
    stages = {"encode.rgb", "fuse", "experts", "head"}
    assert set(latency) == ({"graph"} if engine.name == ONNX else stages)
    assert all(0 < value < 1e4 for value in latency.values())


def test_an_answer_does_not_change_when_the_engine_is_used_again(engine: Engine) -> None:
    first = engine.infer(sample(0), {})
    kept = first.logits.copy(), {name: feature.copy() for name, feature in first.features.items()}
    engine.infer(sample(1), {})
    assert np.array_equal(first.logits, kept[0])
    assert all(np.array_equal(first.features[name], kept[1][name]) for name in NAMES)


def test_inputs_are_left_alone_and_may_be_read_only_or_out_of_order(engine: Engine) -> None:
    arrays = sample(0)
    expected = engine.infer(arrays, {}).logits
    odd = {name: np.asfortranarray(array) for name, array in arrays.items()}
    for array in odd.values():
        array.setflags(write=False)
    assert np.array_equal(engine.infer(odd, {}).logits, expected)
    assert all(np.array_equal(odd[name], sample(0)[name]) for name in NAMES)


def test_an_input_at_the_very_end_of_a_page_is_read_correctly(engine: Engine) -> None:
    arrays = sample(0)
    expected = engine.infer(arrays, {}).logits
    for name, array in arrays.items():
        buffer = np.zeros(array.nbytes + 8192, np.uint8)
        end = -(buffer.ctypes.data + array.nbytes) % 4096 + array.nbytes
        moved = buffer[end - array.nbytes : end].view(np.float32).reshape(array.shape)
        moved[:] = array
        arrays[name] = moved
    assert np.array_equal(engine.infer(arrays, {}).logits, expected)


BAD_REQUESTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "no modality is present; give at least one of: rgb, depth, ir"),
    ({"lidar": np.zeros(3)}, {}, "unknown modality 'lidar'; this model has: rgb, depth, ir"),
    (
        {"ir": np.zeros((1, 16, 16), np.float32)},
        {"ir": np.zeros(FEATURE, np.float32)},
        "modality 'ir' is given as a new sample and as a cached feature; give one",
    ),
    (
        {"rgb": np.zeros((1, 16, 16), np.float32)},
        {},
        "sample of 'rgb': expected float32 (3, 16, 16), given float32 (1, 16, 16)",
    ),
    ({"rgb": np.zeros((3, 16, 16))}, {}, "sample of 'rgb': expected float32 (3, 16, 16), given float64 (3, 16, 16)"),
    ({"ir": [1.0]}, {}, "sample of 'ir': expected float32 (1, 16, 16), given a list, not an array"),
    (
        {},
        {"ir": np.zeros((4, 8, 8), np.float32)},
        "cached feature of 'ir': expected float32 (1, 4, 8, 8), given float32 (4, 8, 8)",
    ),
    (
        {"depth": np.full((1, 16, 16), np.nan, np.float32)},
        {},
        "sample of 'depth' holds NaN; every value must be finite",
    ),
    (
        {"depth": np.full((1, 16, 16), -np.inf, np.float32)},
        {},
        "sample of 'depth' holds an infinity; every value must be finite",
    ),
    (
        {},
        {"depth": np.full(FEATURE, np.inf, np.float32)},
        "cached feature of 'depth' holds an infinity; every value must be finite",
    ),
]


@pytest.mark.parametrize(("samples", "features", "message"), BAD_REQUESTS, ids=[case[2][:40] for case in BAD_REQUESTS])
def test_a_bad_request_is_refused_in_one_line(
    engine: Engine, samples: dict[str, Any], features: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError) as caught:
        engine.infer(samples, features)
    assert str(caught.value) == message


def test_finite_input_that_overflows_inside_is_an_error_not_an_answer(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"^(router )?logits holds (NaN|an infinity); every value must be finite$"):
        engine.infer({"rgb": np.full((3, 16, 16), 3e38, np.float32)}, {})


def test_many_threads_on_one_engine_get_their_own_answers(engine: Engine) -> None:
    inputs = [sample(seed) for seed in range(8)]
    expected = [engine.infer(arrays, {}).logits for arrays in inputs]

    def hammer(index: int) -> None:
        for _ in range(25):
            assert np.array_equal(engine.infer(inputs[index], {}).logits, expected[index])

    run_threads(8, hammer)


@pytest.mark.parametrize("case", sorted(ENGINE_CASES))
def test_two_engines_in_two_threads_do_not_disturb_each_other(case: str, tiny: Artifacts) -> None:
    name, artifact = ENGINE_CASES[case]
    require_engine(name)
    engines = [open_engine(getattr(tiny, artifact), engine=name) for _ in range(2)]
    expected = [engines[0].infer(sample(seed), {}).logits for seed in range(2)]

    def hammer(index: int) -> None:
        for _ in range(50):
            assert np.array_equal(engines[index].infer(sample(index), {}).logits, expected[index])

    run_threads(2, hammer)
    for opened in engines:
        opened.close()


@pytest.mark.parametrize("case", sorted(ENGINE_CASES))
def test_a_closed_engine_refuses_and_may_be_closed_again(case: str, tiny: Artifacts) -> None:
    name, artifact = ENGINE_CASES[case]
    require_engine(name)
    opened = open_engine(getattr(tiny, artifact), engine=name)
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match=r"^the engine is closed$"):
        opened.infer(sample(0), {})


@pytest.mark.parametrize("case", sorted(ENGINE_CASES))
def test_closing_while_others_infer_ends_in_answers_or_errors(case: str, tiny: Artifacts) -> None:
    name, artifact = ENGINE_CASES[case]
    require_engine(name)
    opened = open_engine(getattr(tiny, artifact), engine=name)
    expected = opened.infer(sample(0), {}).logits
    started, outcomes = threading.Barrier(5), []

    def hammer(index: int) -> None:
        started.wait()
        if index == 4:
            opened.close()
            return
        for _ in range(50):
            try:
                outcomes.append(bool(np.array_equal(opened.infer(sample(0), {}).logits, expected)))
            except EngineError as error:
                outcomes.append(str(error) == "the engine is closed")

    run_threads(5, hammer)
    assert len(outcomes) == 200 and all(outcomes)


def test_the_wrong_answer_on_this_device_is_caught_before_the_first_decision(tiny: Artifacts, tmp_path: Path) -> None:
    require_engine(ONNX)
    path = tmp_path / "other.onnx"
    write_onnx(TinyModel.create(seed=8), path, manifest=tiny.model.manifest())
    message = r"^self-test failed in onnxruntime: logits for rgb are off by 0\.\d+, allowed 0\.0001; "
    with pytest.raises(EngineError, match=message):
        open_engine(path)
    opened = open_engine(path, self_test=False)
    assert opened.infer(sample(0), {}).logits.shape == (3,)
    opened.close()


@pytest.mark.parametrize("artifact", ["in_place", "planned", "onnx"])
def test_the_manifest_comes_back_equal(artifact: str, tiny: Artifacts) -> None:
    assert read_manifest(verify(getattr(tiny, artifact))) == tiny.model.manifest()


def test_a_missing_file_names_the_bundled_models() -> None:
    with pytest.raises(UsageError, match=r"^no model file nope\.pte; bundled models: "):
        open_engine("nope.pte")


def test_an_engine_for_another_format_is_a_usage_error(tiny: Artifacts) -> None:
    message = rf"^engine 'onnxruntime' cannot run a \.pte; allowed: {NATIVE}, {BINDING}$"
    with pytest.raises(UsageError, match=message):
        open_engine(tiny.in_place, engine=ONNX)


def test_a_graph_that_is_not_its_manifest_is_refused(tiny: Artifacts, tmp_path: Path) -> None:
    require_engine(ONNX)
    wrong = dict.fromkeys(NAMES, (4, 8, 9))
    path = tmp_path / "odd.onnx"
    write_onnx(tiny.model, path, manifest=replace(tiny.model.manifest(), feature_shapes=wrong))
    with pytest.raises(ModelFileError, match=r"^the graph's inputs .* are not those of its manifest"):
        open_engine(path)


def test_a_graph_with_another_output_than_its_manifest_promises_is_refused(tiny: Artifacts, tmp_path: Path) -> None:
    require_engine(ONNX)
    path = tmp_path / "odd.onnx"
    manifest = replace(tiny.model.manifest(), labels=("one", "bona_fide"), golden=None)
    write_onnx(tiny.model, path, manifest=manifest)
    with pytest.raises(ModelFileError) as caught:
        open_engine(path)
    assert str(caught.value) == "the graph's output logits is float32 (1, 3), its manifest promises float32 (1, 2)"
    write_onnx(tiny.model, path, manifest=replace(manifest, task="segmentation"))
    with pytest.raises(ModelFileError) as caught:
        open_engine(path)
    wanted = "float32 (1, 2, 16, 16)"
    assert str(caught.value) == f"the graph's output logits is float32 (1, 3), its manifest promises {wanted}"


def test_a_program_without_manifest_or_methods_is_refused(tiny: Artifacts, tmp_path: Path) -> None:
    require_engine(NATIVE)
    head = {"head": tiny.model.pieces["head"]}
    path = tmp_path / "odd.pte"
    write_sealed(path, serialise(lower(head, None), planned_io=True))
    with pytest.raises(ModelFileError, match=r"^the \.pte program has no manifest method: not exported by mars-edge$"):
        open_engine(path)
    write_sealed(path, serialise(lower(head, tiny.model.manifest()), planned_io=True))
    with pytest.raises(ModelFileError, match=r"^the \.pte program lacks the method 'encode_depth' its manifest"):
        open_engine(path)


def test_an_empty_program_with_a_right_seal_is_refused(tmp_path: Path) -> None:
    require_engine(NATIVE)
    path = tmp_path / "empty.pte"
    path.write_bytes(seal(b"\0\0\0\0ET12" + bytes(64)))
    with pytest.raises(ModelFileError, match=r"^the program cannot be loaded: Error::InvalidProgram"):
        open_engine(path, engine=NATIVE)


def test_native_and_official_binding_agree_bit_for_bit_on_every_method(tiny_pte: Path) -> None:
    require_engine(NATIVE)
    require_engine(BINDING)
    program = verify(tiny_pte).payload
    native, official = NativeRunner(program), PythonRunner(program)
    assert sorted(native.methods()) == sorted(official.methods())
    random = np.random.default_rng(0)
    for method in native.methods():
        spec = native.describe(method)
        assert spec == official.describe(method)
        for _ in range(5):
            inputs = [random.standard_normal(entry.shape, dtype=np.float32) for entry in spec.inputs]
            pairs = zip(native.execute(method, inputs), official.execute(method, inputs), strict=True)
            assert all(np.array_equal(ours, theirs) for ours, theirs in pairs), method
    native.close()
    official.close()


@pytest.mark.parametrize("kind", [NativeRunner, PythonRunner])
def test_a_runner_names_method_argument_expected_and_given(kind: Any, tiny_pte: Path) -> None:
    require_engine(kind.name)
    runner = kind(verify(tiny_pte).payload)
    good = np.zeros(FEATURE, np.float32)
    cases: list[tuple[str, list[Any], str]] = [
        ("nope", [], "no method 'nope' in the program"),
        ("a\0b", [], "no method 'a\\x00b' in the program"),
        ("route", [good], "method 'route': expected 3 inputs, given 1"),
        (
            "route",
            [good, good, good.astype(np.float16)],
            "method 'route' input 2: expected float32 (1, 4, 8, 8), given float16 (1, 4, 8, 8)",
        ),
        (
            "route",
            [good, good[0], good],
            "method 'route' input 1: expected float32 (1, 4, 8, 8), given float32 (4, 8, 8)",
        ),
        (
            "route",
            [good, None, good],
            "method 'route' input 1: expected float32 (1, 4, 8, 8), given a NoneType, not an array",
        ),
    ]
    for method, inputs, message in cases:
        with pytest.raises(EngineError) as caught:
            runner.execute(method, inputs)
        assert str(caught.value) == message
    assert len(runner.execute("route", [good, good, good])) == 2
    runner.close()


def test_native_results_go_into_the_callers_arrays(tiny_pte: Path) -> None:
    require_engine(NATIVE)
    runner = NativeRunner(verify(tiny_pte).payload)
    x = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
    out = np.full(FEATURE, np.nan, np.float32)
    runner.execute_into("encode_rgb", [x], [out])
    assert np.array_equal(out, runner.execute("encode_rgb", [x])[0])
    with pytest.raises(EngineError, match=r"output 0: expected a writable float32 \(1, 4, 8, 8\) in C order, given"):
        runner.execute_into("encode_rgb", [x], [np.asfortranarray(out)])
    runner.close()


def test_native_methods_load_on_first_use_and_memory_is_reported(tiny: Artifacts) -> None:
    require_engine(NATIVE)
    sealed = verify(tiny.in_place)
    runner = NativeRunner(sealed.payload)
    assert runner.memory().methods_loaded == 0
    assert runner.memory().program_bytes == sealed.payload_bytes
    runner.execute("encode_ir", [np.zeros((1, 1, 16, 16), np.float32)])
    assert runner.memory().methods_loaded == 1
    assert runner.memory().method_bytes > 0
    runner.close()


def test_the_thread_pool_cannot_change_under_a_loaded_model(tiny: Artifacts) -> None:
    require_engine(NATIVE)
    script = (
        "import sys; from mars_runtime.engines import open_engine\n"
        "from mars_edge.errors import EngineError\n"
        "first = open_engine(sys.argv[1], threads=1)\n"
        "open_engine(sys.argv[1], threads=1).close()\n"
        "try:\n    open_engine(sys.argv[1], threads=3)\n"
        "except EngineError as error:\n    print(error)\n"
        "first.close()\n"
        "open_engine(sys.argv[1], threads=3).close()\n"
        "assert 'torch' not in sys.modules and 'executorch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(tiny.in_place)]
    path = {"PYTHONPATH": ":".join(entry for entry in sys.path if entry)}
    result = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "the process already runs a model with 1 threads; close it before asking for 3\n"


def test_only_the_chosen_experts_and_new_encoders_are_executed(tiny: Artifacts) -> None:
    require_engine(NATIVE)
    engine = open_engine(tiny.in_place, engine=NATIVE, self_test=False)
    assert isinstance(engine, OneCallEngine)
    before = engine.runner.memory().methods_loaded
    result = engine.infer({"ir": sample(0)["ir"]}, {})
    # Methods load at their first use: one encoder, route, the chosen experts, head.
    assert engine.runner.memory().methods_loaded - before == 3 + len(result.experts)
    assert len(result.experts) < engine.manifest.experts
    engine.close()


def test_one_call_gives_the_bits_of_a_loop_over_the_methods(tiny: Artifacts) -> None:
    require_engine(NATIVE)
    engine = open_engine(tiny.in_place, engine=NATIVE)
    assert isinstance(engine, OneCallEngine)
    loop = StagedEngine(engine.manifest, engine.runner)
    names = engine.manifest.names
    for seed in range(20):
        samples = sample(seed)
        kept = loop.infer(sample(seed + 100), {}).features
        for present in all_subsets(names):
            fresh = {name: samples[name] for name in present[seed % 2 :]}
            cached = {name: kept[name] for name in present if name not in fresh}
            one, many = engine.infer(fresh, cached), loop.infer(fresh, cached)
            assert one.logits.tobytes() == many.logits.tobytes()
            assert one.experts == many.experts
            assert {n: f.tobytes() for n, f in one.features.items()} == {
                n: f.tobytes() for n, f in many.features.items()
            }
            assert list(one.latency_ms) == list(many.latency_ms)
    engine.close()


def run_threads(count: int, body: Callable[[int], None]) -> None:
    """Runs body(0) ... body(count - 1) at once; the first exception of any is raised here."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(body, range(count)))
