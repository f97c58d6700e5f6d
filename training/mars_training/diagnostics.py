"""What a finished run says about its training: where samples were routed, and how every number moved.

Routing is read on validation through the deployed router; only the agreement of the two routers needs the
privileged one. The numbers of a run are kept in RUN/diagnostics.json.

Axes: B batch, S subsets, N experts, K active experts, E epochs, C incomplete combinations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_training import losses
from mars_training.checkpoint import load_info, load_metrics, write_json
from mars_training.data.split import Split
from mars_training.evaluate import LOWER_IS_BETTER, batch_size_for, device_of, rows_with
from mars_training.methods import deployed_of
from mars_training.model.mars import DeployedMars, TrainingMars

NO_ORDER = math.log(2.0)
"""The noise-order loss of a router whose noise ignores where the routers disagree."""
PAPER_PLATEAUS = {"noise": 0.72, "balance": 0.039, "imitate": 0.043}
"""Where the loss terms of the paper's CASIA-SURF run come to rest: for orientation, other data differ."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Where the deployed router sends validation rows.

    Attributes:
        active: K.
        subsets: S labels; a subset that no row has is left out.
        rows: validation rows behind each subset (S,).
        mean_gate: (S, N) mean gate; every row sums to 1.
        selected: (S, N) share of rows that choose the expert; every row sums to K.
    """

    active: int
    subsets: list[str]
    rows: list[int]
    mean_gate: list[list[float]]
    selected: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class ExpertUsage:
    """How evenly experts are used, every subset counting the same.

    Attributes:
        gate: (N,) share of all gates; sums to 1.
        load: (N,) share of all selections; sums to 1.
        effective_by_gate: exp of the entropy of `gate`: 1 when one expert does all, N when all do the same.
        effective_by_load: the same of `load`.
        idle: experts that no validation row selected.
    """

    gate: list[float]
    load: list[float]
    effective_by_gate: float
    effective_by_load: float
    idle: list[int]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the deployed router picks the experts that the residual router picks.

    Attributes:
        by_combination: mean share of the K experts that both name, by incomplete combination.
        chance: what two unrelated routers would reach: K / N.
    """

    by_combination: dict[str, float]
    chance: float


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How often each incomplete combination was to be drawn.

    Attributes:
        combinations: C labels.
        discrepancy: (E, C) 1 - router agreement in that epoch.
        probability: (E, C) of being drawn in the epoch after it.
    """

    combinations: list[str]
    discrepancy: list[list[float]]
    probability: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Validation error by epoch, of the epochs that were validated; counted from 1.

    Attributes:
        epochs: which.
        subsets: error in 0..1 by subset; None where it was not measured.
        mean: over subsets.
    """

    epochs: list[int]
    subsets: dict[str, list[float | None]]
    mean: list[float]


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """The numbers of one run; what a method does not have is None or empty.

    Attributes:
        terms: every loss term, one value per epoch.
        plateaus: by routing loss: its last value, and where the paper's run rests; for "noise" also `no_order`.
        selected: epoch, rate, terms and scores of the epoch that was selected, as in metrics.json.
        last: the same of the last one.
    """

    name: str
    method: str
    seed: int
    note: str
    epochs: int
    routing: Routing | None
    usage: ExpertUsage | None
    agreement: Agreement | None
    sampling: Sampling | None
    terms: dict[str, list[float]]
    plateaus: dict[str, dict[str, float]]
    curves: Curves
    selected: Mapping[str, Any]
    last: Mapping[str, Any]


def diagnose(run: Path, model: nn.Module, validation: Split) -> Diagnostics:
    """The numbers of a run directory and of its trained `model`, privileged part included.

    Raises:
        UsageError: not a run directory, or one that has not finished an epoch.
    """
    info, metrics = load_info(run), load_metrics(run)
    if not metrics:
        raise UsageError(f"{run} has no metrics.json: training has not finished an epoch")
    history: list[Mapping[str, Any]] = metrics["history"]
    always = info.recipe.data.always_present
    routing = measure_routing(model, validation, always_present=always)
    terms = loss_terms(history)
    return Diagnostics(
        name=info.recipe.name,
        method=info.recipe.method,
        seed=info.seed,
        note=info.source.note,
        epochs=len(history),
        routing=routing,
        usage=None if routing is None else expert_usage(routing),
        agreement=measure_agreement(model, validation, always_present=always),
        sampling=sampling_history(history),
        terms=terms,
        plateaus=plateaus(terms) if routing is not None else {},
        curves=validation_curves(history),
        selected=metrics["selected"],
        last=metrics["last"],
    )


def write_diagnostics(run: Path, found: Diagnostics) -> None:
    """Write RUN/diagnostics.json."""
    write_json(run / "diagnostics.json", dataclasses.asdict(found))


