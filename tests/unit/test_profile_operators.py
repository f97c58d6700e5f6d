"""Times of single operators: what is added up, what is left out, and that both runtimes really tell them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mars_edge.artifact import onnx_manifest, verify
from mars_edge.errors import EngineError
from mars_edge.manifest import Manifest
from mars_runtime.engines import graph, native, read_manifest
from mars_runtime.engines.native import NativeRunner
from mars_runtime.models import find_model
from mars_runtime.profiling import native_trace, operators
from mars_runtime.profiling.native_trace import summed
from mars_runtime.profiling.operators import costs_of, delegate_share, describe, graph_costs
from mars_runtime.profiling.statistics import midmean

LINES = """\
0\tdelegate\tConvolution (NHWC, QC8) IGEMM #1\t0\t14000
0\tdelegate\tConvolution (NHWC, QC8) IGEMM #2\t0\t6000
0\truntime\tDELEGATE_CALL\t0\t25000
0\truntime\tnative_call_mean.out\t1\t3000
0\truntime\tOPERATOR_CALL\t1\t4000
0\truntime\tMethod::execute\t0\t31000
"""


def program_of(name: str) -> bytes:
    return bytes(verify(find_model(name)).payload)


def need_trace() -> None:
    reason = native_trace.absence()
    if reason is not None:
        pytest.skip(reason)


def test_instructions_that_only_hold_others_are_no_operators() -> None:
    found = summed("route", LINES, 1)
    assert (found.method, found.us, found.delegate_us) == ("route", 31.0, 25.0)
    assert [(o.name, o.where, o.us) for o in found.operators] == [
        ("Convolution (NHWC, QC8) IGEMM #1", "delegate", 14.0),
        ("Convolution (NHWC, QC8) IGEMM #2", "delegate", 6.0),
        ("mean.out", "kernel", 3.0),
    ]


def test_operators_of_one_kind_are_one_line_and_the_lines_add_up_to_the_method() -> None:
    costs = costs_of(summed("route", LINES, 1))
    assert [(c.operator, c.calls, c.us) for c in costs] == [
        ("Convolution (NHWC, QC8) IGEMM", 2, 20.0),
        ("mean.out", 1, 3.0),
        ("between operators", 1, 8.0),
    ]
    assert sum(cost.us for cost in costs) == 31.0


def test_the_delegate_s_share_is_told_of_operators_and_of_time() -> None:
    found = delegate_share([summed("route", LINES, 1)])
    assert found == {
        "operators": 3,
        "operators_on_delegate": 2,
        "operators_share": pytest.approx(2 / 3),
        "time_share": pytest.approx(25 / 31),
    }
    assert delegate_share([]) == {"operators": 0, "operators_on_delegate": 0, "operators_share": 0.0, "time_share": 0.0}


def test_a_run_that_another_process_disturbed_changes_no_operator() -> None:
    calm = "".join(LINES.replace("0\t", f"{run}\t", 1).replace("\n0\t", f"\n{run}\t") for run in range(8))
    burst = calm.replace("3\truntime\tnative_call_mean.out\t1\t3000", "3\truntime\tnative_call_mean.out\t1\t9000000")
    assert burst != calm
    assert summed("route", burst, 8) == summed("route", calm, 8)


def test_the_middle_half_is_finer_than_its_steps() -> None:
    assert midmean([1.0, 2.0, 2.0, 3.0]) == 2.0
    assert midmean([0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 900.0]) == 2.0
    assert midmean([5.0]) == 5.0


def events(run: int, begin: int) -> list[dict[str, Any]]:
    def node(name: str, op: str, at: int, dur: int) -> dict[str, Any]:
        return {
            "cat": "Node", "name": name, "ts": at, "dur": dur,
            "args": {"op_name": op, "provider": "CPUExecutionProvider"},
        }  # fmt: skip

    return [
        {"cat": "Session", "name": "model_run", "ts": begin, "dur": 100},
        node("encode_ir/conv_1_kernel_time", "QLinearConv", begin + 1, 20 + run),
        node("encode_ir/conv_2_kernel_time", "QLinearConv", begin + 30, 10),
        node("encode_ir_kernel_time", "If", begin + 1, 60),
        node("Squeeze_3_kernel_time", "Squeeze", begin + 70, 5),
    ]


def test_an_if_of_the_graph_is_left_out_because_its_operators_are_in() -> None:
    costs = graph_costs(events(0, 1000) + events(0, 2000), ("encode_ir",), 2)
    assert [(c.method, c.operator, c.calls, c.us) for c in costs] == [
        ("encode_ir", "QLinearConv", 2, 30.0),
        ("graph", "Squeeze", 1, 5.0),
        ("graph", "between operators", 1, 65.0),
    ]


def test_the_warm_up_of_a_graph_is_not_counted() -> None:
    slow = [{**event, "dur": 50_000} for event in events(0, 10)]
    assert graph_costs(slow + events(0, 1_000_000), ("encode_ir",), 1) == graph_costs(
        events(0, 1_000_000), ("encode_ir",), 1
    )
    assert graph_costs([], ("encode_ir",), 1) == []


def test_the_calls_of_a_decision_are_those_its_engine_makes() -> None:
    need_trace()
    sealed = verify(find_model("spoken_digits.pte"))
    manifest, runner = read_manifest(sealed), NativeRunner(sealed.payload, threads=1)
    try:
        samples = operators._samples(manifest)
        names = [name for name, _ in operators.calls_of_decision(manifest, runner, samples)]
    finally:
        runner.close()
    experts = [name for name in names if name.startswith("expert_") and name != "expert_shared"]
    assert names[:3] == ["encode_audio", "encode_image", "route"]
    assert names[-1] == "head"
    assert len(set(experts)) == manifest.active_experts


def test_a_pte_tells_operators_of_delegate_and_kernels_that_fit_into_their_method() -> None:
    need_trace()
    found = describe(find_model("face_antispoof.pte"), threads=1)
    assert (found["reason"], found["source"]) == (None, "ExecuTorch event tracer")
    places = {cost["where"] for cost in found["costs"]}
    assert places == {"delegate", "kernel", "runtime"}
    assert any("Convolution" in cost["operator"] for cost in found["costs"] if cost["method"] == "encode_rgb")
    assert 0.5 < found["delegate"]["operators_share"] < 1.0
    assert 0.0 < found["delegate"]["time_share"] <= 1.0
    assert all(len(row) == len(found["header"]) for row in found["rows"])


def test_the_parts_of_a_traced_method_are_no_longer_than_the_method() -> None:
    need_trace()
    manifest = read_manifest(verify(find_model("face_antispoof.pte")))
    samples = operators._samples(manifest)
    found = native_trace.trace(
        program_of("face_antispoof.pte"), "encode_rgb", [samples["rgb"][np.newaxis]], warmup=3, runs=20
    )
    assert found.us > 0.0
    # Both are robust means of the same runs, not sums of one: a fifth is for that.
    assert sum(operator.us for operator in found.operators) <= 1.2 * found.us
    assert found.delegate_us <= 1.2 * found.us


def test_an_onnx_tells_operators_by_method() -> None:
    if graph.absence() is not None:
        pytest.skip(str(graph.absence()))
    found = describe(find_model("face_antispoof.onnx"), threads=1)
    assert (found["source"], found["delegate"]) == ("onnxruntime profile", None)
    methods = {cost["method"] for cost in found["costs"]}
    assert {"encode_rgb", "encode_depth", "encode_ir", "head", "graph"} <= methods
    assert all(cost["us"] >= 0.0 for cost in found["costs"])


@pytest.mark.parametrize("threads", [None, 2])
def test_a_graph_is_profiled_with_the_options_its_engine_runs_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: int | None
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    seen: list[Any] = []

    class StoppedError(Exception):
        pass

    def session(_model: bytes, options: Any, **_named: Any) -> Any:
        seen.append(options)
        raise StoppedError

    sealed = verify(find_model("face_antispoof.onnx"))
    manifest = Manifest.from_json(onnx_manifest(sealed))
    monkeypatch.setattr(runtime, "InferenceSession", session)
    with pytest.raises(StoppedError):
        graph.OnnxEngine(manifest, sealed.data, threads=threads)
    with pytest.raises(StoppedError):
        operators._profiled(sealed.data, manifest, threads, tmp_path)
    spinning = "session.intra_op.allow_spinning"
    engine, profile = (
        (o.intra_op_num_threads, o.inter_op_num_threads, o.execution_mode, o.get_session_config_entry(spinning))
        for o in seen
    )
    assert profile == engine
    assert seen[1].enable_profiling


def test_an_engine_that_cannot_time_operators_says_so_in_one_line() -> None:
    found = describe(find_model("face_antispoof.pte"), "executorch-python")
    assert found["reason"] == "executorch-python does not time operators; --engine executorch-native does"
    assert found["rows"] == found["costs"] == []


def test_an_older_build_of_the_native_engine_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    need_trace()
    native_trace._library.cache_clear()
    monkeypatch.setattr(native_trace, "_LIBRARY", "libmars_no_such.so")
    try:
        said = "this build of the native engine does not time operators: reinstall the package"
        assert native_trace.absence() == said
        assert describe(find_model("face_antispoof.pte"))["reason"] == said
    finally:
        native_trace._library.cache_clear()


def test_without_the_native_engine_the_reason_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "absence", lambda: "not built: no compiler")
    said = native_trace.absence()
    assert said == "operators are timed by the native engine, which is not here: not built: no compiler"


@pytest.mark.parametrize(
    ("method", "inputs", "message"),
    [
        ("no_such", 0, r"^no method 'no_such' in the program: "),
        ("encode_rgb", 2, r"^method 'encode_rgb' takes 1 inputs, given 2$"),
    ],
)
def test_a_wrong_request_to_the_tracer_is_an_error_and_no_crash(method: str, inputs: int, message: str) -> None:
    need_trace()
    given = [np.zeros((1, 3, 112, 112), np.float32)] * inputs
    with pytest.raises(EngineError, match=message):
        native_trace.trace(program_of("face_antispoof.pte"), method, given, warmup=0, runs=1)


def test_bytes_that_are_no_program_are_an_error_and_no_crash() -> None:
    need_trace()
    with pytest.raises(EngineError, match=r"^the program cannot be loaded: "):
        native_trace.trace(b"\0" * 4096, "route", [], warmup=0, runs=1)
