"""How good the detector has to stay: a TOML file of bounds, and what is beyond them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from mars_edge.errors import UsageError
from mars_runtime.grading.delays import Grade
from mars_runtime.grading.gap import NO_FAULT, Cost
from mars_runtime.grading.quiet import Hours


@dataclass(frozen=True, kw_only=True)
class Bound:
    """For one fault on one sensor: the least share of trials that must be noticed, and the 95 % point of the delay."""

    found: float
    p95_s: float


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The whole file.

    Attributes:
        within: least share of the trials of a transport fault that are masked within the fault table's limit.
        early: most trials, as a share, in which something is reported before the fault.
        masks_per_hour: most masks of a healthy sensor.
        alarms_per_hour: by stream, most reports "degraded" that the fault table does not call for there.
        healthy_accuracy: least share of a model's decisions that are right while no sensor is broken.
        masked_accuracy: the same while the broken sensor is masked; one that abstains is not counted.
        faults: by fault and sensor, for faults of content.
    """

    within: float
    early: float
    masks_per_hour: float
    alarms_per_hour: Mapping[str, float]
    healthy_accuracy: float
    masked_accuracy: float
    faults: Mapping[tuple[str, str], Bound] = field(default_factory=dict)


def load(path: Path | None = None) -> Bounds:
    """The bounds of a file, or those the project ships.

    Raises:
        UsageError: no such file, or not of this form.
    """
    where = "bounds" if path is None else f"--bounds {path}"
    try:
        text = _shipped() if path is None else path.read_text(encoding="utf-8")
        return _built(tomllib.loads(text))
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: not TOML: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{where}: not of the form of the shipped bounds ({type(error).__name__}: {error})") from error


def _shipped() -> str:
    return resources.files("mars_runtime").joinpath("grading/bounds.toml").read_text("utf-8")


def _built(table: Mapping[str, Any]) -> Bounds:
    faults = {
        (kind, sensor): Bound(found=float(bound["found"]), p95_s=float(bound["p95_s"]))
        for kind, sensors in table["faults"].items()
        for sensor, bound in sensors.items()
    }
    return Bounds(
        within=float(table["transport"]["within"]),
        early=float(table["transport"]["early"]),
        masks_per_hour=float(table["normal"]["masks_per_hour"]),
        alarms_per_hour={name: float(most) for name, most in table["normal"]["alarms_per_hour"].items()},
        healthy_accuracy=float(table["decisions"]["healthy_accuracy"]),
        masked_accuracy=float(table["decisions"]["masked_accuracy"]),
        faults=faults,
    )


def beyond(bounds: Bounds, grades: Sequence[Grade], hours: Sequence[Hours], costs: Sequence[Cost] = ()) -> list[str]:
    """What is worse than the bounds, a line each; empty when all is well."""
    return [*_late(bounds, grades), *_wrong(bounds, hours), *_costly(bounds, costs)]


def _late(bounds: Bounds, grades: Sequence[Grade]) -> Iterator[str]:
    for each in grades:
        where = f"{each.fault} on {each.sensor}" + (" (learned limits)" if each.learned else "")
        if each.early > bounds.early * each.trials:
            yield f"{where}: {each.early} of {each.trials} trials report something before the fault"
        if each.limit_s is not None and each.within < bounds.within * each.trials:
            yield f"{where}: {each.within} of {each.trials} masked within {1000.0 * each.limit_s:.0f} ms"
        bound = bounds.faults.get((each.fault, each.sensor))
        if bound is None:
            continue
        if each.found < bound.found * each.trials:
            yield f"{where}: {each.found} of {each.trials} noticed, at least {bound.found:.0%} wanted"
        if each.p95_s is not None and each.p95_s > bound.p95_s:
            yield f"{where}: 95 % noticed after {each.p95_s:.2f} s, at most {bound.p95_s:.2f} s wanted"


def _wrong(bounds: Bounds, hours: Sequence[Hours]) -> Iterator[str]:
    for each in hours:
        where = f"{each.stream} {each.sensor}" + (" (learned limits)" if each.learned else "")
        if each.masks > bounds.masks_per_hour * each.hours:
            yield f"{where}: {each.masks} masks in {each.hours:g} hours of a healthy sensor ({_reasons(each)})"
        most = bounds.alarms_per_hour[each.stream] * each.hours
        if each.false_alarms > most:
            count = f"{each.false_alarms} false alarms in {each.hours:g} hours"
            yield f"{where}: {count}, at most {most:g} wanted ({_reasons(each)})"


def _costly(bounds: Bounds, costs: Sequence[Cost]) -> Iterator[str]:
    for each in costs:
        healthy = each.fault == NO_FAULT
        accuracy = each.accuracy("gap" if healthy else "masked")
        least = bounds.healthy_accuracy if healthy else bounds.masked_accuracy
        if accuracy is not None and accuracy < least:
            where = "without a fault" if healthy else f"{each.fault} on {each.sensor}, masked"
            yield f"{where}: {accuracy:.1%} of the decisions right, at least {least:.1%} wanted"


def _reasons(hours: Hours) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted((hours.reasons | hours.mask_reasons).items()))