def measure_routing(model: nn.Module, split: Split, *, always_present: Iterable[str] = ()) -> Routing | None:
    """Mean gates and selections per subset through the deployed router; None for a method without one."""
    deployed = deployed_of(model)
    if not isinstance(deployed, DeployedMars):
        return None
    deployed.eval()
    counted = {
        subset: _gates(deployed, split, subset, rows)
        for subset in subsets.evaluated_subsets(deployed.modalities, always_present)
        if len(rows := rows_with(split, subset))
    }
    return Routing(
        active=deployed.active_experts,
        subsets=[subsets.label(subset, deployed.modalities) for subset in counted],
        rows=[len(gates) for gates in counted.values()],
        mean_gate=[gates.mean(dim=0).tolist() for gates in counted.values()],
        selected=[(gates > 0).double().mean(dim=0).tolist() for gates in counted.values()],
    )


def _gates(model: DeployedMars, split: Split, subset: subsets.Subset, rows: Tensor) -> Tensor:
    """Gates (rows, N), float64 on the CPU, with only `subset` present."""
    device = device_of(model)
    mask = torch.from_numpy(subsets.mask(subset, model.modalities)).to(device)
    parts = []
    for indices in torch.split(rows, batch_size_for(split)):
        inputs = {name: x.to(device) for name, x in split.batch(indices).items()}
        with torch.no_grad():
            _, logits = model.route(model.encode_all(inputs), mask.expand(len(indices), -1))
            parts.append(model.gates(logits).double().cpu())
    return torch.cat(parts)


def expert_usage(routing: Routing) -> ExpertUsage:
    """Shares of gates and of selections, and how many experts they amount to."""
    gate = np.mean(routing.mean_gate, axis=0)
    load = np.mean(routing.selected, axis=0) / routing.active
    return ExpertUsage(
        gate=gate.tolist(),
        load=load.tolist(),
        effective_by_gate=effective_number(gate),
        effective_by_load=effective_number(load),
        idle=[int(i) for i in np.flatnonzero(load == 0)],
    )


def effective_number(shares: NDArray[np.float64]) -> float:
    """exp of the entropy of shares (N,) that sum to 1: the number of equal shares with that entropy, 1 to N."""
    used = shares[shares > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


def measure_agreement(model: nn.Module, split: Split, *, always_present: Iterable[str] = ()) -> Agreement | None:
    """How far both routers agree on complete rows; None without two routers, or without a complete row."""
    if not isinstance(model, TrainingMars) or model.residual_router is None:
        return None
    deployed = model.deployed
    rows = rows_with(split, deployed.modalities)
    if not len(rows):
        return None
    model.eval()
    incomplete = subsets.evaluated_subsets(deployed.modalities, always_present)[:-1]
    return Agreement(
        by_combination={
            subsets.label(subset, deployed.modalities): _mean_agreement(model, split, subset, rows)
            for subset in incomplete
        },
        chance=deployed.active_experts / len(deployed.experts),
    )


def _mean_agreement(model: TrainingMars, split: Split, subset: subsets.Subset, rows: Tensor) -> float:
    device = device_of(model.deployed)
    mask = torch.from_numpy(subsets.mask(subset, model.deployed.modalities)).to(device)
    total = 0.0
    for indices in torch.split(rows, batch_size_for(split)):
        inputs = {name: x.to(device) for name, x in split.batch(indices).items()}
        with torch.no_grad():
            passes = model(inputs, mask.expand(len(indices), -1))
        k = model.deployed.active_experts
        total += float(losses.router_agreement(passes.residual.clean, passes.student, k).sum())
    return total / len(rows)


def sampling_history(history: Sequence[Mapping[str, Any]]) -> Sampling | None:
    """Discrepancies and probabilities of every epoch; None for a method that has no discrepancy."""
    tables = [report["sampling"] for report in history]
    names = list(tables[0]) if tables else []
    if not any(table[name][0] for table in tables for name in names):
        return None
    return Sampling(
        combinations=names,
        discrepancy=[[table[name][0] for name in names] for table in tables],
        probability=[[table[name][1] for name in names] for table in tables],
    )


def loss_terms(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Every loss term as one value per epoch."""
    names = list(history[-1]["terms"]) if history else []
    return {name: [report["terms"][name] for report in history if name in report["terms"]] for name in names}


def plateaus(terms: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """The last value of each routing loss beside the values it is known to rest at; one that was off has none."""
    found = {
        name: {"last": terms[name][-1], "paper_casia_surf": value}
        for name, value in PAPER_PLATEAUS.items()
        if any(terms.get(name, ()))
    }
    if "noise" in found:
        found["noise"]["no_order"] = NO_ORDER
    return found


def validation_curves(history: Sequence[Mapping[str, Any]]) -> Curves:
    """The error of every subset in every epoch that was validated."""
    validated = [report for report in history if report["scores"]]
    names = list(dict.fromkeys(score["subset"] for report in validated for score in report["scores"]))
    by_epoch = [{score["subset"]: score_error(score) for score in report["scores"]} for report in validated]
    return Curves(
        epochs=[report["epoch"] + 1 for report in validated],
        subsets={name: [errors.get(name) for errors in by_epoch] for name in names},
        mean=[sum(errors.values()) / len(errors) for errors in by_epoch],
    )


def score_error(score: Mapping[str, Any]) -> float:
    """The error rate of a score as metrics.json holds it: lower is better for every metric."""
    value = float(score["value"])
    return value if score["metric"] in LOWER_IS_BETTER else 1.0 - value
