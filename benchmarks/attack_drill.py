"""What an attacker gains by breaking sensors while the attack is shown: every fault, sensor and species, on the rig.

    python benchmarks/attack_drill.py --presentations 40

Each presentation is one simulated attack of a test identity, standing still before all cameras at 15 Hz. After 2 s one
sensor is covered (by something opaque or something translucent), unplugged or frozen, for 4 s; the decisions are those
of the runtime's own loop, health rules and policy, on a simulated clock. Judged are the last decision, once the fault
is known or never will be, and the decisions of the gap before it is known. A cell is beyond its bound when even the
lower 95 % bound of its acceptance (exact, Clopper and Pearson) is above the upper one that the manifest certifies for
that subset and species. Simulated attacks: no claim about real ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.faults import Fault
from mars_edge.manifest import CONTENT_FAULTS, Manifest
from mars_edge.metrics import clopper_pearson
from mars_edge.options import OneLineParser, positive
from mars_edge.rig import ATTACKS, IDENTITIES, MODALITIES, render, sample_scene
from mars_runtime.capture import Doorbell
from mars_runtime.decision import Decision
from mars_runtime.engines import open_engine
from mars_runtime.engines.protocol import Engine
from mars_runtime.facts import FactFinder
from mars_runtime.grading.sensor import Clock, StepFeed
from mars_runtime.machine import this_machine
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.sensors.faulty import FaultyDriver

RATE_HZ = 15.0
BEFORE_S = 2.0
FAULT_S = 4.0
FAULTS = ("cover", "scatter", "unplug", "stuck")
_CONFIDENCE = 0.95
Frames = Mapping[str, Sequence[NDArray[Any]]]


class Presented:
    """One camera before an attack: the frame of the clock's moment."""

    def __init__(self, name: str, frames: Sequence[NDArray[Any]], clock: Clock) -> None:
        self.traits = Traits(description=f"presented {name}", rate_hz=RATE_HZ, raw=True, simulated=True)
        self._frames = frames
        self._clock = clock

    def open(self) -> None:
        """Nothing to open."""

    def read(self, timeout_s: float) -> Frame | None:
        """The frame of now."""
        index = round(self._clock() * RATE_HZ)
        return Frame(data=self._frames[index], sequence=index)

    def close(self) -> None:
        """Nothing to close."""


@dataclass(kw_only=True)
class Cell:
    """One fault on one sensor during one species.

    Attributes:
        subsets: how many presentations ended on which subset.
        accepted: presentations whose last decision accepts.
        gap: decisions made while the fault held and was not known; `gap_accepted` of them accept.
        masked: presentations in which the sensor was masked in the end.
    """

    fault: str
    sensor: str
    species: str
    presentations: int = 0
    accepted: int = 0
    masked: int = 0
    gap: int = 0
    gap_accepted: int = 0
    subsets: dict[str, int] = field(default_factory=dict)

    def add(self, decisions: Sequence[Decision]) -> None:
        """Counts one presentation by the decisions made since the fault."""
        last = decisions[-1]
        unknown = [d for d in decisions if d.modalities[self.sensor].status != "missing"]
        self.presentations += 1
        self.accepted += _accepts(last)
        self.masked += last.modalities[self.sensor].status == "missing"
        self.gap += len(unknown)
        self.gap_accepted += sum(map(_accepts, unknown))
        self.subsets[last.subset] = self.subsets.get(last.subset, 0) + 1


def _accepts(decision: Decision) -> bool:
    return decision.outcome.verdict == "accept"


def frames_of(species: str, number: int, seed: int) -> dict[str, list[NDArray[Any]]]:
    """The frames of one presentation, by sensor; a new exposure of the same scene at every step."""
    rng = np.random.default_rng([0x44524C4C, seed, ATTACKS.index(species), number])
    scene = sample_scene(rng, species, identities=IDENTITIES["test"])
    count = round((BEFORE_S + FAULT_S) * RATE_HZ) + 1
    scenes = [replace(scene, seed=scene.seed + 1 + step) for step in range(count)]
    return {name: [render(each, name) for each in scenes] for name in MODALITIES}


def play(
    engine: Engine, frames: Frames, fault: Fault, seed: int, masking: Sequence[str] | None = None
) -> list[Decision]:
    """The decisions from the beginning of `fault` on."""
    clock, manifest = Clock(), engine.manifest
    feeds = {}
    for index, name in enumerate(manifest.names):
        own = [fault] if fault.sensor == name else []
        driver = FaultyDriver(Presented(name, frames[name], clock), own, stream_s=clock, seed=seed + index)
        feeds[name] = StepFeed(driver, FactFinder.of(manifest.modality(name)), clock)
    policy = manifest.policy if masking is None else replace(manifest.policy, masking_faults=tuple(masking))
    settings = Settings(policy=policy, rate_hz=RATE_HZ, gather_s=0.0)
    pipeline = Pipeline(engine, feeds, settings, doorbell=Doorbell(), clock=clock, utc=lambda: 0.0)
    pipeline.start()
    decisions = []
    for step in range(round((BEFORE_S + FAULT_S) * RATE_HZ)):
        clock.now_s = step / RATE_HZ
        for feed in feeds.values():
            feed.step()
        decisions.append(pipeline.decide())
    return decisions[round(BEFORE_S * RATE_HZ) :]


