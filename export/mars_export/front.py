"""Which N and K: the validation error of every candidate against what a decision costs, and those that none beats.

Axes: N experts, K active experts.
Design decision: N is changed by training, or by dropping and merging experts; K by a number in the manifest. A K that a
run was not trained with is a candidate like any other, and is marked as one. The choice is made on validation alone;
nothing here reads a test split. Candidates are compared over runs that differ in seed and fold only.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_edge.subsets import Subset
from mars_export.latency import Latency, Sample, time_in_turns
from mars_export.lowering import Model
from mars_export.pieces import float_pieces
from mars_export.prune import Bench, How, fewer, usage
from mars_training.checkpoint import RunInfo, load_info, load_model
from mars_training.costs import Costs, costs
from mars_training.data.load import load_split
from mars_training.data.split import Split
from mars_training.evaluate import rows_with
from mars_training.model.mars import TrainingMars
from mars_training.recipe import Recipe
from mars_training.statistics import Key, spread

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Runs of one recipe that differ in seed and fold alone.

    Attributes:
        tag: tells families of the same N and K apart; empty where there is one.
    """

    runs: tuple[tuple[Path, RunInfo], ...]
    tag: str = ""

    @property
    def info(self) -> RunInfo:
        """The first run's."""
        return self.runs[0][1]

    @property
    def trained(self) -> tuple[int, int]:
        """N and K of the recipe."""
        return self.info.recipe.model.experts, self.info.recipe.model.active_experts


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One N and K of one family.

    Attributes:
        trained: N and K that the runs were trained with.
        how: experts were dropped or merged after training; None where N is the trained one.
        errors: by (seed, fold), the mean validation error over subsets, in 0..1.
        subsets: by label, the validation error, the mean over runs.
        parameters: of the deployed model.
        macs: by label of the timed subsets.
        latency: by label of the timed subsets; empty where nothing was timed.
    """

    tag: str
    trained: tuple[int, int]
    experts: int
    active_experts: int
    how: How | None
    errors: Mapping[Key, float]
    subsets: Mapping[str, float]
    parameters: int
    macs: Mapping[str, int]
    latency: Mapping[str, Latency] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people, e.g. "N=4 K=2" or "N=8>5 K=2 drop"."""
        cut = "" if self.how is None else f"{self.trained[0]}>"
        return f"N={cut}{self.experts} K={self.active_experts}" + "".join(f" {w}" for w in (self.how, self.tag) if w)

    @property
    def as_trained(self) -> bool:
        """Whether N and K are those of the training."""
        return self.how is None and (self.experts, self.active_experts) == self.trained

    @property
    def mean_error(self) -> float:
        """The mean over runs."""
        return spread(self.errors).mean

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over seeds; None with fewer than two."""
        return spread(self.errors).deviation

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len({seed for seed, _ in self.errors})


@dataclass(frozen=True, kw_only=True)
class Front:
    """All candidates, and where they were measured.

    Attributes:
        full: label of the subset with all modalities.
        fewest: label of the costliest of the smallest evaluated subsets.
        engine: that was timed; empty where nothing was.
    """

    name: str
    note: str
    candidates: tuple[Candidate, ...]
    full: str
    fewest: str
    engine: str = ""

    @property
    def timed(self) -> bool:
        """Whether latencies were measured."""
        return bool(self.engine)

    def on_front(self, cost: str) -> list[bool]:
        """Per candidate, whether no other one beats it in error and `cost`, which is "latency" or "macs"."""
        return not_dominated([(c.mean_error, self.cost(c, cost)) for c in self.candidates])

    def cost(self, candidate: Candidate, cost: str) -> float:
        """Milliseconds or MACs of one decision with all modalities present; NaN where it was not measured."""
        if cost == "macs":
            return float(candidate.macs[self.full])
        return candidate.latency[self.full].median_ms if candidate.latency else math.nan

    def choice(self) -> Candidate:
        """The cheapest candidate whose error is within one standard error of the lowest; of equal ones the smallest.

        Cheapest in MACs, which no noise moves. With one seed there is no standard error: the lowest error then wins.
        Source: the one-standard-error rule, Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3.
        """
        best = min(self.candidates, key=lambda c: c.mean_error)
        bar = best.mean_error + (best.deviation or 0.0) / math.sqrt(best.seeds)
        within = [c for c in self.candidates if c.mean_error <= bar]
        return min(within, key=lambda c: (c.macs[self.full], c.parameters, c.mean_error))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        fronts = {cost: self.on_front(cost) for cost in ("latency", "macs")}
        return {
            "name": self.name,
            "note": self.note,
            "split": "validation",
            "engine": self.engine,
            "subsets": {"full": self.full, "fewest": self.fewest},
            "choice": self.choice().label,
            "candidates": [
                _as_dict(c) | {"on_front": {cost: marks[i] for cost, marks in fronts.items()}}
                for i, c in enumerate(self.candidates)
            ],
        }


def _as_dict(c: Candidate) -> dict[str, Any]:
    runs = [{"seed": seed, "fold": fold, "mean_error": error} for (seed, fold), error in c.errors.items()]
    return {
        "label": c.label,
        **dataclasses.asdict(c),
        "trained": {"experts": c.trained[0], "active_experts": c.trained[1]},
        "as_trained": c.as_trained,
        "mean_error": c.mean_error,
        "deviation": c.deviation,
        "errors": runs,
    }


def not_dominated(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Per point, whether none is lower somewhere and nowhere higher; one with a NaN is not, and beats none."""
    table: NDArray[np.float64] = np.array(points, dtype=np.float64)
    known: NDArray[np.bool_] = np.logical_not(np.isnan(table).any(axis=1))
    return [
        bool(known[i]) and not bool(((table <= point).all(axis=1) & (table < point).any(axis=1) & known).any())
        for i, point in enumerate(table)
    ]


