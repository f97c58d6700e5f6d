"""What single operators of one decision take, by the runtime's own profiler; every sensor present.

.pte: ExecuTorch's event tracer, method by method, on the values that a decision really passes between them. .onnx:
onnxruntime's profile of the whole graph. Watching costs time itself: read shares here, times in the rows.
"""

from __future__ import annotations

import bisect
import importlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.artifact import Sealed, onnx_manifest, verify
from mars_edge.gates import top_k_gates
from mars_edge.manifest import Manifest
from mars_runtime.engines import graph, read_manifest
from mars_runtime.engines.native import NativeRunner
from mars_runtime.engines.protocol import BINDING
from mars_runtime.engines.threads import default_threads
from mars_runtime.machine import usable_cores
from mars_runtime.profiling import native_trace
from mars_runtime.profiling.inputs import generated
from mars_runtime.profiling.native_trace import MethodTrace
from mars_runtime.profiling.statistics import midmean

RUNS, _WARMUP = 100, 5
_SHOWN = 24
_NUMBER = re.compile(r" #\d+$")
_HEADER = ("method: operator", "where", "calls", "us", "share")

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """Operators of one kind within one method; microseconds and calls per decision.

    Attributes:
        where: "delegate", "kernel", or an onnxruntime execution provider.
    """

    method: str
    operator: str
    where: str
    calls: int
    us: float


def describe(model: Path, engine: str | None = None, *, threads: int | None = None) -> dict[str, Any]:
    """The costs as JSON types, with the rows of a table; `reason` says in one line why there are none.

    Args:
        model: a verified artifact.
        engine: as given to `profile`; the Python binding of ExecuTorch does not time operators.
        threads: of the engine.

    Raises:
        ModelFileError: the file is damaged.
        EngineError: a method fails.
    """
    sealed = verify(model)
    if engine == BINDING:
        return _nothing(f"{BINDING} does not time operators; --engine executorch-native does")
    absence = graph.absence() if sealed.format == "onnx" else native_trace.absence()
    if absence is not None:
        return _nothing(absence)
    return _of_graph(sealed, threads) if sealed.format == "onnx" else _of_program(sealed, threads)


def _nothing(reason: str) -> dict[str, Any]:
    return {"reason": reason, "source": None, "runs": 0, "delegate": None, "costs": [], "header": [], "rows": []}


def _of_program(sealed: Sealed, threads: int | None) -> dict[str, Any]:
    manifest = read_manifest(sealed)
    runner = NativeRunner(sealed.payload, threads=threads)
    try:
        calls = calls_of_decision(manifest, runner, _samples(manifest))
        program = bytes(sealed.payload)
        traces = [native_trace.trace(program, name, given, warmup=_WARMUP, runs=RUNS) for name, given in calls]
    finally:
        runner.close()
    costs = [cost for found in traces for cost in costs_of(found)]
    return _document("ExecuTorch event tracer", costs, delegate_share(traces))