def drill(engine: Engine, presentations: int, seed: int, masking: Sequence[str] | None = None) -> list[Cell]:
    """A cell per fault, sensor and attack species.

    Raises:
        UsageError: the model is none of the rig's, or accepts nothing.
    """
    manifest = engine.manifest
    if not set(manifest.names) <= set(MODALITIES) or manifest.positive_label is None:
        raise UsageError(f"{manifest.name} is no live/spoof model of the simulated rig ({', '.join(MODALITIES)})")
    cells = {
        (fault, sensor, species): Cell(fault=fault, sensor=sensor, species=species)
        for fault in FAULTS
        for sensor in manifest.names
        for species in ATTACKS
    }
    for species in ATTACKS:
        for number in range(presentations):
            frames = frames_of(species, number, seed)
            for fault in FAULTS:
                for sensor in manifest.names:
                    given = Fault(sensor=sensor, kind=fault, start_s=BEFORE_S)
                    cells[fault, sensor, species].add(play(engine, frames, given, seed + number, masking))
        print(f"attack_drill: {species} done", file=sys.stderr, flush=True)
    return list(cells.values())


def certified_bound(manifest: Manifest, cell: Cell) -> float:
    """The largest upper APCER bound of the subsets the cell ended on; 0 for one that may not decide."""
    bounds = []
    for label in cell.subsets:
        point = manifest.operating_points.get(label)
        certified = point is not None and point.certified
        bounds.append(point.apcer[cell.species].high if certified and point is not None else 0.0)
    return max(bounds)


def beyond(manifest: Manifest, cell: Cell) -> bool:
    """Whether attacks are accepted more often than certified, chance accounted for."""
    low = clopper_pearson(cell.accepted, cell.presentations, _CONFIDENCE)[0]
    return low > certified_bound(manifest, cell)


def as_markdown(manifest: Manifest, cells: Sequence[Cell]) -> str:
    """The table, the cells beyond their bound in bold."""
    head = ("fault", "sensor", "species", "masked", "decided on", "accepted", "certified bound", "accepted in the gap")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(_row(manifest, cell)) + " |" for cell in cells]
    return "\n".join([*lines, "", f"{_verdict(manifest, cells)}; {in_the_gap(cells)}"])


def _row(manifest: Manifest, cell: Cell) -> Iterator[str]:
    mark = "**" if beyond(manifest, cell) else ""
    subsets = ", ".join(sorted(cell.subsets, key=lambda label: -cell.subsets[label]))
    yield from (cell.fault, cell.sensor, cell.species, f"{cell.masked} of {cell.presentations}", subsets)
    yield f"{mark}{cell.accepted} of {cell.presentations}{mark}"
    yield f"{100.0 * certified_bound(manifest, cell):.1f} %"
    yield f"{cell.gap_accepted} of {cell.gap}"


def _verdict(manifest: Manifest, cells: Sequence[Cell]) -> str:
    bad = [cell for cell in cells if beyond(manifest, cell)]
    if not bad:
        return "no subset accepts attacks above its certified bound"
    worst = ", ".join(f"{c.fault} {c.sensor} during {c.species}" for c in bad)
    return f"above the certified bound in {len(bad)} of {len(cells)} cells: {worst}"


def in_the_gap(cells: Sequence[Cell]) -> str:
    """What is accepted before the fault is known, which no certificate bounds: decisions, and the worst cell."""
    accepted = sum(cell.gap_accepted for cell in cells)
    total = sum(cell.gap for cell in cells)
    if not accepted:
        return f"before a fault was known, none of {total} decisions accepts"
    worst = max(cells, key=lambda cell: cell.gap_accepted / max(1, cell.gap))
    share = f"{worst.gap_accepted} of {worst.gap} ({worst.fault} {worst.sensor} during {worst.species})"
    return f"before a fault was known, {accepted} of {total} decisions accept, at worst {share}"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="benchmarks/attack_drill.py",
        description=__doc__,
        epilog="example: python benchmarks/attack_drill.py --presentations 40",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="face_antispoof.pte", metavar="FILE", help="default: the bundled face model")
    parser.add_argument("--presentations", type=positive(int, most=10_000), default=40, help="per species; default: 40")
    parser.add_argument("--seed", type=positive(int, zero=True), default=0, help="of scenes and faults; default: 0")
    parser.add_argument("--masking", nargs="*", choices=CONTENT_FAULTS, help="in place of the model's masking_faults")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    return parser


def main() -> int:
    """Print the table, and where it was measured; exit 1 when a bound is exceeded."""
    options = _parser().parse_args()
    try:
        engine = open_engine(options.model, threads=1)
        cells = drill(engine, options.presentations, options.seed, options.masking)
    except MarsEdgeError as error:
        print(f"attack_drill: {error}", file=sys.stderr)
        return error.exit_code
    manifest = engine.manifest
    if options.json:
        print(json.dumps([asdict(cell) | {"bound": certified_bound(manifest, cell)} for cell in cells]))
    else:
        print(as_markdown(manifest, cells))
        where = f"{datetime.now(UTC):%Y-%m-%d}, {this_machine()}"
        print(f"\n{options.presentations} presentations, seed {options.seed}, {where}")
    return int(any(beyond(manifest, cell) for cell in cells))


if __name__ == "__main__":
    raise SystemExit(main())
