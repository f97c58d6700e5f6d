"""The parity gate: an artifact answers as the model it came from, in the engine that will run it.

Axes: B samples, N experts.
Design decision: the reference is the converted (or folded float) PyTorch model; compared are every subset's
decisions, and every method on its own, so that an expert that no sample happened to choose is still checked, and one
that was swapped with a similar one is found. NaN and empty comparisons fail.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import EngineError, ParityError
from mars_export import reference
from mars_export.evaluate import Engine, engine_stream, wanted_subsets
from mars_export.onnx_pieces import OnnxPieces, cut_pieces
from mars_export.pieces import pieces_of
from mars_export.reference import Call, Scale, quantizers
from mars_export.tally import SLACK, SubsetParity, Tally, Worst, badness, compare, worst_place
from mars_runtime.engines import binding, native
from mars_training.data.split import Split
from mars_training.model.mars import DeployedMars

LEAST_AGREEMENT = 0.99
MOST_STEPS = 2.0
# Of a segmentation's many pixels a few round the other way in every layer, and many are undecided; 99 of 100 keep to
# MOST_STEPS. Measured on generated scenes: 2.7 steps and 99.4 % equal labels over 1.5 million pixels.
MOST_PIXEL_STEPS = 4.0
LEAST_PIXEL_AGREEMENT = 0.98
# An expert may differ only where the reference's own margin was within MOST_STEPS, and in this share of samples.
MOST_FLIPS = 0.02
# A segmentation has few images, and enlarging rounds more often: 2 of 48 were measured.
MOST_MAP_FLIPS = 0.05
# Of the values that a method gives for the model's own inputs, this share may be off by a step at all, plus as much as
# each of its quantizers may round the other way (measured: 0.01 % a quantizer in the bundled models' encoders, 0.3 %
# where pictures are enlarged, as in a segmentation). Another expert of similar outputs is off in many, by little.
MOST_OFF = 0.005
MOST_OFF_PER_QUANTIZER = 0.005
# A value that rounded the other way is off by a step of its own, which may be several of those after an addition: of a
# method's many values a few are off by more than MOST_STEPS where it is deep (measured: 4 steps after 22 quantizers in
# ResNet18-SE, 3 after 27 in MobileNet with ASPP).
QUANTIZERS_PER_STEP = 8
# Of an engine under test: a process has one pool, so the finished file and a piece of it must agree.
THREADS = 1
# Of the samples of one modality alone, this share may be in a split the model has seen: a black frame is like another.
MOST_SHARED = 0.05
_METHOD_SAMPLES = 16
_BATCH = 64
_SOME = 4
# Of the reference's logits of one batch under every subset.
_MOST_BYTES = 1 << 26


class Pieces(Protocol):
    """What can run one method alone."""

    def execute(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of `method`; EngineError where it fails."""


@dataclass(frozen=True, kw_only=True)
class MethodParity:
    """How one method compares, both sides fed the model's own values.

    Attributes:
        max_steps: largest difference in output steps.
        steps_allowed: the bound of `max_steps`.
        mean_steps: mean difference.
        off: share of values that are off by more than half a step.
        off_allowed: the bound of `off`.
        values: how many were compared.
    """

    max_steps: float
    steps_allowed: float
    mean_steps: float
    off: float
    off_allowed: float
    values: int


def bounds(*, segmentation: bool = False) -> dict[str, float]:
    """What this gate allows, by the entry of the report that it bounds."""
    return {
        "label_agreement": LEAST_PIXEL_AGREEMENT if segmentation else LEAST_AGREEMENT,
        "max_steps": MOST_PIXEL_STEPS if segmentation else MOST_STEPS,
        "p99_steps": MOST_STEPS,
        "routing_flips": MOST_MAP_FLIPS if segmentation else MOST_FLIPS,
        "max_flip_margin_steps": MOST_STEPS,
    }


def steps_allowed(count: int) -> float:
    """The largest `MethodParity.max_steps` that passes for a method with `count` quantizers on its way."""
    return MOST_STEPS + count // QUANTIZERS_PER_STEP


def off_allowed(count: int) -> float:
    """The largest `MethodParity.off` that passes for a method with `count` quantizers on its way."""
    return min(MOST_OFF + MOST_OFF_PER_QUANTIZER * count, 0.5)


