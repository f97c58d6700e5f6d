"""Sound from one sampling rate to another, block by block, band-limited; the result does not depend on the blocks.

Polyphase FIR of a windowed sinc: output n is the signal at time n * down / up, filtered below the lower of the two
Nyquist rates. Source: Crochiere and Rabiner, Multirate Digital Signal Processing (1983), chapter 4; Kaiser's formula
for the window. The ratio is exact, so nothing drifts over days.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mars_edge.errors import UsageError

# Kaiser beta for 80 dB; the pass band ends at 91 % of the lower Nyquist rate, and aliases lie above what it hears.
_BETA = 7.857
_PASS_SHARE = 0.91
_ZERO_CROSSINGS = 32
# Phases times taps that are tabulated: 44100 -> 16000 needs 160, exotic pairs of rates many more.
_MOST_PHASES = 2000


class Resampler:
    """Turns blocks at `from_hz` into blocks at `to_hz`, both whole numbers of Hz; one signal, one instance.

    Raises:
        UsageError: the two rates have no ratio of small numbers.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        ratio = Fraction(to_hz, from_hz)
        self._up, self._down = ratio.numerator, ratio.denominator
        if self._up > _MOST_PHASES:
            raise UsageError(f"sound at {from_hz} Hz cannot be turned into {to_hz} Hz: {ratio} is no simple ratio")
        self._phases = _phases(self._up, self._down)
        taps = self._phases.shape[1]
        self._tail = np.zeros(taps - 1, np.float32)
        self._behind = 0
        self.delay_s = 0.5 * (taps - 1) / from_hz

    def push(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the signal up to the end of `block`, (T,), newly gives; float32, late by `delay_s`."""
        if self._up == self._down:
            return np.asarray(block, np.float32)
        signal = np.concatenate([self._tail, np.asarray(block, np.float32)])
        self._tail = signal[signal.size - self._tail.size :]
        # In units of 1 / up of an input sample, counted from the first sample of this block.
        count = max(0, -((self._behind - block.size * self._up) // self._down))
        at = self._behind + self._down * np.arange(count)
        self._behind += count * self._down - block.size * self._up
        if count == 0:
            return np.empty(0, np.float32)
        windows = sliding_window_view(signal, self._phases.shape[1])[at // self._up]
        converted: NDArray[np.float32] = np.einsum("nk,nk->n", windows, self._phases[at % self._up])
        return converted


def _phases(up: int, down: int) -> NDArray[np.float32]:
    """The filter of every phase, (up, taps): row p holds the weights of the taps, oldest first, p / up after the last.

    Each row adds up to 1, so that silence and a constant stay what they are in every phase.
    """
    half = _ZERO_CROSSINGS * max(1.0, down / up) / _PASS_SHARE
    taps = 2 * int(np.ceil(half)) + 1
    centre = (taps - 1) // 2
    offsets = np.arange(taps)[None, :] - centre - np.arange(up)[:, None] / up
    cutoff = min(1.0, up / down) * _PASS_SHARE
    window = np.i0(_BETA * np.sqrt(np.clip(1.0 - (offsets / (half + 1.0)) ** 2, 0.0, 1.0))) / np.i0(_BETA)
    weights = np.sinc(cutoff * offsets) * window
    weights /= weights.sum(axis=1, keepdims=True)
    filters: NDArray[np.float32] = weights.astype(np.float32)
    return filters
