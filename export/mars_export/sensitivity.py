"""Which layers int8 hurts: what each layer's own quantizers alone do to the float model's answers.

Axes: B rows, classes, H height, W width.
Design decision: a layer is measured alone, in a model that is float everywhere else. Then no layer hides behind
another, and no effect is below zero, as it may be when one layer is taken out of a model that is wrong in all the
others. A layer's own quantizers are those that naming it in `export.float_layers` takes away: of its weights, and of
values that no int8 layer reads or writes. The values between two int8 layers belong to neither; they are one line of
their own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_export.fake_quantize import (
    Edge,
    by_method,
    fake_quantized,
    freeze_observers,
    layer_weights,
    make_traceable,
    quantized_edges,
    recurrent_layers,
    summed_layers,
    traced_graph,
)
from mars_export.hush import hushed
from mars_export.pieces import Piece, example_inputs, pieces_of, replace_piece
from mars_export.quantize import observe
from mars_training.data.split import Data, Source, Split
from mars_training.evaluate import Evaluation, evaluate, mean_error
from mars_training.model.mars import DeployedMars, TrainingMars
from mars_training.recipe import Recipe

# Of each row's map so many pixels are compared; features of float encoders are kept up to so many numbers.
_MOST_PIXELS = 1024
_MOST_KEPT = 2**26


@dataclass(frozen=True, kw_only=True)
class LayerEffect:
    """What one layer's quantizers do, alone.

    Attributes:
        name: METHOD/MODULE.PATH, as `export.float_layers` takes it.
        kl: mean divergence of the class probabilities from the float model's, in nats, over rows (pixels) and subsets.
        error: mean validation error over subsets.
        weights: how many would stay float32.
    """

    name: str
    kl: float
    error: float
    weights: int


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Every layer's effect, worst first.

    Attributes:
        between_kl: of the quantizers that no single layer's name takes away: values between int8 layers.
        int8_kl: of all quantizers together, by post-training quantization.
        rows: validation rows that were measured.
    """

    layers: tuple[LayerEffect, ...]
    between_kl: float
    int8_kl: float
    int8_error: float
    float_error: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self) | {"layers": [dataclasses.asdict(layer) for layer in self.layers]}

    def text(self) -> str:
        """A table for people, worst layer first."""
        width = max(map(len, ["between int8 layers", *(layer.name for layer in self.layers)]))
        lines = [f"{'quantized alone':<{width}}  {'KL, 1e-6 nats':>13}  {'error %':>7}  {'weights':>10}"]
        lines += [_line(e.name, e.kl, e.error, f"{e.weights:,}", width) for e in self.layers]
        lines += [
            _line("between int8 layers", self.between_kl, None, "", width),
            _line("all (int8)", self.int8_kl, self.int8_error, "", width),
            _line("none (float)", 0.0, self.float_error, "", width),
        ]
        return "\n".join(line.rstrip() for line in lines)


def _line(name: str, kl: float, error: float | None, weights: str, width: int) -> str:
    shown = f"{'-':>7}" if error is None else f"{100 * error:7.2f}"
    return f"{name:<{width}}  {1e6 * kl:13.1f}  {shown}  {weights:>10}"


def recommended(
    report: Sensitivity, *, half: float = 0.5, least: float = 0.05, most_weights: float = 0.05
) -> tuple[str, ...]:
    """The layers to leave in float32, worst first; empty if none stands out.

    The rule: layers are taken, worst first, until together they hold the share `half` of the sum of all effects. One
    that holds less than `least` of it ends the list, and one that would bring the weights that stay float32 above the
    share `most_weights` of all weights is passed over: a file grows by at most three times that share.
    """
    total = report.between_kl + sum(layer.kl for layer in report.layers)
    budget = most_weights * sum(layer.weights for layer in report.layers)
    chosen: list[LayerEffect] = []
    for layer in report.layers:
        taken = sum(c.kl for c in chosen)
        if taken >= half * total or layer.kl < least * total:
            break
        if sum(c.weights for c in chosen) + layer.weights <= budget:
            chosen.append(layer)
    return tuple(layer.name for layer in chosen)


def measure(model: TrainingMars, data: Data, recipe: Recipe, *, seed: int, samples: int = 256) -> Sensitivity:
    """The effect of every layer that int8 would compute, by post-training quantization; `model` is not changed.

    On `samples` validation rows, drawn by `seed`, over every subset that they allow; layers that the recipe leaves
    float32 are not among them.

    Raises:
        UsageError: a batch norm cannot be folded, or the recipe names an unknown float layer.
    """
    deployed = copy.deepcopy(model).deployed
    shapes = {m.name: m.shape for m in data.source.modalities}
    owned, weights = _prepare(deployed, shapes, recipe)
    torch.manual_seed(seed)
    observe(deployed, data.train, recipe)
    freeze_observers(deployed)
    rows = torch.randperm(len(data.validation))[:samples].sort().values
    meter = _Meter(deployed, data.validation.take(rows), data.source, recipe.data.always_present)
    everything = [q for quantizers in owned.values() for q in quantizers]
    # Scored first: its answers are what the others are compared with.
    _, float_error = meter.score(())
    effects = [_effect(name, owned[name], weights[name], meter) for name in weights]
    between_kl, _ = meter.score(owned[""])
    int8_kl, int8_error = meter.score(everything)
    return Sensitivity(
        layers=tuple(sorted(effects, key=lambda e: (-e.kl, e.name))),
        between_kl=between_kl,
        int8_kl=int8_kl,
        int8_error=int8_error,
        float_error=float_error,
        rows=len(rows),
    )


def _effect(name: str, quantizers: Sequence[Any], weights: int, meter: _Meter) -> LayerEffect:
    kl, error = meter.score(quantizers)
    return LayerEffect(name=name, kl=kl, error=error, weights=weights)


