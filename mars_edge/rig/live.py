"""The live rig is a play: subjects take the stage in a seeded order, and every frame is a function of time."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.rig.dataset import IDENTITIES
from mars_edge.rig.render import render
from mars_edge.rig.scene import ATTACKS, Pose, Scene, sample_scene
from mars_edge.rig.species import surface_of

STAGE_S = 3.0
BLINK_S = 0.15


class Rig:
    """Simulated cameras before which bona fide faces and attacks take turns; frames are functions of time.

    Every method is thread-safe and deterministic: there is no state but caches. People come from the test identities,
    which no bundled model was trained on.

    Args:
        seed: order and looks of the subjects, and all noise.
        rate_hz: how often the three cameras expose; a frame belongs to the exposure that began last before its time.

    Raises:
        UsageError: a negative seed or a rate that is not above 0.
    """

    def __init__(self, *, seed: int = 0, rate_hz: float = 15.0) -> None:
        if seed < 0:
            raise UsageError(f"seed={seed} must not be negative")
        if not rate_hz > 0:
            raise UsageError(f"rate_hz={rate_hz} must be above 0")
        self.seed = seed
        self.rate_hz = rate_hz
        self._building = threading.Lock()

    def species_at(self, t_s: float) -> str:
        """Return the species on stage at `t_s` seconds since the start; raises UsageError for negative times."""
        return self.scene_at(t_s).species

    def scene_at(self, t_s: float) -> Scene:
        """Return the scene of the last exposure not after `t_s`; raises UsageError for negative times."""
        if not t_s >= 0:
            raise UsageError(f"t_s={t_s} must be at least 0")
        # The nudge keeps t = i / rate on exposure i in spite of rounding.
        exposure = int(t_s * self.rate_hz + 1e-6)
        now_s = exposure / self.rate_hz
        turn = int(now_s / STAGE_S + 1e-9)
        base, motion = _subject(self.seed, turn)
        return replace(
            base,
            pose=_moved(base.pose, motion, now_s),
            eyes_closed=base.species != "silicone_mask" and _blinks(motion, now_s),
            seed=(self.seed * 1_000_003 + exposure) % (1 << 63),
        )

    def frame(self, modality: str, t_s: float) -> NDArray[Any]:
        """Return the simulated raw frame of `modality` at `t_s` seconds, as `render` shapes it.

        Raises:
            UsageError: unknown modality or negative time.
        """
        scene = self.scene_at(t_s)
        # When a new subject comes on, one thread builds it and the other sensors wait instead of building it too.
        with self._building:
            surface_of(scene)
        return render(scene, modality)


@lru_cache(maxsize=64)
def _subject(seed: int, turn: int) -> tuple[Scene, tuple[float, ...]]:
    """Return who takes turn number `turn`, and the phases of their motion."""
    # Blocks of ten turns hold five bona fide and each attack once, shuffled: no long run of one kind.
    block = ["bona_fide"] * len(ATTACKS) + list(ATTACKS)
    order = np.random.default_rng([0x5354, seed, turn // len(block)]).permutation(len(block))
    rng = np.random.default_rng([0x5355, seed, turn])
    scene = sample_scene(rng, block[order[turn % len(block)]], identities=IDENTITIES["test"])
    return scene, tuple(float(p) for p in rng.uniform(0.0, 2 * np.pi, 8))


def _moved(pose: Pose, phase: tuple[float, ...], t_s: float) -> Pose:
    def sway(i: int, amplitude: float, rate_hz: float) -> float:
        return float(amplitude * np.sin(2 * np.pi * rate_hz * t_s + phase[i]))

    return Pose(
        yaw_deg=pose.yaw_deg + sway(0, 4.0, 0.23) + sway(1, 1.0, 0.71),
        pitch_deg=pose.pitch_deg + sway(2, 2.5, 0.19),
        roll_deg=pose.roll_deg + sway(3, 1.5, 0.13),
        x_mm=pose.x_mm + sway(4, 5.0, 0.17),
        y_mm=pose.y_mm + sway(5, 4.0, 0.21) + sway(6, 1.0, 0.25),
        distance_mm=pose.distance_mm + sway(6, 3.0, 0.25) + sway(7, 8.0, 0.11),
    )


def _blinks(phase: tuple[float, ...], t_s: float) -> bool:
    period_s = 2.2 + phase[0] / 3.0
    return (t_s + phase[1]) % period_s < BLINK_S