def families(runs: Sequence[Path]) -> list[Family]:
    """The runs grouped by recipe, in the order given.

    Raises:
        UsageError: not a run of a model with experts, runs of different data, or a (seed, fold) twice in a family.
    """
    infos = [(run, load_info(run)) for run in runs]
    first = infos[0]
    for run, info in infos:
        if info.recipe.method not in ("mars", "moe"):
            raise UsageError(f"{run} was trained by {info.recipe.method!r}, which has no experts to count")
        if info.source != first[1].source or _data_of(info.recipe) != _data_of(first[1].recipe):
            raise UsageError(f"{run} was trained on other data than {first[0]}: their errors cannot be compared")
    groups: dict[str, list[tuple[Path, RunInfo]]] = {}
    for run, info in infos:
        key = json.dumps({**info.recipe.to_dict(), "data": None}, sort_keys=True)
        groups.setdefault(key, []).append((run, info))
    return _tagged([_family(group) for group in groups.values()])


def _data_of(recipe: Recipe) -> Any:
    return dataclasses.replace(recipe.data, fold=0)


def _family(group: Sequence[tuple[Path, RunInfo]]) -> Family:
    seen: dict[Key, Path] = {}
    for run, info in group:
        key = _key(info)
        if key in seen:
            raise UsageError(f"{run} and {seen[key]} are both seed {key[0]}, fold {key[1]} of one recipe; give one")
        seen[key] = run
    return Family(runs=tuple(group))


def _tagged(found: Sequence[Family]) -> list[Family]:
    """Families of one N and K get letters."""
    alike: dict[tuple[int, int], list[Family]] = {}
    for family in found:
        alike.setdefault(family.trained, []).append(family)
    return [
        dataclasses.replace(f, tag=chr(ord("a") + alike[f.trained].index(f)) if len(alike[f.trained]) > 1 else "")
        for f in found
    ]


