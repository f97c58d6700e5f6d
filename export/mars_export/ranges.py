"""Activation ranges: what a fake quantizer has met, over a step, becomes the range it rounds in.

Design decision: not the quantizers' own moving average. Operations that keep a range (concatenation, pooling) share a
quantizer, which is then called several times in a step; an average over calls would cut the widest of them off, a range
over the step holds all. Values met in evaluation mode do not count: neither validation nor a stand-in for a row
that lacks a modality moves a range.
Source: Krishnamoorthi, arXiv 1806.08342, section 3.1.1 (moving averages of extremes).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mars_export.pieces import Piece


def activation_quantizers(traced: nn.Module) -> list[Any]:
    """The quantizers of a prepared piece that learn an activation's range; a converted piece has none."""
    return [m for m in traced.modules() if type(m).__name__ == "FusedMovingAvgObsFakeQuantize"]


class Ranges:
    """The ranges of all activations of the prepared pieces in a model, learned while `watched`."""

    def __init__(self, model: nn.Module) -> None:
        pieces = [module for module in model.modules() if isinstance(module, Piece)]
        self._quantizers = [(piece, q) for piece in pieces for q in activation_quantizers(piece.traced)]
        self._met: dict[int, tuple[Tensor, Tensor]] = {}
        self.frozen = False

    @contextmanager
    def watched(self) -> Generator[None]:
        """Within it, the values of every training pass are met; the quantizers' own observers are off from here on."""
        for _, quantizer in self._quantizers:
            quantizer.disable_observer()
        hooks = [q.register_forward_pre_hook(self._hook(piece)) for piece, q in self._quantizers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, piece: Piece) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def meet(quantizer: Any, values: tuple[Tensor, ...]) -> None:
            if self.frozen or not piece.training:
                return
            low, high = values[0].detach().aminmax()
            if id(quantizer) in self._met:
                before = self._met[id(quantizer)]
                low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
            self._met[id(quantizer)] = (low, high)

        return meet

    @torch.no_grad()
    def learn(self, share: float) -> None:
        """Move every range by `share` of the way to the extremes met since the last call, or there if it has none."""
        for _, quantizer in self._quantizers:
            if id(quantizer) not in self._met:
                continue
            observer, (low, high) = quantizer.activation_post_process, self._met[id(quantizer)]
            fresh = bool(observer.min_val > observer.max_val)
            # A range that is not there yet is infinite: no share of it is a number.
            observer.min_val.copy_(low if fresh else observer.min_val.lerp(low, share))
            observer.max_val.copy_(high if fresh else observer.max_val.lerp(high, share))
            scale, zero_point = quantizer.calculate_qparams()
            quantizer.scale.copy_(scale)
            quantizer.zero_point.copy_(zero_point)
        self._met.clear()

    def round(self, on: bool) -> None:
        """Whether quantizers of activations round what they meet."""
        for _, quantizer in self._quantizers:
            quantizer.enable_fake_quant(on)
