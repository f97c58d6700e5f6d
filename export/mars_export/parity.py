"""The parity gate: an artifact answers as the model it came from, in the engine that will run it.

Axes: B samples, N experts, K experts that run.
Design decision: the reference is the converted (or folded float) PyTorch model, with the gates every engine
uses; compared are every subset's decisions, and for a .pte every method on its own, so an expert that no
sample happened to choose is still checked. NaN and empty comparisons fail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import EngineError, ParityError, UsageError
from mars_edge.gates import top_k_gates
from mars_export.evaluate import Answers, engine_answers
from mars_export.pieces import output_steps, pieces_of
from mars_runtime.engines.protocol import Engine
from mars_training.data.split import Split
from mars_training.model.mars import DeployedMars

LEAST_AGREEMENT = 0.99
MOST_STEPS = 2.0
# An expert may differ only where the reference's own margin was within a step, and in this share of samples.
MOST_FLIPS = 0.05
# Stands in for a quantization step in fp32: two of them are 1e-3 of the largest value.
_FLOAT_STEP = 5e-4
# Steps are compared after float32 arithmetic: 2 steps may read 2.0001.
_SLACK = 1e-2
_METHOD_SAMPLES = 16
_BATCH = 64


class Pieces(Protocol):
    """An engine that can run one method alone."""

    def execute(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of `method`."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model's own answers: logits (B, classes), router logits (B, N), chosen experts (B, K)."""

    logits: NDArray[np.float32]
    router_logits: NDArray[np.float32]
    experts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SubsetParity:
    """How one subset compares over all samples.

    Attributes:
        label_agreement: share of equal decisions, 0..1.
        max_steps: largest logit difference in output steps, samples with a routing flip left out.
        over_one_step: share of those samples further than one step.
        routing_flips: share of samples for which another set of experts ran.
        max_steps_flipped: largest difference among the flipped samples; 0 without flips.
        max_flip_margin_steps: largest margin, in router steps, by which the reference preferred its experts.
    """

    label_agreement: float
    max_steps: float
    over_one_step: float
    routing_flips: float
    max_steps_flipped: float
    max_flip_margin_steps: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The report that goes into the manifest.

    Attributes:
        engine: which engine ran the artifact.
        samples: how many, disjoint from training and calibration.
        subsets: by subset label.
        methods: by method, the largest difference in output steps on the reference's own inputs; empty for a
            graph whose pieces cannot run alone.
        experts_chosen: how often each expert ran, over all samples and subsets.
    """

    engine: str
    samples: int
    subsets: Mapping[str, SubsetParity]
    methods: Mapping[str, float]
    experts_chosen: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        table = asdict(self)
        table["experts_chosen"] = list(self.experts_chosen)
        return table


def sample_ids(split: Split) -> list[str]:
    """One digest per sample over all its modalities: equal samples have equal ids, in whatever split."""
    ids = []
    for indices in torch.split(torch.arange(len(split)), _BATCH):
        batch = split.batch(indices)
        rows = [batch[name].contiguous().numpy() for name in sorted(batch)]
        ids += [
            hashlib.blake2b(b"".join(row[i].tobytes() for row in rows), digest_size=16).hexdigest()
            for i in range(len(indices))
        ]
    return ids


def require_disjoint(held_out: Split, seen: Mapping[str, Split]) -> None:
    """Passes when no held-out sample is in a split that the model or its calibration has seen.

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


@torch.no_grad()
def reference_answers(
    model: DeployedMars, split: Split, wanted: Sequence[subsets.Subset]
) -> dict[subsets.Subset, Reference]:
    """The model's answers under each subset, routed by the gates that every engine uses.

    Raises:
        ParityError: an answer of the model itself is not finite.
    """
    model.eval()
    rows: dict[subsets.Subset, list[tuple[NDArray[Any], ...]]] = {subset: [] for subset in wanted}
    for start in range(0, len(split), _BATCH):
        indices = torch.arange(start, min(start + _BATCH, len(split)))
        features = model.encode_all(split.batch(indices))
        for subset in wanted:
            present = torch.from_numpy(subsets.mask(subset, model.modalities)).expand(len(indices), -1)
            rows[subset].append(_reference_batch(model, features, present))
    answers = {
        subset: Reference(
            logits=np.concatenate([p[0] for p in parts]),
            router_logits=np.concatenate([p[1] for p in parts]),
            experts=np.concatenate([p[2] for p in parts]),
        )
        for subset, parts in rows.items()
    }
    for subset, answer in answers.items():
        if not (np.isfinite(answer.logits).all() and np.isfinite(answer.router_logits).all()):
            raise ParityError(f"the model itself gives NaN or infinity for {'+'.join(subset)}")
    return answers


