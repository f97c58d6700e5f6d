"""What only a process of its own can say: how long from its start to ready, and how much memory it takes.

`python -m mars_runtime.profiling.probe load|memory OPTIONS` is the child; it prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mars_edge.errors import EngineError
from mars_edge.manifest import Manifest
from mars_runtime.engines import open_engine
from mars_runtime.profiling.inputs import Input, single
from mars_runtime.profiling.subject import Subject

REPEATS = 3
_MEMORY_RUNS = 200
_TIMEOUT_S = 300.0
_ROLLUP = Path("/proc/self/smaps_rollup")
_STATUS = Path("/proc/self/status")

# As given to `profile`: --model, --threads, --engine; and --samples, a file of `save_samples`.
Options = Sequence[str]


def save_samples(inputs: Mapping[str, Input], path: Path) -> None:
    """One sample of each modality, for the children: making samples takes more memory than deciding on them."""
    np.savez(path, **{name: np.asarray(given.frames[0].data) for name, given in inputs.items()})  # type: ignore[arg-type]


def _samples(manifest: Manifest, path: str) -> dict[str, Input]:
    with np.load(path) as kept:
        raw = {name: kept[name] for name in manifest.names}
    texts = {m.name for m in manifest.modalities if m.kind == "text"}
    return {
        name: single(manifest.modality(name), str(sample) if name in texts else sample) for name, sample in raw.items()
    }


def load_times(options: Options, model: Path) -> dict[str, Any]:
    """Times of starting anew, ms: medians of three processes each with the file in memory and without.

    "Cold" means that the kernel was asked to drop the artifact's pages (posix_fadvise, which it may ignore); the
    interpreter and the libraries are warm. None where this system has no such call.

    Raises:
        EngineError: the process failed.
    """
    warm = [_child("load", options) for _ in range(REPEATS)]
    cold = [_child("load", options) for _ in range(REPEATS) if _dropped(model)]
    first = [_child("first", options) for _ in range(REPEATS)]
    return {
        "repeats": REPEATS,
        "process_to_ready_ms": median(run["ready_ms"] for run in warm),
        "model_warm_ms": median(run["open_ms"] for run in warm),
        "model_cold_ms": median(run["open_ms"] for run in cold) if cold else None,
        "first_inference_ms": median(run["first_ms"] for run in first),
        "second_inference_ms": median(run["second_ms"] for run in first),
    }


def memory_use(options: Options) -> dict[str, Any]:
    """Resident and proportional set size in MB of a process before the model, with it, at its peak (PSS: end).

    Raises:
        EngineError: the process failed.
    """
    return _child("memory", options)


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


def _child(what: str, options: Options) -> dict[str, Any]:
    begin_s = time.monotonic()
    command = [sys.executable, "-m", "mars_runtime.profiling.probe", what, "--began", repr(begin_s), *options]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"profile: a process of its own did not end within {_TIMEOUT_S:g} s") from error
    if result.returncode != 0:
        said = result.stderr.strip().splitlines()
        raise EngineError(f"profile: a process of its own failed: {said[-1] if said else result.returncode}")
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


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


def main(argv: Sequence[str]) -> int:
    """The child."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("load", "first", "memory"))
    parser.add_argument("--began", type=float, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--engine")
    parser.add_argument("--samples", required=True)
    options = parser.parse_args(argv)
    print(json.dumps({"load": _load, "first": _first, "memory": _memory}[options.what](options)))
    return 0


def _load(options: argparse.Namespace) -> dict[str, float]:
    """With the self-test, which a stream makes too."""
    begin_s = time.monotonic()
    open_engine(options.model, threads=options.threads, engine=options.engine)
    opened_s = time.monotonic()
    return {"ready_ms": 1000.0 * (opened_s - options.began), "open_ms": 1000.0 * (opened_s - begin_s)}


def _first(options: argparse.Namespace) -> dict[str, float]:
    """Without the self-test, which would be the first inference."""
    engine = open_engine(options.model, threads=options.threads, engine=options.engine, self_test=False)
    subject = Subject(engine, _samples(engine.manifest, options.samples), engine.manifest.names)
    first, second = subject.decide(), subject.decide()
    return {"first_ms": first.total_ms, "second_ms": second.total_ms}


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    baseline = sizes_mb()
    engine = open_engine(options.model, threads=options.threads, engine=options.engine)
    loaded = sizes_mb()
    subject = Subject(engine, _samples(engine.manifest, options.samples), engine.manifest.names)
    for _ in range(_MEMORY_RUNS):
        subject.decide()
    after = sizes_mb()
    for _ in range(_MEMORY_RUNS):
        subject.decide()
    end = sizes_mb()
    peak = {**end, "rss_mb": _megabytes(_fields(_STATUS), "VmHWM")}
    grown = None if end["rss_mb"] is None or after["rss_mb"] is None else round(end["rss_mb"] - after["rss_mb"], 3)
    return {"baseline": baseline, "loaded": loaded, "peak": peak, "grown_mb": grown, "grown_over": _MEMORY_RUNS}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