def _key(info: RunInfo) -> Key:
    return info.seed, info.recipe.data.fold


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and how.

    Attributes:
        folder: the data set's, for readers that need one.
        hows: ways in which experts are taken away after training too; none by default.
        rounds: of timing; 0 times nothing.
        suffix: of the artifact that is timed.
    """

    folder: Path | None = None
    hows: tuple[How, ...] = ()
    rounds: int = 100
    suffix: str = ".pte"
    threads: int = 1


def measure(runs: Sequence[Path], plan: Plan, *, note: Note = lambda text: None) -> Front:
    """Every N and K of the runs on validation, with their costs.

    Raises:
        UsageError: as for `families`, a run that has no weights, or no row with all modalities to time.
    """
    found = families(runs)
    measured = [_measured(family, plan, note) for family in found]
    info = found[0].info
    full, fewest = _costed_subsets(measured[0], info)
    names = {subset: subsets.label(subset, info.source.names) for subset in (full, fewest)}
    engine, latencies = _latencies(found, measured, (full, fewest), plan, note) if plan.rounds else ("", {})
    return Front(
        name=info.recipe.name,
        note=info.source.note,
        candidates=tuple(
            _candidate(family, variant, k, names, {s: latencies[i, variant.experts, k, s] for s in names if engine})
            for i, (family, variants) in enumerate(zip(found, measured, strict=True))
            for variant in variants
            for k in variant.errors
        ),
        full=names[full],
        fewest=names[fewest],
        engine=engine,
    )


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """A family with one N, trained or cut to.

    Attributes:
        errors: by K and run, the error of every subset and their mean.
        model: of the first run, as it is lowered.
    """

    experts: int
    how: How | None
    costs: Costs
    model: Model
    errors: dict[int, dict[Key, tuple[dict[str, float], float]]]


def _measured(family: Family, plan: Plan, note: Note) -> list[_Variant]:
    found: dict[tuple[int, How | None], _Variant] = {}
    for run, info in family.runs:
        note(f"{run}: {family.trained[0]} experts, every K on validation")
        for experts, how, model, errors in _variants(run, info, plan):
            if (experts, how) not in found:
                source = info.source
                cost = costs(model.deployed, source.modalities, source.task)
                lowered = _lowerable(model, info, experts)
                found[experts, how] = _Variant(experts=experts, how=how, costs=cost, model=lowered, errors={})
            for k, scores in errors.items():
                found[experts, how].errors.setdefault(k, {})[_key(info)] = scores
    return list(found.values())


def _variants(
    run: Path, info: RunInfo, plan: Plan
) -> Iterator[tuple[int, How | None, TrainingMars, dict[int, tuple[dict[str, float], float]]]]:
    """N, how it came about, the model, and by K the errors; what experts are cut to keeps the K of the training."""
    model, _ = load_model(run)
    assert isinstance(model, TrainingMars)
    validation = load_split(info.recipe, "validation", folder=plan.folder)
    bench = Bench(validation=validation, source=info.source, always_present=info.recipe.data.always_present)
    trained, active = info.recipe.model.experts, info.recipe.model.active_experts
    yield trained, None, model, {k: _errors_with(model, bench, k) for k in range(1, trained)}
    used = usage(model, validation, always_present=bench.always_present)
    for experts in range(trained - 1, active, -1):
        for how in plan.hows:
            smaller, price = fewer(model, used, bench, experts=experts, how=how)
            yield experts, how, smaller, {active: (dict(price.errors), price.mean_error)}


def _errors_with(model: TrainingMars, bench: Bench, k: int) -> tuple[dict[str, float], float]:
    trained = model.deployed.active_experts
    model.deployed.active_experts = k
    try:
        return bench.errors(model)
    finally:
        model.deployed.active_experts = trained


def _lowerable(model: TrainingMars, info: RunInfo, experts: int) -> Model:
    recipe = dataclasses.replace(info.recipe, model=dataclasses.replace(info.recipe.model, experts=experts))
    changed = dataclasses.replace(info, recipe=recipe)
    return Model(deployed=float_pieces(model.deployed), precision="fp32", info=changed, provenance={})


def _costed_subsets(variants: Sequence[_Variant], info: RunInfo) -> tuple[Subset, Subset]:
    """All modalities, and of the smallest subsets that are evaluated the one of the most MACs."""
    every = subsets.evaluated_subsets(info.source.names, info.recipe.data.always_present)
    smallest = [subset for subset in every if len(subset) == len(every[0])]
    return every[-1], max(smallest, key=variants[0].costs.macs)


def _latencies(
    found: Sequence[Family], measured: Sequence[Sequence[_Variant]], wanted: Sequence[Subset], plan: Plan, note: Note
) -> tuple[str, dict[tuple[int, int, int, Subset], Latency]]:
    """The engine's name, and by family, N, K and subset the latency; how experts were cut makes no difference."""
    models: dict[tuple[int, int], tuple[Model, set[int]]] = {}
    for i, variants in enumerate(measured):
        for variant in variants:
            models.setdefault((i, variant.experts), (variant.model, set()))[1].update(variant.errors)
    note(f"timing {sum(len(ks) for _, ks in models.values())} candidates in turns, {plan.rounds} rounds")
    timings = time_in_turns(
        [(model, sorted(ks)) for model, ks in models.values()],
        _sample(found[0].info, plan),
        tuple(dict.fromkeys(wanted)),
        rounds=plan.rounds,
        suffix=plan.suffix,
        threads=plan.threads,
    )
    keys = list(models)
    return timings.engine, {(*keys[i], k, subset): taken for (i, k, subset), taken in timings.latencies.items()}


def _sample(info: RunInfo, plan: Plan) -> Sample:
    """The first validation row that has every modality."""
    validation: Split = load_split(info.recipe, "validation", folder=plan.folder)
    rows = rows_with(validation, info.source.names)
    if not len(rows):
        raise UsageError("no validation row has every modality: there is nothing to time a whole decision on")
    batch = validation.batch(rows[:1])
    return {name: x[0].contiguous().numpy() for name, x in batch.items()}


def _candidate(
    family: Family, variant: _Variant, k: int, names: Mapping[Subset, str], latencies: Mapping[Subset, Latency]
) -> Candidate:
    runs = variant.errors[k]
    labels = list(next(iter(runs.values()))[0])
    cost = dataclasses.replace(variant.costs, active_experts=k)
    return Candidate(
        tag=family.tag,
        trained=family.trained,
        experts=variant.experts,
        active_experts=k,
        how=variant.how,
        errors={key: mean for key, (_, mean) in runs.items()},
        subsets={label: float(np.mean([errors[label] for errors, _ in runs.values()])) for label in labels},
        parameters=cost.parameters,
        macs={name: cost.macs(subset) for subset, name in names.items()},
        latency={names[subset]: taken for subset, taken in latencies.items()},
    )
