"""The golden sample of an artifact: an input small enough to travel in the manifest, and the engine's answers to it.

Axes: B samples, C channels, H height, W width, N experts, K experts that run.
Design decision: of several validation samples, the one whose routing is furthest from a tie in every subset, so that
no processor's last bit takes another expert. Values between 0 and 1 are stored as bytes, a large image with fewer
pixels; the answers are those to the stored values, so nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.manifest import Golden, Manifest, Tensor
from mars_edge.modality import Modality
from mars_export.evaluate import Engine
from mars_export.parity import MOST_STEPS
from mars_training.data.split import Split
from mars_training.model.mars import DeployedMars

_CANDIDATES = 64
_MOST_VALUES = 4096
# Of a segmentation, as shares of height and width.
_PIXELS_AT = (0.25, 0.5, 0.75)
# Float artifacts, as shares of the largest logit: another processor sums in another order.
_SLACK = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-3}


def make(
    engine: Engine,
    draft: Manifest,
    deployed: DeployedMars,
    validation: Split,
    wanted: Sequence[subsets.Subset],
) -> Golden:
    """The golden sample and the engine's answers to it under each of the `wanted` subsets."""
    inputs = _clearest(deployed, draft.modalities, validation, wanted)
    pixels = _pixels(draft.logits_shape)
    bare = Golden(inputs=inputs, logits={}, tolerance=0.0, pixels=pixels)
    samples = {m.name: bare.sample(m) for m in draft.modalities}
    logits = {
        subsets.label(subset, draft.names): bare.compared(engine.infer({n: samples[n] for n in subset}, {}).logits)
        for subset in wanted
    }
    largest = max(float(np.abs(values).max()) for values in logits.values())
    step = draft.logit_step
    return Golden(
        inputs=inputs,
        logits={name: tuple(float(v) for v in values) for name, values in logits.items()},
        tolerance=_SLACK[draft.precision] * largest if step is None else MOST_STEPS * step * 1.005,
        pixels=pixels,
    )


def stored(modality: Modality, x: NDArray[np.float32]) -> Tensor:
    """`x` of the modality's shape as the manifest keeps it: exactly, or as bytes, or as bytes of fewer pixels."""
    if modality.kind not in ("image", "audio"):
        return Tensor.of(x)
    if modality.kind == "image":
        x = _fewer_pixels(x)
    return Tensor.of((x * np.float32(255.0)).round().clip(0, 255).astype(np.uint8))


def _fewer_pixels(x: NDArray[np.float32]) -> NDArray[np.float32]:
    channels, height, width = x.shape
    factor = math.sqrt(min(1.0, _MOST_VALUES / (channels * height * width)))
    rows, columns = (max(1, int(side * factor)) for side in (height, width))
    picked: NDArray[np.float32] = x[:, np.arange(rows)[:, None] * height // rows, np.arange(columns) * width // columns]
    return picked


def _pixels(logits_shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    if len(logits_shape) == 1:
        return ()
    _, height, width = logits_shape
    return tuple((int(height * y), int(width * x)) for y in _PIXELS_AT for x in _PIXELS_AT)


def _clearest(
    deployed: DeployedMars, modalities: Sequence[Modality], validation: Split, wanted: Sequence[subsets.Subset]
) -> Mapping[str, Tensor]:
    best, inputs = -math.inf, None
    for candidate in _candidates(modalities, validation):
        golden = Golden(inputs=candidate, logits={}, tolerance=0.0)
        margin = _routing_margin(deployed, {m.name: golden.sample(m) for m in modalities}, wanted)
        if inputs is None or margin > best:
            best, inputs = margin, candidate
    assert inputs is not None
    return inputs


def _candidates(modalities: Sequence[Modality], validation: Split) -> list[dict[str, Tensor]]:
    """Complete validation rows as the manifest keeps them; where there is none, one sample made of several rows."""
    complete = torch.nonzero(validation.presence.all(dim=1)).flatten().tolist()
    columns = list(validation.inputs)
    rows = [dict.fromkeys(columns, i) for i in complete[:_CANDIDATES]]
    if not rows:
        # `argmax` of a column is its first row that is there; a modality no row has gives row 0, which is all zeros.
        first = validation.presence.int().argmax(dim=0).tolist()
        rows = [dict(zip(columns, first, strict=True))]
    return [{m.name: stored(m, _sample(validation, m.name, row[m.name])) for m in modalities} for row in rows]


def _sample(split: Split, name: str, row: int) -> NDArray[np.float32]:
    x: NDArray[np.float32] = split.batch(torch.tensor([row]))[name][0].contiguous().numpy()
    return x


@torch.no_grad()
def _routing_margin(
    deployed: DeployedMars, sample: Mapping[str, NDArray[np.float32]], wanted: Sequence[subsets.Subset]
) -> float:
    """How far the K-th largest router logit is above the next, in the subset where that is least."""
    features = deployed.encode_all({name: torch.from_numpy(x)[None] for name, x in sample.items()})
    masks = torch.from_numpy(np.stack([subsets.mask(subset, deployed.modalities) for subset in wanted]))
    _, logits = deployed.route([f.expand(len(wanted), *f.shape[1:]) for f in features], masks)
    ordered = logits.sort(dim=1, descending=True).values
    k = deployed.active_experts
    return float((ordered[:, k - 1] - ordered[:, k]).min()) if ordered.shape[1] > k else math.inf
