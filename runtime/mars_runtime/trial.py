"""Two artifacts run in turn on this machine: the same inputs, on every subset both were measured for.

Axes: C classes, H and W pixels of the logits (C,) or (C, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import EngineError, ModelFileError
from mars_edge.manifest import Manifest
from mars_edge.modality import Modality
from mars_runtime.comparison import Side, shared_subsets
from mars_runtime.engines import Engine, Inference, open_engine
from mars_runtime.machine import Machine, this_machine
from mars_runtime.timing import Call, Ratio, interleaved, ratio_of

Samples = dict[str, NDArray[np.float32]]

_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What both answer to the one input of a subset.

    Attributes:
        same_label: 1 when the largest logit is that of the same label, else 0; of a segmentation the share of pixels.
        largest_difference: of two logits.
        same_experts: whether the same experts ran.
    """

    same_label: float
    largest_difference: float
    same_experts: bool


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was measured in one run.

    Attributes:
        machine: as it was before.
        threads: of each engine.
        engines: names of those of A and B.
        inputs: where they came from.
        latency: by A's subset label, of one decision with everything new.
        agreement: by A's subset label; empty where the labels differ.
    """

    machine: Machine
    threads: int
    engines: tuple[str, str]
    inputs: str
    latency: Mapping[str, Ratio]
    agreement: Mapping[str, Agreement]


def run_trial(a: Side, b: Side, *, rounds: int, threads: int) -> Trial | str:
    """The measurement, or in one line why there is none.

    There is none without a subset in common, without an engine for a file, and when one fails, as in its self-test.
    """
    wanted = shared_subsets(a.manifest, b.manifest)
    if not wanted:
        return "they have no subset of modalities in common"
    machine = this_machine()
    try:
        with _opened(a, threads) as first, _opened(b, threads) as second:
            return _measured(first, second, wanted, machine, rounds, threads)
    except (EngineError, ModelFileError) as error:
        return str(error)


def inputs_for(a: Manifest, b: Manifest) -> tuple[Samples, Samples, str]:
    """One input per modality for A and one for B, the same where both take the same shape, and where they came from.

    It is the golden sample of A, else that of B, else noise in 0..1 that is the same in every run.
    """
    golden = _golden_samples(a), _golden_samples(b)
    sources: dict[str, None] = {}

    def chosen(modality: Modality) -> NDArray[np.float32]:
        for side, samples in zip("AB", golden, strict=True):
            if modality.name in samples and samples[modality.name].shape == modality.shape:
                sources[f"golden sample of {side}"] = None
                return samples[modality.name]
        sources["seeded noise"] = None
        return np.random.default_rng(_SEED).random(modality.shape, dtype=np.float32)

    first, second = ({m.name: chosen(m) for m in manifest.modalities} for manifest in (a, b))
    return first, second, ", ".join(sources)


def agreement(a: Inference, b: Inference) -> Agreement:
    """How two answers to one input compare; their logits have one shape."""
    return Agreement(
        same_label=float(np.mean(a.logits.argmax(axis=0) == b.logits.argmax(axis=0))),
        largest_difference=float(np.abs(a.logits - b.logits).max()),
        same_experts={index for index, _ in a.experts} == {index for index, _ in b.experts},
    )


def _measured(
    a: Engine, b: Engine, wanted: Mapping[str, tuple[str, ...]], machine: Machine, rounds: int, threads: int
) -> Trial:
    for_a, for_b, inputs = inputs_for(a.manifest, b.manifest)
    pairs = {label: (_decision(a, for_a, names), _decision(b, for_b, names)) for label, names in wanted.items()}
    alike = a.manifest.labels == b.manifest.labels and a.manifest.logits_shape == b.manifest.logits_shape
    return Trial(
        machine=machine,
        threads=threads,
        engines=(a.name, b.name),
        inputs=inputs,
        agreement={label: agreement(first(), second()) for label, (first, second) in pairs.items()} if alike else {},
        latency={label: ratio_of(times) for label, times in interleaved(pairs, rounds).items()},
    )


def _decision(engine: Engine, samples: Samples, names: tuple[str, ...]) -> Call:
    present = {name: samples[name] for name in names}
    return lambda: engine.infer(present, {})


def _golden_samples(manifest: Manifest) -> Samples:
    golden = manifest.golden
    return {} if golden is None else {m.name: golden.sample(m) for m in manifest.modalities}


@contextmanager
def _opened(side: Side, threads: int) -> Iterator[Engine]:
    engine = open_engine(side.name, threads=threads)
    try:
        yield engine
    finally:
        engine.close()