def _reference_batch(
    model: DeployedMars, features: Sequence[torch.Tensor], present: torch.Tensor
) -> tuple[NDArray[Any], ...]:
    z, router_logits = model.route(features, present)
    chosen, weights = top_k_gates(router_logits.numpy(), model.active_experts)
    gates = torch.zeros_like(router_logits).scatter(1, torch.from_numpy(chosen), torch.from_numpy(weights))
    return model.decide(z, gates).numpy(), router_logits.numpy(), chosen


def compare_subset(given: Answers, wanted: Reference, *, logit_step: float, router_step: float) -> SubsetParity:
    """The report of one subset; NaN stays NaN, so that no bound accepts it.

    Raises:
        ParityError: there is nothing to compare.
    """
    if given.logits.size == 0 or given.logits.shape != wanted.logits.shape:
        raise ParityError(f"cannot compare logits of shapes {given.logits.shape} and {wanted.logits.shape}")
    steps = np.abs(given.logits - wanted.logits).max(axis=1) / logit_step
    flipped = np.any(np.sort(given.experts, axis=1) != np.sort(wanted.experts, axis=1), axis=1)
    margins = _margins(wanted.router_logits, given.experts) / router_step
    kept = steps[~flipped]
    return SubsetParity(
        label_agreement=float(np.mean(given.logits.argmax(axis=1) == wanted.logits.argmax(axis=1))),
        max_steps=_largest(kept),
        over_one_step=float(np.mean(kept > 1.0 + _SLACK)) if kept.size else 0.0,
        routing_flips=float(flipped.mean()),
        max_steps_flipped=_largest(steps[flipped]),
        max_flip_margin_steps=_largest(margins[flipped]),
    )


def _largest(values: NDArray[np.floating]) -> float:
    # numpy's maximum keeps a NaN; Python's max(0.0, nan) is 0.0.
    return float(np.max(values)) if values.size else 0.0


def _margins(router_logits: NDArray[np.float32], given: NDArray[np.int64]) -> NDArray[np.float32]:
    """By how much the reference's K-th largest logit exceeds the weakest expert the engine chose, (B,)."""
    k = given.shape[1]
    kth = np.sort(router_logits, axis=1)[:, -k]
    weakest = np.take_along_axis(router_logits, given, axis=1).min(axis=1)
    margins: NDArray[np.float32] = kth - weakest
    return margins


def require_parity(report: Parity) -> None:
    """Passes when every bound of this module holds.

    Raises:
        ParityError: names the worst subset or method, what it measured and what is allowed.
    """
    if not report.subsets or report.samples < 1:
        raise ParityError("parity compared nothing: an empty check proves nothing")
    bad_methods = {name: steps for name, steps in report.methods.items() if not steps <= MOST_STEPS + _SLACK}
    if bad_methods:
        name = _worst(bad_methods)
        raise ParityError(f"method {name} is off by {bad_methods[name]:.4g} output steps, allowed {MOST_STEPS:g}")
    for subset, parity in report.subsets.items():
        for ok, message in _bounds(parity):
            if not ok:
                raise ParityError(f"{report.engine} on {subset}: {message}")


def _worst(steps: Mapping[str, float]) -> str:
    # A NaN is worse than any number.
    return max(steps, key=lambda name: np.inf if np.isnan(steps[name]) else steps[name])


def _bounds(p: SubsetParity) -> list[tuple[bool, str]]:
    return [
        (
            p.label_agreement >= LEAST_AGREEMENT,
            f"label agreement {p.label_agreement:.2%}, at least {LEAST_AGREEMENT:.0%} is needed",
        ),
        (
            p.max_steps <= MOST_STEPS + _SLACK,
            f"a logit is off by {p.max_steps:.4g} output steps, allowed {MOST_STEPS:g}",
        ),
        (
            p.routing_flips <= MOST_FLIPS,
            f"other experts ran in {p.routing_flips:.2%} of the samples, allowed {MOST_FLIPS:.0%}",
        ),
        (
            p.max_flip_margin_steps <= MOST_STEPS + _SLACK,
            f"an expert was replaced that led by {p.max_flip_margin_steps:.4g} router steps, allowed {MOST_STEPS:g}",
        ),
    ]


