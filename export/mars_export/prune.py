"""Fewer experts than were trained: the least used dropped, or the most similar merged, with the price in accuracy.

Axes: S subsets of modalities, N experts, K active experts.
Design decision: it is done to the training model, before quantization, so that both routers lose the same rows and
quantization-aware training can heal what is left. K stays: fewer experts save memory, not work.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_export.merging import Group, alike, merged
from mars_training.costs import costs
from mars_training.data.split import Source, Split
from mars_training.diagnostics import expert_usage, measure_routing
from mars_training.evaluate import mean_error, score_subsets
from mars_training.model.mars import RouteStage, TrainingMars
from mars_training.model.routers import CombinationBias, FeatureRouter
from mars_training.recipe import Recipe

How = Literal["drop", "merge"]
Rows = Literal["most used", "mean"]
"""What a router says of merged experts: as of the most used of them, or the mean weighted by use."""
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Which experts the deployed router chose.

    Attributes:
        subsets: labels of the evaluated subsets that have rows.
        rows: (S,) measured rows.
        counts: (S, N) rows that chose the expert; each subset's sum to K times its rows.
        shares: (N,) of all gates, every subset counting the same; they sum to 1.
    """

    subsets: tuple[str, ...]
    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    shares: NDArray[np.float64]

    def most_used(self, count: int) -> tuple[int, ...]:
        """The `count` experts of the largest shares, in rising order; of equal ones the first."""
        return tuple(sorted(np.argsort(-self.shares, kind="stable")[:count].tolist()))


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a number of experts costs and how it does on validation.

    Attributes:
        how: None as trained.
        groups: per expert that is left, the trained ones behind it, the most used first.
        rows: of the routers where experts were merged; None elsewhere.
        errors: by subset label, in 0..1.
        parameters: of the deployed model.
        macs: of one decision with all modalities.
    """

    how: How | None
    groups: tuple[Group, ...]
    rows: Rows | None
    errors: Mapping[str, float]
    mean_error: float
    parameters: int
    macs: int

    @property
    def experts(self) -> int:
        """How many are left."""
        return len(self.groups)

    @property
    def worst(self) -> str:
        """The subset of the largest error; the first of equal ones."""
        return max(self.errors, key=lambda subset: self.errors[subset])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "experts": self.experts,
            **dataclasses.asdict(self),
            "groups": [list(group) for group in self.groups],
            "errors": dict(self.errors),
            "worst": self.worst,
        }


def usage(model: TrainingMars, split: Split, *, always_present: Iterable[str] = ()) -> Usage:
    """How often the deployed path chooses each expert on the rows of `split`, subset by subset."""
    routing = measure_routing(model, split, always_present=always_present)
    assert routing is not None
    counts = np.array(routing.selected) * np.array(routing.rows)[:, None]
    return Usage(
        subsets=tuple(routing.subsets),
        rows=np.array(routing.rows, np.int64),
        counts=counts.round().astype(np.int64),
        shares=np.array(expert_usage(routing).gate),
    )


def drop(model: TrainingMars, keep: Sequence[int]) -> TrainingMars:
    """A copy with the experts `keep` alone, in that order: it answers as `model` with the others never chosen.

    Raises:
        UsageError: an expert that is not there or is named twice, fewer than K, or a model already quantized.
    """
    _check_experts(model, keep, fewest=model.deployed.active_experts)
    chosen = list(keep)
    return _rebuilt(model, [model.deployed.experts[i] for i in chosen], lambda rows: rows[chosen])


def merge(
    model: TrainingMars, groups: Sequence[Group], shares: Sequence[float], *, rows: Rows = "most used"
) -> TrainingMars:
    """A copy in which every group of experts is one: the mean of their weights by their shares of the usage.

    Args:
        groups: every expert of the model in exactly one of them; the first of a group lends its order of channels.
        shares: (N,) of all experts.
        rows: what both routers say of the merged expert.

    Raises:
        UsageError: the groups are not all experts once each, fewer than K, or the experts cannot be averaged.
    """
    deployed = model.deployed
    _check_experts(model, [i for group in groups for i in group], fewest=len(deployed.experts))
    _check_enough(len(groups), deployed.active_experts)
    experts = [merged([deployed.experts[i] for i in group], [shares[i] for i in group]) for group in groups]
    if rows == "most used":
        leaders = [max(group, key=lambda i: shares[i]) for group in groups]
        return _rebuilt(model, experts, lambda table: table[leaders])
    mixing = torch.from_numpy(_mixing(groups, shares))
    return _rebuilt(model, experts, lambda table: (mixing @ table.double().cpu().flatten(1)).view(-1, *table.shape[1:]))


def _mixing(groups: Sequence[Group], shares: Sequence[float]) -> NDArray[np.float64]:
    """(groups, N): each row the weights of a group's members, which sum to 1."""
    table = np.zeros((len(groups), len(shares)))
    for row, group in zip(table, groups, strict=True):
        own = np.array([shares[i] for i in group])
        row[list(group)] = own / own.sum() if own.sum() else 1.0 / len(group)
    return table


