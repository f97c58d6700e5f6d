"""A recorded play of the simulated rig: small enough to load once, long enough to see every kind of subject."""

from __future__ import annotations

import json
import struct

import numpy as np

from mars_edge import rig
from mars_edge.rig.live import STAGE_S

# A block of the live rig: five bona fide subjects, and each attack once.
TURNS = 10
# Of each turn so many exposures are kept; the page shows them forwards and backwards until the turn is over.
FRAMES_PER_TURN = 6


def recorded_play(*, seed: int = 0, rate_hz: float = 15.0) -> bytes:
    """Four bytes (little-endian) length of a JSON header, the header, then every frame of each sensor in turn.

    The header holds `rate_hz`, `seed`, `turn_s`, `frames_per_turn`, `species` of each turn and `sensors`: name, dtype
    and shape of a frame; values are little-endian.
    """
    live = rig.Rig(seed=seed, rate_hz=rate_hz)
    times = [turn * STAGE_S + index / rate_hz for turn in range(TURNS) for index in range(FRAMES_PER_TURN)]
    frames = {name: [live.frame(name, t_s) for t_s in times] for name in rig.MODALITIES}
    header = {
        "rate_hz": rate_hz,
        "seed": seed,
        "turn_s": STAGE_S,
        "frames_per_turn": FRAMES_PER_TURN,
        "species": [live.species_at(turn * STAGE_S) for turn in range(TURNS)],
        "sensors": [
            {"name": name, "dtype": shown[0].dtype.name, "shape": list(shown[0].shape)}
            for name, shown in frames.items()
        ],
    }
    text = json.dumps(header).encode()
    values = b"".join(
        np.ascontiguousarray(f).astype(f.dtype.newbyteorder("<")).tobytes() for s in frames.values() for f in s
    )
    return struct.pack("<I", len(text)) + text + values