def calls_of_decision(
    manifest: Manifest, runner: NativeRunner, samples: Tensors
) -> list[tuple[str, list[NDArray[Any]]]]:
    """Every method that one decision calls, in order, with the inputs it gets."""
    calls: list[tuple[str, list[NDArray[Any]]]] = []

    def run(method: str, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        calls.append((method, inputs))
        return runner.execute(method, inputs)

    features = [run(f"encode_{name}", [samples[name][np.newaxis]])[0] for name in manifest.names]
    z, router_logits = run("route", features)
    indices, gates = top_k_gates(router_logits, manifest.active_experts)
    parts: list[NDArray[Any]] = [run("expert_shared", [z])[0]] if manifest.shared_expert else []
    for index, gate in zip(indices[0], gates[0], strict=True):
        parts.append(np.multiply(run(f"expert_{int(index)}", [z])[0], np.float32(gate)))
    run("head", [np.asarray(np.sum(parts, axis=0, dtype=np.float32))])
    return calls


def costs_of(found: MethodTrace) -> list[OperatorCost]:
    """Operators of one kind together, and what of the method lies between its operators."""
    kinds: dict[tuple[str, str], list[float]] = {}
    for operator in found.operators:
        kinds.setdefault((_NUMBER.sub("", operator.name), operator.where), []).append(operator.us)
    costs = [
        OperatorCost(method=found.method, operator=name, where=where, calls=len(times), us=sum(times))
        for (name, where), times in kinds.items()
    ]
    between = found.us - sum(cost.us for cost in costs)
    return [
        *costs,
        OperatorCost(method=found.method, operator="between operators", where="runtime", calls=1, us=between),
    ]


def delegate_share(traces: Sequence[MethodTrace]) -> dict[str, float | int]:
    """How much of a decision the delegate takes over: of its operators, and of its time."""
    operators = [operator for found in traces for operator in found.operators]
    inside = sum(operator.where == "delegate" for operator in operators)
    total_us = sum(found.us for found in traces)
    return {
        "operators": len(operators),
        "operators_on_delegate": inside,
        "operators_share": inside / len(operators) if operators else 0.0,
        "time_share": sum(found.delegate_us for found in traces) / total_us if total_us else 0.0,
    }


def _of_graph(sealed: Sealed, threads: int | None) -> dict[str, Any]:
    manifest = Manifest.from_json(onnx_manifest(sealed))
    with tempfile.TemporaryDirectory(prefix="mars-edge-profile-") as folder:
        path = _profiled(sealed.data, manifest, threads, Path(folder))
        events = json.loads(path.read_text(encoding="utf-8"))
    return _document("onnxruntime profile", graph_costs(events, manifest.methods, RUNS), None)


def _profiled(model: bytes, manifest: Manifest, threads: int | None, folder: Path) -> Path:
    runtime = importlib.import_module("onnxruntime")
    options = _options(runtime, default_threads(manifest, usable_cores()) if threads is None else threads, folder)
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    samples = _samples(manifest)
    feed: dict[str, NDArray[Any]] = {}
    for name in manifest.names:
        feed[f"x_{name}"] = samples[name][np.newaxis]
        feed[f"fresh_{name}"] = np.array(True)
        feed[f"feature_{name}"] = np.zeros((1, *manifest.feature_shapes[name]), np.float32)
    for _ in range(_WARMUP + RUNS):
        session.run(None, feed)
    return Path(session.end_profiling())


def _options(runtime: Any, threads: int, folder: Path) -> Any:
    """Those of the engine, with the profile: a pool that spins would tell other times than its decisions take."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads
    return options


def graph_costs(events: Sequence[Mapping[str, Any]], methods: Sequence[str], runs: int) -> list[OperatorCost]:
    """Operators of one kind within one method, per run, over the last `runs` runs.

    An If is left out: its time is that of the operators inside it.
    """
    whole = [event for event in events if event.get("name") == "model_run"][-runs:]
    times: dict[tuple[str, str, str], list[list[float]]] = {}
    for event, run in _nodes(events, whole):
        prefix = event["name"].partition("/")[0]
        method = prefix if prefix in methods else "graph"
        key = (method, event["args"]["op_name"], event["args"].get("provider", ""))
        times.setdefault(key, [[] for _ in whole])[run].append(event["dur"])
    costs = [
        OperatorCost(
            method=method,
            operator=name,
            where=where,
            calls=round(midmean([len(run) for run in taken])),
            us=midmean([sum(run) for run in taken]),
        )
        for (method, name, where), taken in times.items()
    ]
    if not costs:
        return []
    return [*costs, _between("graph", midmean([run["dur"] for run in whole]) - sum(cost.us for cost in costs))]


def _nodes(
    events: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Every operator that ran inside one of the runs `whole`, with the number of the run."""
    begins = [run["ts"] for run in whole]
    for event in events:
        run = bisect.bisect_right(begins, event["ts"]) - 1
        if event.get("cat") == "Node" and run >= 0 and event["args"].get("op_name") != "If":
            yield event, run


def _between(method: str, us: float) -> OperatorCost:
    """What of a method or a graph is no operator's; rounded-down times of operators are in it too."""
    return OperatorCost(method=method, operator="between operators", where="runtime", calls=1, us=max(0.0, us))


def _samples(manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    return {name: given.modality.preprocess(given.frames[0].data) for name, given in generated(manifest).items()}


def _document(source: str, costs: Sequence[OperatorCost], delegate: Mapping[str, Any] | None) -> dict[str, Any]:
    whole = sum(cost.us for cost in costs) or 1.0
    ordered = sorted(costs, key=lambda cost: -cost.us)
    rows = [_row(cost, whole) for cost in ordered[:_SHOWN]]
    rest = ordered[_SHOWN:]
    if rest:
        us = sum(cost.us for cost in rest)
        rows.append(
            _row(
                OperatorCost(method="all", operator="other", where="-", calls=sum(c.calls for c in rest), us=us), whole
            )
        )
    return {
        "reason": None,
        "source": source,
        "runs": RUNS,
        "delegate": None if delegate is None else dict(delegate),
        "costs": [asdict(cost) for cost in ordered],
        "header": list(_HEADER),
        "rows": rows,
    }


def _row(cost: OperatorCost, whole_us: float) -> list[str]:
    where = {"CPUExecutionProvider": "CPU"}.get(cost.where, cost.where)
    share = f"{100.0 * cost.us / whole_us:.1f} %"
    return [f"{cost.method}: {cost.operator}", where, str(cost.calls), f"{cost.us:.1f}", share]
