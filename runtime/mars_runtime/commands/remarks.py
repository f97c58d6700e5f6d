"""What the commands that run sensors say on stderr beside their results."""

from __future__ import annotations

import argparse

from mars_edge.options import say
from mars_runtime.stream import Stream


def announce(options: argparse.Namespace, stream: Stream) -> None:
    """Say which sensors are simulated, in one line."""
    simulated = [name for name, traits in stream.traits.items() if traits.simulated]
    if simulated:
        say(
            f"{', '.join(simulated)} from the simulated rig (seed {options.seed}), not from real sensors;"
            " name your own with --sensor NAME=SOURCE",
            options,
        )


def complain(stream: Stream, said: dict[str, str], options: argparse.Namespace) -> None:
    """Say why a sensor fails, in its driver's words, when it fails in another way than `said` holds, which grows."""
    for name, error in stream.errors().items():
        if said.get(name) != error:
            said[name] = error
            say(f"{name}: {error}", options)
