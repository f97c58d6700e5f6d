"""What a lowered program holds: who executes what, what is stored, and what one call keeps in memory.

Axes: C channels, H height, W width; batch 1.
Source: ExecuTorch 1.5 schema/program.fbs (execution plans, named data) and backends/xnnpack/serialization/schema.fbs.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_VALUE_BYTES = {"fp32": 4, "int32": 4, "qint32": 4, "qcint32": 4, "pfp32": 4, "fp16": 2, "bf16": 2}
# Serialising turns them into other views of the same memory; `getitem` only unpacks.
_FREE = ("getitem", "aten.view_copy.default")
_UNUSED = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a method's work the delegate takes over; the rest runs in portable kernels.

    Work is one per multiply-accumulate, wherever it runs, and outside the delegate one more per element that an
    operation reads or writes, because there each is a pass over memory of its own. Counting operations instead would
    weigh a word's look-up like a convolution.

    Attributes:
        delegated: multiply-accumulates inside the delegate.
        total: all work.
        left: the names of the operations outside the delegate, each once.
    """

    delegated: int
    total: int
    left: tuple[str, ...]

    @property
    def share(self) -> float:
        """Delegated work over all, 0..1; a method without any work is covered when nothing is left outside."""
        return self.delegated / self.total if self.total else float(not self.left)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One method of an emitted program.

    Attributes:
        delegates: the backend's id per delegated part, in the order they run.
        operators: the kernels that run outside of them, sorted, each once.
        planned_bytes: of the arena that the runtime allocates for one call; inputs and outputs are the caller's.
        constant_bytes: of the constants outside the delegates.
    """

    delegates: tuple[str, ...]
    operators: tuple[str, ...]
    planned_bytes: int
    constant_bytes: int


def structures(program: Any) -> dict[str, Structure]:
    """Per method of an emitted program (`executorch.exir.schema.Program`), constant methods included."""
    return {plan.name: _structure(program, plan) for plan in program.execution_plan}


def structures_of_file(data: bytes) -> dict[str, Structure]:
    """The same of a serialised program."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    return structures(deserialize_pte_binary(data).program)


def _structure(program: Any, plan: Any) -> Structure:
    instructions = [i.instr_args for chain in plan.chains for i in chain.instructions]
    calls = [getattr(i, "delegate_index", None) for i in instructions]
    constants = {_constant_index(value.val) for value in plan.values} - {0}
    return Structure(
        delegates=tuple(plan.delegates[index].id for index in calls if index is not None),
        operators=tuple(sorted({o.name + (f".{o.overload}" if o.overload else "") for o in plan.operators})),
        planned_bytes=sum(plan.non_const_buffer_sizes),
        constant_bytes=sum(len(program.constant_buffer[index].storage) for index in constants),
    )


def _constant_index(value: Any) -> int:
    """Where a value's constant lies; 0 for one that is none."""
    if getattr(value, "allocation_info", None) is not None:
        return 0
    return int(getattr(value, "data_buffer_idx", 0))


def coverage(edge: Any, macs: int) -> Coverage:
    """Of a lowered edge program, whose unlowered form has this many multiply-accumulates."""
    from executorch.exir.delegate import executorch_call_delegate

    calls = [n for n in edge.graph_module.graph.nodes if n.op == "call_function"]
    left = [n for n in calls if n.target is not executorch_call_delegate and operation(n) not in _FREE]
    stored = _constants(edge)
    outside = sum(multiply_accumulates(n) for n in left)
    moved = sum(_elements(n, stored) for n in left)
    return Coverage(
        delegated=max(macs - outside, 0), total=macs + moved, left=tuple(sorted({operation(n) for n in left}))
    )


def operation(node: Any) -> str:
    """The operation's name as it is written, such as aten.mean.dim."""
    return str(getattr(node.target, "__name__", node.target))


def total_multiply_accumulates(program: Any) -> int:
    """Of an exported program, before it is lowered."""
    return sum(multiply_accumulates(n) for n in program.graph_module.graph.nodes if n.op == "call_function")


def multiply_accumulates(node: Any) -> int:
    """Of convolutions, linear layers, matrix products and LSTMs; 0 for every other operation."""
    kind = operation(node).removeprefix("aten.").partition(".")[0]
    inputs = [_tensor(a) for a in node.args]
    if kind in ("conv1d", "conv2d", "convolution"):
        return int(_tensor(node).numel() * math.prod(inputs[1].shape[1:]))
    if kind in ("linear", "mm", "bmm", "matmul"):
        return int(_tensor(node).numel() * inputs[0].shape[-1])
    if kind == "addmm":
        return int(_tensor(node).numel() * inputs[1].shape[-1])
    if kind == "lstm":
        steps = math.prod(inputs[0].shape[:-1])
        return int(steps * sum(_tensor(w).numel() for w in node.args[2] if _tensor(w).dim() == 2))
    return 0