def _check_experts(model: TrainingMars, chosen: Sequence[int], *, fewest: int) -> None:
    experts = len(model.deployed.experts)
    if len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(experts)):
        raise UsageError(f"experts {list(chosen)} are not each one of 0 to {experts - 1}, once")
    _check_enough(len(chosen), fewest)


def _check_enough(left: int, fewest: int) -> None:
    if left < fewest:
        raise UsageError(f"{left} experts would be left; at least {fewest} are needed")


def _rebuilt(model: TrainingMars, experts: Sequence[nn.Module], rows: Callable[[Tensor], Tensor]) -> TrainingMars:
    """A copy with these experts; `rows` gives the routers' tables (new N, ...) from theirs (N, ...)."""
    layers = _router_layers(model)
    # The new experts stand in for the old ones while copying: a large model's old ones are not copied too.
    memo: dict[int, Any] = {id(model.deployed.experts): nn.ModuleList(copy.deepcopy(list(experts)))}
    smaller = copy.deepcopy(model, memo)
    for layer, old in zip(_router_layers(smaller), layers, strict=True):
        layer.weight = _parameter(rows(old.weight.detach()), old.weight)
        if old.bias is not None:
            layer.bias = _parameter(rows(old.bias.detach()[:, None])[:, 0], old.bias)
        setattr(layer, "out_channels" if isinstance(layer, nn.Conv2d) else "out_features", len(layer.weight))
    return smaller


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.device, like.dtype).clone(), requires_grad=like.requires_grad)