def _prepare(
    deployed: DeployedMars, shapes: Mapping[str, tuple[int, ...]], recipe: Recipe
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Fake-quantizes every piece in place; the quantizers by the layer that alone needs them, "" for none; weights."""
    make_traceable(deployed)
    examples = example_inputs(deployed, shapes, batch=2)
    pieces = pieces_of(deployed)
    already = by_method(recipe.export.float_layers, pieces)
    owned: dict[str, list[Any]] = {"": []}
    weights: dict[str, int] = {}
    for method, module in pieces.items():
        kept_float = (*already[method], *recurrent_layers(module), *summed_layers(module))
        graph = traced_graph(module, examples[method])
        every = quantized_edges(graph, kept_float)
        sizes = layer_weights(graph)
        gone = {path: every - quantized_edges(graph, (*kept_float, path)) for path in sizes}
        prepared = fake_quantized(graph, kept_float)
        assert isinstance(prepared, torch.fx.GraphModule)
        replace_piece(deployed, method, Piece(prepared))
        weights |= {f"{method}/{path}": sizes[path] for path, edges in gone.items() if edges}
        for path, quantizer in _owners(prepared, gone):
            owned.setdefault(f"{method}/{path}" if path else "", []).append(quantizer)
    return owned, weights


def _owners(prepared: torch.fx.GraphModule, gone: Mapping[str, set[Edge]]) -> Iterator[tuple[str, Any]]:
    """Every quantizer of a prepared graph, with the path of the layer that alone needs it, or ""."""
    edges: dict[str, set[Edge]] = {}
    for node in prepared.graph.nodes:
        if _is_quantizer(node):
            edges.setdefault(node.target, set()).update((_source(node), reader) for reader in _readers(node))
    for target, served in edges.items():
        owner = next((path for path, lost in gone.items() if served <= lost), "")
        yield owner, prepared.get_submodule(target)


def _is_quantizer(node: torch.fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith("activation_post_process")


def _source(node: torch.fx.Node) -> str:
    given = node.args[0]
    assert isinstance(given, torch.fx.Node)
    return _source(given) if _is_quantizer(given) else given.name


def _readers(node: torch.fx.Node) -> Iterator[str]:
    for user in node.users:
        if _is_quantizer(user):
            yield from _readers(user)
        else:
            yield "" if user.op == "output" else user.name


class _Meter:
    """Scores a prepared model with some of its quantizers on, against its answers with all of them off.

    It is itself what is evaluated, a `Deployable`: so the rows, subsets and metric are those of every evaluation.
    """

    def __init__(self, deployed: DeployedMars, split: Split, source: Source, always_present: Iterable[str]) -> None:
        self.deployed = deployed
        self._split, self._source, self._always = split, source, tuple(always_present)
        self._reference: list[Tensor] = []
        self._features: dict[tuple[int, str], Tensor] = {}
        self._kept = 0
        self._changed: set[str] = set()
        self._batch = self._answer = 0
        self._sums: list[Tensor] = []
        self._count = 0

    @property
    def encoders(self) -> nn.ModuleDict:
        """By modality name."""
        return self.deployed.encoders

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in fusion order."""
        return self.deployed.modalities

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the prepared model."""
        return self.deployed.parameters()

    def eval(self) -> object:
        """Evaluation mode: ranges stay."""
        return self.deployed.eval()

    def score(self, quantizers: Iterable[Any]) -> tuple[float, float]:
        """(mean KL, mean error over subsets) with only `quantizers` on; the first call is the reference, with none."""
        self._switch(quantizers)
        self._batch = self._answer = self._count = 0
        self._sums = []
        with hushed():
            found: Evaluation = evaluate(self, self._split, self._source, always_present=self._always)
        kl = float(torch.stack(self._sums).sum()) / self._count if self._sums else 0.0
        # Rounding can bring the divergence of equal answers just below zero.
        return max(kl, 0.0), mean_error(found.scores)

    def _switch(self, quantizers: Iterable[Any]) -> None:
        wanted = {id(q) for q in quantizers}
        self._changed = set()
        for name in self.modalities:
            if any(id(m) in wanted for m in self.encoders[name].modules()):
                self._changed.add(name)
        for module in self.deployed.modules():
            enable: Any = getattr(module, "enable_fake_quant", None)
            if enable is not None:
                enable(id(module) in wanted)

    def encode_all(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Every modality's feature; that of an encoder without a quantizer on is computed once."""
        features = [self._encode(name, inputs[name]) for name in self.modalities]
        self._batch += 1
        return features

    def _encode(self, name: str, x: Tensor) -> Tensor:
        key = (self._batch, name)
        if name not in self._changed and key in self._features:
            return self._features[key]
        feature = self.deployed.encode(name, x)
        if name not in self._changed and self._kept + feature.numel() <= _MOST_KEPT:
            self._features[key] = feature
            self._kept += feature.numel()
        return feature

    def classify(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """Class logits, compared on the way with those of the same call of the first scoring."""
        logits = self.deployed.classify(features, present)
        self._compare(_thinned(logits).log_softmax(dim=1))
        return logits

    def _compare(self, answer: Tensor) -> None:
        if len(self._reference) == self._answer:
            self._reference.append(answer)
        expected = self._reference[self._answer]
        self._sums.append(functional.kl_div(answer, expected, reduction="sum", log_target=True).double())
        self._count += answer[:, 0].numel()
        self._answer += 1


def _thinned(logits: Tensor) -> Tensor:
    """Class logits (B, classes), or (B, classes, some pixels of the map)."""
    if logits.dim() == 2:
        return logits
    flat = logits.flatten(2)
    return flat[..., :: max(1, -(-flat.shape[2] // _MOST_PIXELS))]