def machine() -> dict[str, Any]:
    """Processor architecture and number of cores of this machine."""
    return {"processor": platform.machine(), "cores": os.cpu_count()}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The report that goes into the manifest.

    Attributes:
        engine: which engine ran the artifact.
        samples: how many, disjoint from training and calibration.
        subsets: by subset label.
        methods: by method, the largest difference in output steps on the reference's own inputs.
        experts_chosen: how often each expert ran, over all samples and subsets.
        method_parity: by method, `methods` and more.
        scale: what one step is in the units of the logits.
        worst: where the largest difference of a decision is.
        unmeasured: subsets that no sample has: nothing is known of them.
        bounds: what was allowed.
        machine: processor and number of cores that ran the artifact.
    """

    engine: str
    samples: int
    subsets: Mapping[str, SubsetParity]
    methods: Mapping[str, float]
    experts_chosen: tuple[int, ...]
    method_parity: Mapping[str, MethodParity]
    scale: Scale
    worst: Worst | None
    unmeasured: tuple[str, ...] = ()
    bounds: Mapping[str, float] = field(default_factory=bounds)
    machine: Mapping[str, Any] = field(default_factory=machine)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        table = _plain(asdict(self))
        assert isinstance(table, dict)
        return table


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def sample_ids(split: Split) -> list[str]:
    """One digest per sample over all its modalities: equal samples have equal ids, in whatever split."""
    return _ids(split, sorted(split.inputs))


def _ids(split: Split, names: Sequence[str]) -> list[str]:
    ids: list[str] = []
    for indices in torch.split(torch.arange(len(split)), _BATCH):
        batch = split.batch(indices)
        rows = [batch[name].contiguous().numpy() for name in names]
        ids += [
            hashlib.blake2b(b"".join(row[i].tobytes() for row in rows), digest_size=16).hexdigest()
            for i in range(len(indices))
        ]
    return ids


def require_disjoint(held_out: Split, seen: Mapping[str, Split]) -> None:
    """Passes when no held-out sample is in a split that the model, its ranges or its thresholds have seen.

    Raises:
        ParityError: how many are, and in which split; or there is no held-out sample.
    """
    ids = set(sample_ids(held_out))
    if not ids:
        raise ParityError("parity has no samples: an empty check proves nothing")
    for name, split in seen.items():
        common = len(ids & set(sample_ids(split)))
        if common:
            raise ParityError(f"{common} of {len(held_out)} parity samples are in the {name} split: take others")
    for modality in held_out.inputs:
        _require_own(held_out, seen, modality)


def _require_own(held_out: Split, seen: Mapping[str, Split], modality: str) -> None:
    """Passes when one modality's samples are new too: a subset of it alone would else be measured on what was seen."""
    own = _modality_ids(held_out, modality)
    for name, split in seen.items():
        known = set(_modality_ids(split, modality))
        common = sum(identity in known for identity in own)
        if common > MOST_SHARED * len(own):
            raise ParityError(
                f"{common} of {len(own)} parity samples have a {modality} that is in the {name} split: take others"
            )


def _modality_ids(split: Split, modality: str) -> list[str]:
    """A digest per row that has the modality."""
    there = split.presence[:, list(split.inputs).index(modality)]
    return _ids(split.take(torch.nonzero(there).flatten()), [modality])


def require_finite_weights(model: DeployedMars) -> None:
    """Passes when every constant of every piece is finite; for before lowering, which fails on others in its own words.

    Raises:
        ParityError: names the method and the first constant that is not.
    """
    for method, piece in pieces_of(model).items():
        for name, tensor in (*piece.named_parameters(), *piece.named_buffers()):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ParityError(f"the model itself holds NaN or infinity: {name} of method {method}")


def runner_of(engine: Engine, path: Path) -> Pieces:
    """What runs the methods of the artifact at `path` alone: the engine's own runner, or the graph cut into pieces.

    Raises:
        ParityError: the graph lacks a piece.
    """
    runner: Pieces | None = getattr(engine, "runner", None)
    if runner is not None:
        return runner
    manifest = engine.manifest
    return OnnxPieces(cut_pieces(onnx.load_model_from_string(path.read_bytes()), manifest.names, manifest.methods))


def program_runner(program: bytes) -> Pieces:
    """What runs the methods of a .pte program that is not an artifact: the native engine, or the official binding."""
    if native.absence() is None:
        return native.NativeRunner(program, threads=THREADS)
    return binding.PythonRunner(program)


def check(
    engine: Engine, model: DeployedMars, held_out: Split, *, pieces: Pieces, rows: Sequence[int] | None = None
) -> Parity:
    """The engine's answers beside the model's, over every subset; passes `require_parity` or raises.

    Args:
        pieces: runs the methods of the same artifact alone, `runner_of`.
        rows: of every held-out sample, which row it is of its data set; counted from 0 when None.

    Raises:
        ParityError: a bound is exceeded, an answer is not finite, or the engine failed.
    """
    report = measure(engine, model, held_out, pieces=pieces, rows=rows)
    require_parity(report)
    return report


