"""The operating points of an artifact, measured in its engine: one per subset that has rows to choose and measure on.

Axes: B samples, C classes, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_edge.manifest import OperatingPoint
from mars_export import calibrate
from mars_export.evaluate import Answers, Engine, engine_answers, engine_stream, scored
from mars_training.checkpoint import RunInfo
from mars_training.data.split import Split

Points = tuple[dict[str, OperatingPoint], dict[str, Any]]
"""Operating points by subset label, and by the same label how each came about, in plain JSON types."""


def points(engine: Engine, validation: Split, test: Split, info: RunInfo) -> Points:
    """Chosen on `validation`, measured on `test`; a subset without rows of both gets no point and never decides.

    Raises:
        EngineError: an answer is not finite, or execution failed.
        UsageError: no subset has rows of both, with the classes that the metric needs.
    """
    wanted = subsets.evaluated_subsets(info.source.names, info.recipe.data.always_present)
    measure = _of_maps if info.source.task == "segmentation" else _of_classes
    found, how = measure(engine, validation, test, info, wanted)
    if not found:
        label, entry = next(iter(how.items()))
        raise UsageError(f"no subset can be measured, so none could decide; {label}: {entry['shortfalls'][0]}")
    return found, how


def _of_classes(
    engine: Engine, validation: Split, test: Split, info: RunInfo, wanted: Sequence[subsets.Subset]
) -> Points:
    chosen, measured = engine_answers(engine, validation, wanted), engine_answers(engine, test, wanted)
    found: dict[str, OperatingPoint] = {}
    how: dict[str, Any] = {}
    for subset in wanted:
        label = subsets.label(subset, info.source.names)
        seen, held_out = _answered(chosen[subset], validation), _answered(measured[subset], test)
        why = "no row has it" if seen is None or held_out is None else None
        if seen is not None and held_out is not None:
            why = calibrate.unmeasurable(seen[1], held_out[1], info.source)
        if why is not None or seen is None or held_out is None:
            how[label] = {"shortfalls": [why]}
            continue
        made = calibrate.calibrated(seen, held_out, info.source, info.recipe.export)
        found[label] = made.point
        how[label] = {
            "temperature": asdict(made.temperature),
            "before": asdict(made.before),
            "after": asdict(made.after),
            "shortfalls": list(made.shortfalls),
        }
    return found, how


def _answered(answers: Answers, split: Split) -> tuple[NDArray[np.float32], Split] | None:
    """The logits of a subset's rows and those rows; None where it has none."""
    return (answers.logits, split.take(torch.from_numpy(answers.indices))) if len(answers.indices) else None


def _of_maps(engine: Engine, validation: Split, test: Split, info: RunInfo, wanted: Sequence[subsets.Subset]) -> Points:
    temperatures = _pixel_temperatures(engine, validation, info, wanted)
    measured = scored(engine, test, info.source, wanted)
    found: dict[str, OperatingPoint] = {}
    how: dict[str, Any] = {}
    for score in measured.scores:
        temperature = temperatures.get(score.subset)
        if temperature is None:
            how[score.subset] = {"shortfalls": ["no validation row has it"]}
            continue
        found[score.subset] = calibrate.map_point(score, info.recipe.export, temperature=temperature.value)
        how[score.subset] = {
            "temperature": asdict(temperature),
            "before": {"ece": score.ece, "nll": score.nll},
            "shortfalls": list(calibrate.map_shortfalls(score, info.recipe.export)),
        }
    return found, how | {label: {"shortfalls": [why]} for label, why in measured.unmeasured.items()}


def _has_rows(split: Split, subset: subsets.Subset) -> bool:
    columns = [list(split.inputs).index(name) for name in subset]
    return bool(split.presence[:, columns].all(dim=1).any())


def _pixel_temperatures(
    engine: Engine, validation: Split, info: RunInfo, wanted: Sequence[subsets.Subset]
) -> Mapping[str, calibrate.Temperature]:
    if not info.recipe.export.temperature:
        none = calibrate.Temperature(value=1.0, note="the recipe wants none")
        return {subsets.label(s, info.source.names): none for s in wanted if _has_rows(validation, s)}
    pixels: dict[str, calibrate.PixelSample] = {}
    for subset, row, answer in engine_stream(engine, validation, wanted):
        label = subsets.label(subset, info.source.names)
        labels = validation.labels[torch.tensor([row])][0].numpy()
        pixels.setdefault(label, calibrate.PixelSample()).add(answer.logits, labels)
    return {label: calibrate.fit_temperature(kept.logits, kept.labels) for label, kept in pixels.items()}
