"""What only a process of its own can say: how long from its start to ready, and how much memory it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from mars_runtime.engines import open_engine
from mars_runtime.profiling.child import Progress, in_child
from mars_runtime.profiling.inputs import Input
from mars_runtime.profiling.repeats import Opening
from mars_runtime.profiling.subject import Subject

REPEATS = 3
_MEMORY_RUNS = 200
_ROLLUP = Path("/proc/self/smaps_rollup")
_STATUS = Path("/proc/self/status")


def load_times(opening: Opening, inputs: Mapping[str, Input]) -> dict[str, Any]:
    """Times of starting anew, ms: medians of three processes each with the file in memory and without.

    "Cold" means that the kernel was asked to drop the artifact's pages (posix_fadvise, which it may ignore); the
    interpreter and the libraries are warm. None where this system has no such call.

    Raises:
        EngineError: the process failed.
    """
    model = Path(opening.model)
    warm = [_load_in_child(opening) for _ in range(REPEATS)]
    cold = [_load_in_child(opening) for _ in range(REPEATS) if _dropped(model)]
    first = [in_child(partial(_first, opening, inputs)) for _ in range(REPEATS)]
    return {
        "repeats": REPEATS,
        "process_to_ready_ms": median(run["ready_ms"] for run in warm),
        "model_warm_ms": median(run["open_ms"] for run in warm),
        "model_cold_ms": median(run["open_ms"] for run in cold) if cold else None,
        "first_inference_ms": median(run["first_ms"] for run in first),
        "second_inference_ms": median(run["second_ms"] for run in first),
    }


def memory_use(opening: Opening, inputs: Mapping[str, Input]) -> dict[str, Any]:
    """Resident and proportional set size in MB of a process before the model, with it, at its peak (PSS: end).

    Args:
        inputs: few, because the process holds them all.

    Raises:
        EngineError: the process failed.
    """
    found: dict[str, Any] = in_child(partial(_memory, opening, inputs))
    return found


def _load_in_child(opening: Opening) -> dict[str, float]:
    found: dict[str, float] = in_child(partial(_load, opening, time.monotonic()))
    return found


def _dropped(model: Path) -> bool:
    """Whether the file's pages could be given up; the digest is then read from the disk again."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(model, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return True


def sizes_mb() -> dict[str, float | None]:
    """RSS and PSS of this process in MB (10^6 bytes); None where the kernel does not say."""
    fields = _fields(_ROLLUP) or _fields(_STATUS)
    return {"rss_mb": _megabytes(fields, "Rss", "VmRSS"), "pss_mb": _megabytes(fields, "Pss")}


def _megabytes(fields: Mapping[str, int], *keys: str) -> float | None:
    found = next((fields[key] for key in keys if key in fields), None)
    return None if found is None else round(found * 1024 / 1e6, 3)


def _fields(path: Path) -> dict[str, int]:
    """Every "Key: N kB" of a file of procfs, in kB; empty where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines]
    return {w[0].rstrip(":"): int(w[1]) for w in words if len(w) == 3 and w[2] == "kB"}


def _load(opening: Opening, began_s: float, _: Progress) -> dict[str, float]:
    """With the self-test, which a stream makes too."""
    begin_s = time.monotonic()
    open_engine(opening.model, threads=opening.threads, engine=opening.engine)
    opened_s = time.monotonic()
    return {"ready_ms": 1000.0 * (opened_s - began_s), "open_ms": 1000.0 * (opened_s - begin_s)}


def _first(opening: Opening, inputs: Mapping[str, Input], _: Progress) -> dict[str, float]:
    """Without the self-test, which would be the first inference."""
    engine = open_engine(opening.model, threads=opening.threads, engine=opening.engine, self_test=False)
    subject = Subject(engine, inputs, engine.manifest.names)
    first, second = subject.decide(), subject.decide()
    return {"first_ms": first.total_ms, "second_ms": second.total_ms}


def _memory(opening: Opening, inputs: Mapping[str, Input], _: Progress) -> dict[str, Any]:
    baseline = sizes_mb()
    engine = open_engine(opening.model, threads=opening.threads, engine=opening.engine)
    loaded = sizes_mb()
    subject = Subject(engine, inputs, engine.manifest.names)
    for _decision in range(_MEMORY_RUNS):
        subject.decide()
    after = sizes_mb()
    for _decision in range(_MEMORY_RUNS):
        subject.decide()
    end = sizes_mb()
    peak = {**end, "rss_mb": _megabytes(_fields(_STATUS), "VmHWM")}
    grown = None if end["rss_mb"] is None or after["rss_mb"] is None else round(end["rss_mb"] - after["rss_mb"], 3)
    return {"baseline": baseline, "loaded": loaded, "peak": peak, "grown_mb": grown, "grown_over": _MEMORY_RUNS}