def check(engine: Engine, model: DeployedMars, held_out: Split) -> Parity:
    """The engine's answers beside the model's, over every subset; passes `require_parity` or raises.

    Raises:
        ParityError: a bound is exceeded, an answer is not finite, or the engine failed.
    """
    wanted = subsets.all_subsets(model.modalities)
    reference = reference_answers(model, held_out, wanted)
    try:
        methods = method_differences(engine, model, held_out)
        given = engine_answers(engine, held_out, wanted)
    except EngineError as error:
        raise ParityError(f"{engine.name}: {error}") from error
    # One quantizer would serve every subset, so one step does: the range is that of all of them.
    router_logits = np.concatenate([answer.router_logits for answer in reference.values()])
    report = Parity(
        engine=engine.name,
        samples=len(held_out),
        subsets={
            subsets.label(subset, model.modalities): compare_subset(
                given[subset],
                reference[subset],
                logit_step=_step(model, "head", 0, reference[subset].logits),
                router_step=_step(model, "route", 1, router_logits),
            )
            for subset in wanted
        },
        methods=methods,
        experts_chosen=_usage(given.values(), len(model.experts)),
    )
    require_parity(report)
    return report


def _usage(answers: Iterable[Answers], experts: int) -> tuple[int, ...]:
    chosen = np.concatenate([answer.experts.ravel() for answer in answers])
    return tuple(np.bincount(chosen, minlength=experts).tolist())


def _step(model: DeployedMars, method: str, output: int, values: NDArray[np.float32]) -> float:
    """One output step of a piece.

    A float output of a quantized piece counts in steps of the int8 it might have been, 1/255 of the range of
    `values`; a float piece in steps of a small share of its largest value.
    """
    steps = output_steps(pieces_of(model)[method])
    if not steps:
        return _FLOAT_STEP * float(np.abs(values).max())
    step = steps[output]
    return float(np.ptp(values)) / 255.0 if step is None else step


@torch.no_grad()
def method_differences(engine: Engine, model: DeployedMars, held_out: Split) -> dict[str, float]:
    """Per method the largest difference in output steps, both sides fed the model's own values.

    Empty for an engine without separate methods.

    Raises:
        UsageError: there is no sample to compare with.
    """
    runner: Pieces | None = getattr(engine, "runner", None)
    if runner is None:
        return {}
    if not len(held_out):
        raise UsageError("no samples to compare methods with")
    worst: dict[str, list[float]] = {}
    for i in range(min(_METHOD_SAMPLES, len(held_out))):
        for method, (inputs, outputs) in _piecewise(model, held_out.batch(torch.tensor([i]))).items():
            given = runner.execute(method, [x.contiguous().numpy() for x in inputs])
            for j, (got, want) in enumerate(zip(given, outputs, strict=True)):
                step = _step(model, method, j, want.numpy())
                worst.setdefault(method, []).append(float(np.abs(got - want.numpy()).max() / (step or 1.0)))
    return {method: _largest(np.array(values)) for method, values in worst.items()}


def _piecewise(
    model: DeployedMars, sample: Mapping[str, torch.Tensor]
) -> dict[str, tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]:
    """Inputs and outputs of every piece for one complete sample; experts all run."""
    pieces = pieces_of(model)
    table: dict[str, tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = {}
    features = tuple(model.encode_all(sample))
    for name, feature in zip(model.modalities, features, strict=True):
        table[f"encode_{name}"] = ((sample[name],), (feature,))
    z, router_logits = model.route_stage(*features)
    table["route"] = (features, (z, router_logits))
    outputs = []
    for method in pieces:
        if method.startswith("expert_"):
            outputs.append(pieces[method](z))
            table[method] = ((z,), (outputs[-1],))
    combined = torch.stack(outputs).mean(dim=0)
    table["head"] = ((combined,), (model.head(combined),))
    return table