def _elements(node: Any, stored: set[str]) -> int:
    """Of the largest tensor that an operation writes, or reads from another operation or the caller."""
    read = [n.meta.get("val") for n in node.all_input_nodes if n.name not in stored]
    return max((t.numel() for t in (*_tensors(node.meta.get("val")), *_tensors(read))), default=0)


def _constants(edge: Any) -> set[str]:
    signature = edge.graph_signature
    held = (signature.inputs_to_parameters, signature.inputs_to_buffers, signature.inputs_to_lifted_tensor_constants)
    return {name for table in held for name in table}


def _tensor(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, torch.fx.Node) else argument


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def named_data(edge: Any) -> tuple[Any, ...]:
    """What the delegates of a lowered edge program store by name (`NamedDataStoreOutput`), in the order they run."""
    found = [module.named_data_store_output for _, module, _ in _delegates(edge)]
    return tuple(named for named in found if named is not None)


def stored_blobs(edge: Any) -> dict[str, int]:
    """What the delegates of a lowered edge program bring into the file: bytes by digest, equal ones once."""
    programs = [module.processed_bytes for _, module, _ in _delegates(edge)]
    named = [blob for output in named_data(edge) for blob in output.buffers]
    return {hashlib.sha256(blob).hexdigest(): len(blob) for blob in (*programs, *named)}


def delegate_peak(edge: Any) -> int | None:
    """The most bytes of intermediate values that any XNNPACK delegate of a lowered edge program holds at once.

    None if another backend has a part in it. Without what XNNPACK keeps beside them: packed weights, and the scratch
    memory of its kernels.
    """
    modules = [module for _, module, _ in _delegates(edge)]
    if any(module.backend_id != "XnnpackBackend" for module in modules):
        return None
    return max((xnnpack_peak(_xnnpack_graph(module.processed_bytes)) for module in modules), default=0)


def _delegates(edge: Any) -> Iterable[Any]:
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    found: Iterable[Any] = get_lowered_submodules(edge.graph_module)
    return found


def xnnpack_peak(graph: Mapping[str, Any]) -> int:
    """The peak of the intermediate values of an XNNPACK graph that runs its nodes in their order.

    A value lives from the node that writes it to the last one that reads it; inputs, outputs and constants of the
    graph are not intermediate.
    """
    sizes = dict(_intermediate(graph))
    used = [_used(node, sizes) for node in graph["xnodes"]]
    first = {value: i for i, values in reversed(list(enumerate(used))) for value in values}
    last = {value: i for i, values in enumerate(used) for value in values}
    held = [sum(size for value, size in sizes.items() if first[value] <= i <= last[value]) for i in range(len(used))]
    return max(held, default=0)


def _intermediate(graph: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Number and bytes of every value that a node makes for another."""
    for entry in graph["xvalues"]:
        value = entry["xvalue_union"]
        value = value.get("tensor_value", value)
        if value["external_id"] == _UNUSED and not value["constant_buffer_idx"]:
            item = _VALUE_BYTES.get(value["datatype"].removeprefix("xnn_datatype_"), 1)
            yield value["id_out"], item * math.prod(value.get("dims", ()))


def _used(node: Mapping[str, Any], sizes: Mapping[int, int]) -> set[int]:
    fields = node["xnode_union"]
    return {value for key, value in fields.items() if key.endswith("_id") and value in sizes}


def _xnnpack_graph(blob: bytes) -> dict[str, Any]:
    """The graph inside a delegate's bytes, as the schema names its parts."""
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as serialize
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = serialize.XNNHeader.from_bytes(blob[: serialize.XNNHeader.EXPECTED_LENGTH])
    start = header.flatbuffer_offset
    with tempfile.TemporaryDirectory(prefix="mars-edge-") as folder:
        schema, graph = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(serialize._get_schema_bytes())
        graph.write_bytes(blob[start : start + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(graph), ["--raw-binary"])
        # min/max of an output without bounds.
        text = graph.with_suffix(".json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text.replace("-inf", "-Infinity").replace(" inf", " Infinity"))
    return found