def measure(
    engine: Engine, model: DeployedMars, held_out: Split, *, pieces: Pieces, rows: Sequence[int] | None = None
) -> Parity:
    """The report of `check` whether it passes the bounds or not.

    Raises:
        ParityError: an answer is not finite, nothing was compared, or the engine failed.
    """
    if not len(held_out):
        raise ParityError("parity has no samples: an empty check proves nothing")
    limits = bounds(segmentation=engine.manifest.task == "segmentation")
    methods: dict[str, MethodParity] = {}
    try:
        methods = method_parity(pieces, model, held_out, engine.manifest.precision)
        count = _count(engine, model, held_out, range(len(held_out)) if rows is None else rows)
    except EngineError as error:
        # Where a method alone shows why, that says more than the failure of the whole.
        _require_methods(methods)
        raise ParityError(f"{engine.name}: {error}") from error
    measured = {label: tally.report() for label, tally in count.tallies.items() if tally.samples}
    return Parity(
        engine=engine.name,
        samples=len(held_out),
        subsets=measured,
        methods={name: found.max_steps for name, found in methods.items()},
        experts_chosen=tuple(count.chosen.tolist()),
        method_parity=methods,
        scale=count.scale,
        worst=count.worst,
        unmeasured=tuple(label for label in count.tallies if label not in measured),
        bounds=limits,
    )


@dataclass(kw_only=True)
class _Count:
    """What has been compared so far."""

    tallies: dict[str, Tally]
    chosen: NDArray[np.int64]
    scale: Scale
    worst: Worst | None = None


def _count(engine: Engine, model: DeployedMars, held_out: Split, rows: Sequence[int]) -> _Count:
    """Every answer of the engine beside the model's, as it comes."""
    manifest = engine.manifest
    wanted = wanted_subsets(manifest)
    count: _Count | None = None
    for indices in _batches(len(held_out), int(np.prod(manifest.logits_shape)) * 4 * len(wanted)):
        batch = held_out.take(indices)
        known = reference.answers(model, batch, wanted)
        if count is None:
            count = _Count(
                tallies={subsets.label(subset, manifest.names): Tally() for subset in wanted},
                chosen=np.zeros(manifest.experts, np.int64),
                scale=reference.scale_of(model, list(known.values()), manifest.precision),
            )
        for subset, i, given in engine_stream(engine, batch, wanted):
            label, row = subsets.label(subset, manifest.names), rows[int(indices[i])]
            try:
                found = compare(given, known[subset], i, count.scale)
            except ParityError as error:
                raise ParityError(f"{engine.name} on {label}, sample {row}: {error}") from error
            count.tallies[label].add(found)
            np.add.at(count.chosen, [index for index, _ in given.experts], 1)
            if count.worst is None or badness(found) > count.worst.badness():
                (sample,) = sample_ids(batch.take(torch.tensor([i])))
                count.worst = worst_place(label, row, sample, given, known[subset].logits[i], found)
    assert count is not None
    return count


