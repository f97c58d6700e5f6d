"""Splits share no identity, are balanced at every prefix, and do not depend on how many workers render them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.rig.render import render_all
from mars_edge.rig.scene import ATTACKS, SPECIES, Scene, sample_scene

Split = Literal["train", "validation", "test"]

IDENTITIES: dict[str, range] = {
    "train": range(0, 600),
    "validation": range(600, 750),
    "test": range(750, 1000),
}
_CHUNK = 64


def draw_split(split: Split, n: int, *, seed: int) -> Iterator[Scene]:
    """Yield `n` simulated scenes, alternately bona fide and attack; the attacks take turns.

    Scene i depends on (split, seed, i) only, so a longer draw begins with the shorter one.

    Raises:
        UsageError: unknown split, or `n` or `seed` negative.
    """
    _check(split, n, seed)
    return (_scene(split, i, seed) for i in range(n))


def _check(split: str, n: int, seed: int) -> None:
    if split not in IDENTITIES:
        raise UsageError(f"unknown split {split!r}; choose one of {', '.join(get_args(Split))}")
    if n < 0 or seed < 0:
        raise UsageError(f"n={n} and seed={seed} must not be negative")


def _scene(split: str, i: int, seed: int) -> Scene:
    species = "bona_fide" if i % 2 == 0 else ATTACKS[(i // 2) % len(ATTACKS)]
    rng = np.random.default_rng([0x53504C54, tuple(IDENTITIES).index(split), seed, i])
    return sample_scene(rng, species, identities=IDENTITIES[split])


def render_split(split: Split, n: int, *, seed: int, workers: int = 2) -> dict[str, NDArray[Any]]:
    """Return the rendered scenes of `draw_split`, stacked; the result is the same for any number of workers.

    With more than one worker, processes are spawned: call it from an importable main module.

    Returns:
        "rgb" (n, 112, 112, 3) uint8, "depth" (n, 112, 112) uint16 mm, "ir" (n, 112, 112) uint8,
        "label" (n,) int64 with 1 = live and 0 = spoof, "species" (n,) int64 index into SPECIES.

    Raises:
        UsageError: unknown split, `n` below 1, a negative seed, or `workers` below 1.
    """
    _check(split, n, seed)
    if n < 1 or workers < 1:
        raise UsageError(f"n={n} and workers={workers} must be at least 1")
    # Imported here: the live demonstration needs no process pool and should not wait for one.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    jobs = [(split, seed, start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK)]
    workers = min(workers, len(jobs))
    if workers == 1:
        chunks = [_render_chunk(job) for job in jobs]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
            chunks = list(pool.map(_render_chunk, jobs))
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def _one_thread() -> None:
    # Each worker is one core's worth; OpenCV's own threads would only fight the other workers.
    cv2.setNumThreads(1)


def _render_chunk(job: tuple[str, int, int, int]) -> dict[str, NDArray[Any]]:
    split, seed, start, stop = job
    scenes = [_scene(split, i, seed) for i in range(start, stop)]
    frames = [render_all(scene) for scene in scenes]
    stacked = {modality: np.stack([frame[modality] for frame in frames]) for modality in frames[0]}
    stacked["label"] = np.array([int(scene.live) for scene in scenes], np.int64)
    stacked["species"] = np.array([SPECIES.index(scene.species) for scene in scenes], np.int64)
    return stacked