def _router_layers(model: TrainingMars) -> list[nn.Conv2d | nn.Linear]:
    """Every layer with an output per expert, of both routers."""
    stage = model.deployed.route_stage
    if not isinstance(stage, RouteStage) or not isinstance(stage.router, FeatureRouter):
        raise UsageError("this model is quantized: experts are dropped or merged before that")
    layers: list[nn.Conv2d | nn.Linear] = [stage.router.out]
    if isinstance(stage.combination, CombinationBias):
        layers.append(stage.combination.bias)
    if model.residual_router is not None:
        layers.append(model.residual_router.logits)
        layers += [] if model.residual_router.noise is None else [model.residual_router.noise]
    return layers


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where models are measured: a validation split, and what the recipe says of it."""

    validation: Split
    source: Source
    always_present: tuple[str, ...] = ()

    def errors(self, model: TrainingMars) -> tuple[dict[str, float], float]:
        """The error by subset label, and the mean."""
        scores = score_subsets(model.deployed, self.validation, self.source, always_present=self.always_present)
        return {score.subset: score.error for score in scores}, mean_error(scores)

    def price(
        self, model: TrainingMars, groups: Sequence[Group], how: How | None = None, rows: Rows | None = None
    ) -> Price:
        """What `model` costs, measured."""
        errors, mean = self.errors(model)
        cost = costs(model.deployed, self.source.modalities, self.source.task)
        return Price(
            how=how,
            groups=tuple(groups),
            rows=rows,
            errors=errors,
            mean_error=mean,
            parameters=cost.parameters,
            macs=cost.macs(self.source.names),
        )


def as_trained(model: TrainingMars, bench: Bench) -> Price:
    """The price of all experts."""
    return bench.price(model, [(i,) for i in range(len(model.deployed.experts))])


def fewer(model: TrainingMars, used: Usage, bench: Bench, *, experts: int, how: How) -> tuple[TrainingMars, Price]:
    """The model with `experts` experts, and its price.

    Dropping keeps the most used ones. Merging tries both kinds of router rows and keeps that of the lower
    validation error, the most used expert's when they are equal.
    """
    if how == "drop":
        keep = used.most_used(experts)
        smaller = drop(model, keep)
        return smaller, bench.price(smaller, [(i,) for i in keep], how)
    shares = used.shares.tolist()
    groups = alike(list(model.deployed.experts), shares, to=experts)
    tried = []
    for rows in get_args(Rows):
        smaller = merge(model, groups, shares, rows=rows)
        tried.append((smaller, bench.price(smaller, groups, how, rows)))
    return min(tried, key=lambda found: found[1].mean_error)


def prices(model: TrainingMars, bench: Bench, hows: Sequence[How] = get_args(How)) -> Iterator[Price]:
    """The price of all experts, then of every smaller number down to K, dropped and merged.

    With K experts left nothing is routed any more, and no recipe describes the model: a bound, not an offer.
    """
    yield as_trained(model, bench)
    used = usage(model, bench.validation, always_present=bench.always_present)
    for experts in range(len(model.deployed.experts) - 1, model.deployed.active_experts - 1, -1):
        for how in hows:
            yield fewer(model, used, bench, experts=experts, how=how)[1]


def pruned(
    model: TrainingMars, recipe: Recipe, validation: Split, source: Source, *, experts: int, how: How
) -> tuple[TrainingMars, Recipe, dict[str, Any]]:
    """A copy of `model` with fewer experts, the recipe that describes it, and a report in plain JSON types.

    The report holds the usage and, under "before" and "after", both prices on validation (`Price.to_dict`).

    Raises:
        UsageError: `experts` is not above K and below N, the model is quantized, or its experts cannot be merged.
    """
    _check_count(model, experts)
    bench = Bench(validation=validation, source=source, always_present=recipe.data.always_present)
    before = as_trained(model, bench)
    used = usage(model, validation, always_present=recipe.data.always_present)
    smaller, after = fewer(model, used, bench, experts=experts, how=how)
    changed = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, experts=experts))
    report = {
        "how": how,
        "split": "validation",
        "usage": {"shares": used.shares.tolist(), "counts": dict(zip(used.subsets, used.counts.tolist(), strict=True))},
        "before": before.to_dict(),
        "after": after.to_dict(),
    }
    return smaller, changed, report


def _check_count(model: TrainingMars, experts: int) -> None:
    trained, active = len(model.deployed.experts), model.deployed.active_experts
    if trained - 1 <= active:
        raise UsageError(f"none of {trained} experts can go: {active} of them run, and one more is needed to route")
    if not active < experts < trained:
        raise UsageError(
            f"experts is {experts}; this run has {trained} experts of which {active} run: "
            f"allowed are {active + 1} to {trained - 1}"
        )


def price_table(found: Sequence[Price]) -> str:
    """A line per price for people: error in percent, the change against the first line, parameters, bytes, MACs."""
    width = max(len(price.worst) for price in found)
    lines = [
        f"{'experts':>7}  {'how':<18}  {'mean %':>7}  {'change':>7}  {'worst %':>7}  {'of':<{width}}  "
        f"{'parameters':>11}  {'fp32 bytes':>11}  {'MACs':>13}"
    ]
    lines += [_price_line(price, found[0], width) for price in found]
    return "\n".join(lines)


def _price_line(price: Price, first: Price, width: int) -> str:
    how = "as trained" if price.how is None else price.how + (f", {price.rows}" if price.rows else "")
    return (
        f"{price.experts:7d}  {how:<18}  {100 * price.mean_error:7.2f}  "
        f"{100 * (price.mean_error - first.mean_error):+7.2f}  {100 * price.errors[price.worst]:7.2f}  "
        f"{price.worst:<{width}}  {price.parameters:11,d}  {_FLOAT_BYTES * price.parameters:11,d}  {price.macs:13,d}"
    )


def report_text(report: Mapping[str, Any]) -> str:
    """The report of `pruned` for people: the error of every subset before and after, in percent."""
    before, after = report["before"], report["after"]
    gone = f"{before['experts']} experts, {after['experts']} after {report['how']}"
    width = max(map(len, (*before["errors"], "subset")))
    lines = [f"{gone}; validation error in percent", f"{'subset':<{width}}  {'before':>7}  {'after':>7}  {'change':>7}"]
    rows = [*((name, error, after["errors"][name]) for name, error in before["errors"].items())]
    rows.append(("mean", before["mean_error"], after["mean_error"]))
    lines += [f"{name:<{width}}  {100 * a:7.2f}  {100 * b:7.2f}  {100 * (b - a):+7.2f}" for name, a, b in rows]
    return "\n".join(lines)