def _batches(samples: int, bytes_each: int) -> tuple[torch.Tensor, ...]:
    """Row numbers in runs whose logits fit the memory."""
    return torch.split(torch.arange(samples), max(1, min(_BATCH, _MOST_BYTES // bytes_each)))


def require_parity(report: Parity) -> None:
    """Passes when every bound of the report holds.

    Raises:
        ParityError: names the worst method or the subset, what it measured and what is allowed.
    """
    if not report.subsets or report.samples < 1 or not report.method_parity:
        raise ParityError("parity compared nothing: an empty check proves nothing")
    _require_methods(report.method_parity)
    for subset, parity in report.subsets.items():
        for ok, message in _checks(parity, report.bounds):
            if not ok:
                raise ParityError(f"{report.engine} on {subset}: {message}")


def _require_methods(methods: Mapping[str, MethodParity]) -> None:
    far = {name: m.max_steps - m.steps_allowed for name, m in methods.items() if not _near(m)}
    if far:
        name = _worst(far)
        method = methods[name]
        raise ParityError(
            f"method {name} is off by {method.max_steps:.4g} output steps, allowed {method.steps_allowed:g}"
        )
    often = {name: m.off - m.off_allowed for name, m in methods.items() if not m.off <= m.off_allowed}
    if often:
        name = _worst(often)
        method = methods[name]
        raise ParityError(f"method {name} is off in {method.off:.2%} of its values, allowed {method.off_allowed:.1%}")


def _near(method: MethodParity) -> bool:
    return method.max_steps <= method.steps_allowed + SLACK


def worst_methods(report: Parity) -> tuple[str, ...]:
    """The methods beyond a bound, the worst first; the one that is furthest off where none is."""
    order = sorted(report.method_parity.items(), key=lambda item: _rank(item[1].max_steps), reverse=True)
    return tuple(name for name, m in order if not (_near(m) and m.off <= m.off_allowed)) or (order[0][0],)


def _worst(values: Mapping[str, float]) -> str:
    return max(values, key=lambda name: _rank(values[name]))


def _rank(value: float) -> float:
    # A NaN is worse than any number.
    return np.inf if np.isnan(value) else value


def _checks(p: SubsetParity, allowed: Mapping[str, float]) -> list[tuple[bool, str]]:
    most, p99 = allowed["max_steps"], allowed["p99_steps"]
    # Of few samples a single tie that broke the other way would be more than the share: one of four is always allowed.
    least, flips = allowed["label_agreement"], allowed["routing_flips"]
    if p.samples >= _SOME:
        least, flips = min(least, 1.0 - 1.0 / p.places), max(flips, 1.0 / p.samples)
    return [
        (
            p.label_agreement >= least,
            f"label agreement {p.label_agreement:.2%}, at least {allowed['label_agreement']:.0%} is needed",
        ),
        (p.max_steps <= most + SLACK, f"a logit is off by {p.max_steps:.4g} output steps, allowed {most:g}"),
        (
            p.p99_steps <= p99 + SLACK,
            f"1 logit in 100 is off by more than {p.p99_steps:.4g} output steps, allowed {p99:g}",
        ),
        (
            p.routing_flips <= flips,
            f"other experts ran in {p.routing_flips:.2%} of the samples, allowed {allowed['routing_flips']:.0%}",
        ),
        (
            p.max_flip_margin_steps <= allowed["max_flip_margin_steps"] + SLACK,
            f"an expert was replaced that led by {p.max_flip_margin_steps:.4g} router steps, "
            f"allowed {allowed['max_flip_margin_steps']:g}",
        ),
    ]


def method_parity(
    pieces: Pieces, model: DeployedMars, held_out: Split, precision: reference.Precision
) -> dict[str, MethodParity]:
    """Per method the differences over a few samples, both sides fed the model's own values.

    Every expert runs on every sample. Of subsets the samples take turns.

    Raises:
        ParityError: a method met no sample, or its outputs have other shapes.
        EngineError: a method failed.
    """
    calls = sample_calls(model, held_out)
    return {method: _method_parity(pieces, model, made, precision) for method, made in calls.items()}


def sample_calls(model: DeployedMars, held_out: Split) -> dict[str, list[Call]]:
    """Per method the calls that a few samples make of it in the model itself.

    Raises:
        ParityError: a method is not called, because no sample has its modality.
    """
    calls: dict[str, list[Call]] = {method: [] for method in pieces_of(model)}
    for row, subset in _turns(held_out, model):
        for call in reference.calls(model, held_out.batch(torch.tensor([row])), subset):
            calls[call.method].append(call)
    unmet = [method for method, made in calls.items() if not made]
    if unmet:
        raise ParityError(f"method {unmet[0]} was compared on no sample: none of {len(held_out)} has its modality")
    return calls


def _turns(held_out: Split, model: DeployedMars) -> Iterator[tuple[int, subsets.Subset]]:
    """Up to `_METHOD_SAMPLES` rows that have each modality, each whole and under one of its smaller subsets."""
    presence, columns = held_out.presence, list(held_out.inputs)
    rows = {int(i) for column in presence.T for i in torch.nonzero(column)[:_METHOD_SAMPLES].flatten()}
    for turn, row in enumerate(sorted(rows)):
        whole = tuple(name for name in model.modalities if presence[row, columns.index(name)])
        yield row, whole
        smaller = subsets.all_subsets(whole)[:-1]
        if smaller:
            yield row, smaller[turn % len(smaller)]


def _method_parity(
    pieces: Pieces, model: DeployedMars, made: Sequence[Call], precision: reference.Precision
) -> MethodParity:
    given = [pieces.execute(call.method, [x.contiguous().numpy() for x in call.inputs]) for call in made]
    steps = []
    for i in range(len(made[0].outputs)):
        wanted = np.stack([call.outputs[i].numpy() for call in made])
        got = np.stack([outputs[i] for outputs in given])
        if got.shape != wanted.shape or not got.size:
            raise ParityError(f"method {made[0].method} gives the shape {got.shape[1:]}, expected {wanted.shape[1:]}")
        step = reference.step(model, made[0].method, i, wanted, precision)
        steps.append((np.abs(got - wanted) / np.float32(step)).ravel())
    every = np.concatenate(steps)
    count = quantizers(pieces_of(model)[made[0].method])
    return MethodParity(
        max_steps=float(every.max()),
        steps_allowed=steps_allowed(count),
        mean_steps=float(every.mean()),
        off=float(np.mean(~(every <= 0.5))),
        off_allowed=off_allowed(count),
        values=every.size,
    )
