"""Soak: the whole loop in real time with three sensors, for as long as you like.

    python benchmarks/soak.py --minutes 30
    python benchmarks/soak.py --minutes 3 --json

Three sensors give pre-rendered pictures of the simulated rig at 30 Hz through capture threads, mailboxes and health to
the bundled model. Reported: decisions that missed their deadline (one period), periods that were skipped, the loop's
overhead (the whole time of a decision minus that of the inference inside), memory, threads and file descriptors at the
start and in the end.
Exit code 5 when an objective is missed: more than 0.1 % of deadlines, or an overhead above 0.5 ms in the median.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "runtime")]

from mars_edge.options import OneLineParser, positive  # noqa: E402
from mars_edge.rig import Rig  # noqa: E402
from mars_runtime.decision import Decision  # noqa: E402
from mars_runtime.engines import Engine, Inference, open_engine  # noqa: E402
from mars_runtime.machine import this_machine  # noqa: E402
from mars_runtime.pipeline import Pipeline, Settings  # noqa: E402
from mars_runtime.sensors.driver import Frame, Traits  # noqa: E402
from mars_runtime.sensors.pace import Pacer  # noqa: E402
from mars_runtime.stream import Stream  # noqa: E402
from mars_runtime.tick import Plan  # noqa: E402

_RATE_HZ = 30.0
_RENDERED = 90
_SENSORS = ("rgb", "depth", "ir")
# Objectives of issue "the sensor runtime".
_MISSED_SHARE = 0.001
_OVERHEAD_MS = 0.5
_BUFFERED = 1_000_000


class Rendered:
    """Pictures rendered in advance, one per period, for ever."""

    def __init__(self, name: str, frames: Sequence[NDArray[Any]], rate_hz: float) -> None:
        self.traits = Traits(description=f"pre-rendered {name}", rate_hz=rate_hz, raw=True)
        self._frames = frames
        self._rate_hz = rate_hz
        self._pace: Pacer | None = None
        self._count = 0

    def open(self) -> None:
        """Begin at the first picture."""
        self._pace = Pacer(self._rate_hz)

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture when it is due."""
        assert self._pace is not None
        if not self._pace.wait(timeout_s):
            return None
        self._count += 1
        return Frame(data=self._frames[self._count % len(self._frames)], sequence=self._count)

    def close(self) -> None:
        """Nothing is held."""


class TimedEngine:
    """An engine that says how long its last inference took."""

    def __init__(self, engine: Engine) -> None:
        self.manifest = engine.manifest
        self.name = engine.name
        self.took_s = 0.0
        self._engine = engine

    def infer(
        self, samples: Mapping[str, NDArray[np.float32]], features: Mapping[str, NDArray[np.float32]]
    ) -> Inference:
        """As the engine inside."""
        begin_s = time.perf_counter()
        inference = self._engine.infer(samples, features)
        self.took_s = time.perf_counter() - begin_s
        return inference

    def close(self) -> None:
        """As the engine inside."""
        self._engine.close()


class Tally:
    """What a soak counts; memory is bounded."""

    def __init__(self, engine: TimedEngine, pipeline: Pipeline) -> None:
        self._engine = engine
        self._decide = pipeline.decide
        pipeline.decide = self._timed  # type: ignore[method-assign]
        self._took_s = 0.0
        self.decisions = 0
        self.late = 0
        self.skipped = 0
        self.masked = 0
        # Written at once: memory that these take bit by bit would look like the loop's.
        self._overhead_ms = np.full(_BUFFERED, np.nan, np.float32)
        self._engine_ms = np.full(_BUFFERED, np.nan, np.float32)

    def _timed(self, plan: Plan | None = None) -> Decision:
        begin_s = time.perf_counter()
        decision = self._decide(plan)
        self._took_s = time.perf_counter() - begin_s
        return decision

    def add(self, decision: Decision) -> None:
        """Count the decision that was just made."""
        place = self.decisions % _BUFFERED
        self._overhead_ms[place] = 1000.0 * (self._took_s - self._engine.took_s)
        self._engine_ms[place] = 1000.0 * self._engine.took_s
        self.decisions += 1
        self.late += decision.late_ms > 0.0
        self.skipped += decision.skipped
        self.masked += any(summary.status == "missing" for summary in decision.modalities.values())

    def quantiles_ms(self) -> dict[str, list[float]]:
        """50th, 95th and 99th percentile of the last million decisions."""
        count = min(self.decisions, _BUFFERED)
        found = {"overhead_ms": self._overhead_ms[:count], "engine_ms": self._engine_ms[:count]}
        return {name: [round(float(q), 4) for q in np.quantile(v, (0.5, 0.95, 0.99))] for name, v in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak; 0, or 5 when an objective is missed."""
    options = _parser().parse_args(argv)
    rig = Rig(seed=0, rate_hz=_RATE_HZ)
    frames = {name: [rig.frame(name, index / _RATE_HZ) for index in range(_RENDERED)] for name in _SENSORS}
    drivers = {name: Rendered(name, frames[name], _RATE_HZ) for name in _SENSORS}
    engine = TimedEngine(open_engine(options.model, threads=1))
    stream = Stream(
        engine,
        [],
        Settings(policy=engine.manifest.policy, rate_hz=_RATE_HZ),
        drivers=drivers,
        on_close=engine.close,
    )
    tally, before = Tally(engine, stream._pipeline), None
    end_s = time.monotonic() + 60.0 * options.minutes
    with stream:
        for decision in stream:
            if decision.seq == 3 * round(_RATE_HZ):
                before = _resources()
            if decision.seq >= 3 * round(_RATE_HZ):
                tally.add(decision)
            if time.monotonic() >= end_s:
                break
        after = _resources()
    report = {
        "machine": str(this_machine()),
        "load": this_machine().load,
        "minutes": options.minutes,
        "rate_hz": _RATE_HZ,
        "decisions": tally.decisions,
        "late": tally.late,
        "skipped": tally.skipped,
        "masked": tally.masked,
        "missed_share": round((tally.late + tally.skipped) / max(1, tally.decisions + tally.skipped), 6),
        **tally.quantiles_ms(),
        "before": before,
        "after": after,
    }
    print(json.dumps(report) if options.json else _text(report))
    met = report["missed_share"] <= _MISSED_SHARE and report["overhead_ms"][0] <= _OVERHEAD_MS
    return 0 if met else 5


def _resources() -> dict[str, int]:
    """Resident memory in KiB, threads and open file descriptors of this process."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(line for line in lines if line.startswith("VmRSS"))
    return {
        "rss_kib": int(resident.split()[1]),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
    }


def _text(report: dict[str, Any]) -> str:
    return "\n".join(f"{key:<13} {value}" for key, value in report.items())


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=positive(float), default=30.0, help="how long (default 30)")
    parser.add_argument("--model", default="face_antispoof.pte", help="takes rgb, depth and ir")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
