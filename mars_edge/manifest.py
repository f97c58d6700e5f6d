"""What an artifact says about itself: a strict JSON document inside every .pte and .onnx.

A manifest is everything `mars-edge run` needs to know: inputs and their preprocessing, labels, the
operating point of every modality subset, the policy, a golden input and output, and where it came from.
"""

from __future__ import annotations

import base64
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import MarsEdgeError, ModelFileError
from mars_edge.metrics import Rate
from mars_edge.modality import Modality

SCHEMA_VERSION = 1
# Faults of a picture's content; they degrade a modality and mask it only where the policy says so.
CONTENT_FAULTS = ("dark", "saturated", "depth-invalid", "covered", "noise", "frozen?")
_WORDS = {str: "a string", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Where one modality subset decides, and how well it was measured to do so.

    Attributes:
        threshold: lowest accepted score of the positive label; 0 for plain classification.
        metric: name of the measured value: "acer", "accuracy" or "miou".
        value: measured on test data, 0..1, with its 95 % interval `low`..`high` over `n` samples.
        certified: false makes the runtime abstain on this subset.
        target: the bound `certified` was decided by, None where the recipe set none.
        temperature: divides the logits before the softmax.
        bpcer: live/spoof only: rejected share of bona fide test samples at `threshold`.
        apcer: live/spoof only: accepted share of the test samples of each attack species at `threshold`.
    """

    threshold: float
    metric: str
    value: float
    low: float
    high: float
    n: int
    certified: bool
    target: float | None = None
    temperature: float = 1.0
    bpcer: Rate | None = None
    apcer: Mapping[str, Rate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _need(
            0.0 <= self.low <= self.value <= self.high <= 1.0,
            f"operating point {self.metric} is {self.value!r} in {self.low!r}..{self.high!r}, "
            "expected 0 <= low <= value <= high <= 1",
        )
        _need(self.n >= 0, f"operating point n is {self.n}, expected at least 0")
        _need(self.temperature > 0.0, f"operating point temperature is {self.temperature!r}, expected above 0")
        for where, rate in (*self.apcer.items(), *([("bpcer", self.bpcer)] if self.bpcer else [])):
            sound = 0.0 <= rate.low <= rate.value <= rate.high <= 1.0 and 0 <= rate.errors <= rate.n
            _need(sound, f"operating point rate of {where} is {rate}, expected 0 <= low <= value <= high <= 1")


@dataclass(frozen=True, kw_only=True)
class MethodCost:
    """What one call of one method costs.

    Attributes:
        macs: multiply-accumulates of convolutions and linear layers.
        weight_bytes: constants that the call reads, as they are stored.
        activation_bytes: planned memory for intermediate values at its peak; None where the runtime plans it itself.
    """

    macs: int
    weight_bytes: int
    activation_bytes: int | None = None

    def __post_init__(self) -> None:
        _need_cost(self)


@dataclass(frozen=True, kw_only=True)
class SubsetCost:
    """What one decision costs with exactly this subset present, everything new: sums over the methods that run.

    Attributes:
        macs: multiply-accumulates, those of the active experts alone.
        weight_bytes: constants that are read.
        activation_bytes: the largest of the methods that run; None where it is not known.
    """

    macs: int
    weight_bytes: int
    activation_bytes: int | None = None

    def __post_init__(self) -> None:
        _need_cost(self)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the runtime may decide when modalities are missing.

    Attributes:
        require: each entry must have one present member, e.g. "depth|ir".
        on_missing: continue with what is there, abstain, or reject (fail_closed).
        masking_faults: content faults (dark, saturated, ...) that mask a modality instead of degrading it.
    """

    require: tuple[str, ...] = ()
    on_missing: Literal["continue", "abstain", "fail_closed"] = "continue"
    masking_faults: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A float32 array as base64 of its little-endian bytes; inputs may be stored as uint8 / 255."""

    shape: tuple[int, ...]
    dtype: Literal["float32", "uint8"]
    data: str

    def __post_init__(self) -> None:
        item = 1 if self.dtype == "uint8" else 4
        sound = len(self.shape) <= 8 and all(side >= 0 for side in self.shape)
        _need(sound, f"tensor shape {self.shape} has a negative side or more than 8")
        try:
            held = len(base64.b64decode(self.data, validate=True))
        except ValueError as error:
            raise ModelFileError(f"manifest: tensor data is not base64: {error}") from error
        needed = item * math.prod(self.shape)
        _need(held == needed, f"tensor holds {held} bytes, {self.dtype} of shape {self.shape} needs {needed}")

    @classmethod
    def of(cls, array: NDArray[Any]) -> Tensor:
        """The array's exact values; uint8 stays uint8, everything else becomes float32."""
        kept = np.ascontiguousarray(array, dtype="u1" if array.dtype == np.uint8 else "<f4")
        name: Literal["float32", "uint8"] = "uint8" if kept.dtype == np.uint8 else "float32"
        return cls(shape=tuple(kept.shape), dtype=name, data=base64.b64encode(kept.tobytes()).decode("ascii"))

    def array(self) -> NDArray[np.float32]:
        """The stored values as float32; uint8 values v become v / 255."""
        raw = np.frombuffer(base64.b64decode(self.data), dtype="u1" if self.dtype == "uint8" else "<f4")
        values = raw.astype(np.float32).reshape(self.shape)
        return values / np.float32(255.0) if self.dtype == "uint8" else values


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One input and the logits the artifact must give for it, for the self-test at start.

    Attributes:
        inputs: preprocessed tensor per modality, without the batch axis. Of an image fewer pixels may be stored:
            pixel (y, x) of the input is then the stored one at (y * rows // height, x * columns // width).
        logits: per subset label, the logits measured in the target engine at export; for a segmentation those of
            each of `pixels` in turn.
        tolerance: largest allowed absolute difference of a logit.
        pixels: segmentation only: (row, column) of the pixels that are compared.
    """

    inputs: Mapping[str, Tensor]
    logits: Mapping[str, tuple[float, ...]]
    tolerance: float
    pixels: tuple[tuple[int, ...], ...] = ()

    def sample(self, modality: Modality) -> NDArray[np.float32]:
        """The input of one modality at its full shape, float32."""
        stored = self.inputs[modality.name].array()
        if modality.kind != "image":
            return stored
        height, width = modality.shape[1:]
        rows = np.arange(height) * stored.shape[1] // height
        columns = np.arange(width) * stored.shape[2] // width
        return np.ascontiguousarray(stored[:, rows[:, np.newaxis], columns])

    def compared(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of the logits (classes,) or (classes, H, W) those that `self.logits` holds, in its order."""
        if not self.pixels:
            return logits.ravel()
        rows, columns = np.array(self.pixels).T
        return logits[:, rows, columns].T.ravel()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole document; see the module docstring.

    Attributes:
        modalities: in fusion order.
        experts: N, how many experts the artifact holds.
        active_experts: K, how many run per decision.
        shared_expert: an always-on expert (method `expert_shared`) is added to the routed ones.
        feature_shapes: per modality, shape of the encoder's output without batch.
        z_shape: shape of the fused representation without batch.
        methods: every callable piece of the artifact.
        precision: what most weights are stored and computed in; layers left in higher precision are in `provenance`.
        logit_step: size of one output quantization step of the head; None where its output is not quantized.
        operating_points: by subset label, e.g. "rgb+ir".
        target: name of the export target, which says runtime and processor; None in files of earlier versions.
        costs: by method; empty in files of earlier versions.
        subset_costs: by subset label.
        parameters: trained numbers of all methods together, as the training counts them: batch norms are still
            apart. The same in every format and precision of a run; None in files of earlier versions.
    """

    name: str
    task: Literal["classification", "segmentation"]
    labels: tuple[str, ...]
    positive_label: str | None
    modalities: tuple[Modality, ...]
    experts: int
    active_experts: int
    feature_shapes: Mapping[str, tuple[int, ...]]
    z_shape: tuple[int, ...]
    precision: Literal["fp32", "fp16", "int8"]
    methods: tuple[str, ...]
    operating_points: Mapping[str, OperatingPoint]
    provenance: Mapping[str, Any]
    shared_expert: bool = False
    logit_step: float | None = None
    policy: Policy = field(default_factory=Policy)
    golden: Golden | None = None
    parity: Mapping[str, Any] | None = None
    target: str | None = None
    costs: Mapping[str, MethodCost] = field(default_factory=dict)
    subset_costs: Mapping[str, SubsetCost] = field(default_factory=dict)
    parameters: int | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Modality names in fusion order."""
        return tuple(m.name for m in self.modalities)

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """Shape of the logits without batch: (classes,), or (classes, H, W) with the size of the images."""
        if self.task == "classification":
            return (len(self.labels),)
        return (len(self.labels), *next(m.shape[1:] for m in self.modalities if m.kind == "image"))

    def modality(self, name: str) -> Modality:
        """The modality called `name`; KeyError when there is none."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Modality]:
        return {m.name: m for m in self.modalities}

    def to_json(self) -> str:
        """The document; `from_json` of it gives an equal manifest."""
        table = asdict(self)
        table["modalities"] = [m.to_dict() for m in self.modalities]
        return json.dumps(table, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """The manifest a document describes.

        Raises:
            ModelFileError: not JSON, another schema version, an unknown, missing or ill-typed entry.
        """
        try:
            table = json.loads(
                text, object_pairs_hook=_without_repeats, parse_constant=_no_constant, parse_float=_finite
            )
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"manifest is not JSON: {error}") from error
        if not isinstance(table, dict):
            raise ModelFileError(f"manifest is a {type(table).__name__}, expected an object")
        version = table.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ModelFileError(f"manifest schema_version is {version!r}; this mars-edge reads {SCHEMA_VERSION}")
        manifest = _build(cls, table, "manifest")
        assert isinstance(manifest, Manifest)
        return manifest


def required_methods(manifest: Manifest) -> tuple[str, ...]:
    """The pieces an artifact must offer: one encoder per modality, route, the experts, head."""
    experts = tuple(f"expert_{i}" for i in range(manifest.experts))
    shared = ("expert_shared",) if manifest.shared_expert else ()
    return (*(f"encode_{name}" for name in manifest.names), "route", *experts, *shared, "head")


def subset_cost(manifest: Manifest, present: Iterable[str]) -> SubsetCost:
    """The cost of one decision from `manifest.costs`: the encoders of `present`, route, shared, K experts, head.

    Experts that differ count as the costliest. A method whose memory is not known leaves that of the subset unknown.
    """
    methods = [f"encode_{name}" for name in present] + ["route", "head"]
    if manifest.shared_expert:
        methods.append("expert_shared")
    once = [manifest.costs[method] for method in methods]
    experts = [manifest.costs[f"expert_{i}"] for i in range(manifest.experts)]
    memory = [cost.activation_bytes for cost in (*once, *experts)]
    return SubsetCost(
        macs=sum(c.macs for c in once) + manifest.active_experts * max(c.macs for c in experts),
        weight_bytes=sum(c.weight_bytes for c in once) + manifest.active_experts * max(c.weight_bytes for c in experts),
        activation_bytes=None if None in memory else max(m for m in memory if m is not None),
    )


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ModelFileError(f"manifest: {message}")


def _need_cost(cost: MethodCost | SubsetCost) -> None:
    _need(min(cost.macs, cost.weight_bytes, cost.activation_bytes or 0) >= 0, f"cost {cost} has a negative entry")


def _check(m: Manifest) -> None:
    _need(len(m.modalities) >= 1, "no modality")
    _need(len(set(m.names)) == len(m.names), f"modality names repeat: {', '.join(m.names)}")
    _need(len(m.labels) >= 2, f"{len(m.labels)} labels, at least 2 are needed")
    _need(len(set(m.labels)) == len(m.labels), f"labels repeat: {', '.join(m.labels)}")
    # Labels and name reach terminals and logs.
    for text in (m.name, *m.labels):
        _need(text != "" and text.isprintable(), f"name or label {text!r} is empty or not printable")
    _need(m.positive_label is None or m.positive_label in m.labels, f"positive_label {m.positive_label!r} is no label")
    _need(1 <= m.active_experts <= m.experts, f"active_experts {m.active_experts} of {m.experts} experts")
    _check_shapes(m)
    # Counted first: a file that claims 10**9 experts must not make us list them.
    expected = len(m.modalities) + m.experts + m.shared_expert + 2
    _need(len(m.methods) == expected, f"{len(m.methods)} methods, its modalities and experts need {expected}")
    _need(set(m.methods) == set(required_methods(m)), f"methods {m.methods} are not {required_methods(m)}")
    has_image = any(modality.kind == "image" for modality in m.modalities)
    _need(m.task == "classification" or has_image, "a segmentation needs an image modality")
    for where, table in (("operating_points", m.operating_points), ("subset_costs", m.subset_costs)):
        for key in table:
            _check_subset(key, m, where)
    _need(set(m.costs) in (set(), set(m.methods)), f"costs are of {sorted(m.costs)}, expected of every method or none")
    _need((m.parameters or 0) >= 0, f"parameters is {m.parameters}, expected at least 0")
    for entry in m.policy.require:
        _need(set(entry.split("|")) <= set(m.names), f"policy.require {entry!r} names an unknown modality")
    for fault in m.policy.masking_faults:
        _need(fault in CONTENT_FAULTS, f"policy.masking_faults {fault!r} is none of {', '.join(CONTENT_FAULTS)}")
    if m.logit_step is not None:
        _need(m.logit_step > 0.0, f"logit_step is {m.logit_step!r}, expected above 0")
    if m.golden is not None:
        _check_golden(m.golden, m)


def _check_shapes(m: Manifest) -> None:
    _need(set(m.feature_shapes) == set(m.names), "feature_shapes must name exactly the modalities")
    for where, shape in (*m.feature_shapes.items(), ("z_shape", m.z_shape)):
        sound = len(shape) >= 1 and all(side >= 1 for side in shape)
        _need(sound, f"shape of {where} is {shape}, expected whole numbers from 1")


def _check_subset(key: str, m: Manifest, where: str) -> None:
    try:
        known = subsets.label(key.split("+"), m.names) == key
    except MarsEdgeError:
        known = False
    _need(known, f"{where} has the unknown subset {key!r}; its members in order: {'+'.join(m.names)}")


def _check_golden(golden: Golden, m: Manifest) -> None:
    _need(golden.tolerance >= 0.0, f"golden.tolerance is {golden.tolerance!r}, expected at least 0")
    _need(set(golden.inputs) == set(m.names), "golden.inputs must name exactly the modalities")
    for modality in m.modalities:
        shape = golden.inputs[modality.name].shape
        _need(_stores(shape, modality), f"golden input {modality.name} has shape {shape}, expected {modality.shape}")
    size = m.logits_shape[1:]
    _need(bool(golden.pixels) == bool(size), "golden.pixels must name pixels for a segmentation and nothing else")
    for pixel in golden.pixels:
        inside = len(pixel) == 2 and all(0 <= at < side for at, side in zip(pixel, size, strict=True))
        _need(inside, f"golden pixel {pixel} is outside the {size[0]} x {size[1]} image")
    _need(len(golden.logits) >= 1, "golden.logits is empty: a self-test without answers proves nothing")
    for key, logits in golden.logits.items():
        _check_subset(key, m, "golden.logits")
        needed = len(m.labels) * max(len(golden.pixels), 1)
        _need(len(logits) == needed, f"golden logits of {key} are {len(logits)} for {len(m.labels)} labels")


def _stores(shape: tuple[int, ...], modality: Modality) -> bool:
    """Whether a tensor of `shape` can stand for an input of the modality: its shape, or an image of fewer pixels."""
    if modality.kind != "image":
        return shape == modality.shape
    whole = modality.shape
    fits = len(shape) == 3 and all(1 <= a <= b for a, b in zip(shape, whole, strict=True))
    return fits and shape[0] == whole[0]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return table


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` (plain JSON) as an instance of the annotation `kind`; ModelFileError names the place."""
    if kind is Any:
        return value
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _build(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        return _expect(value in args, value, where, f"one of {', '.join(map(str, args))}")
    if origin is tuple:
        _expect(isinstance(value, list), value, where, "a list")
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), value, where, "an object")
        return {key: _build(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Modality:
        return _modality(value, where)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if kind is float:
        return float(_expect(type(value) is float or _is_whole(value), value, where, "a number"))
    right_type = _is_whole(value) if kind is int else isinstance(value, kind)
    return _expect(right_type, value, where, _WORDS[kind])


def _is_whole(value: object) -> bool:
    """An int of 64 bits: a longer one fits neither a float nor, multiplied, an error message."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _expect(condition: bool, value: Any, where: str, allowed: str) -> Any:
    if not condition:
        raise ModelFileError(f"{where} is {value!r:.80}, expected {allowed}")
    return value


def _modality(value: Any, where: str) -> Modality:
    _expect(isinstance(value, dict), value, where, "an object")
    try:
        return Modality.from_dict(value)
    except (MarsEdgeError, TypeError) as error:
        raise ModelFileError(f"{where}: {error}") from error


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ModelFileError(f"{where} has the unknown key {unknown[0]!r}; known keys: {', '.join(known)}")
    missing = [
        name for name, f in known.items() if name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ModelFileError(f"{where} lacks the key {missing[0]!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
