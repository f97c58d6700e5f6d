"""Everything of a training that moves, and how a run that was killed at any moment gets it back.

Random numbers are not among it: they are keyed by epoch and step, see `draws`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mars_training import checkpoint, distributed
from mars_training.epoch import EpochReport, report_from_dict
from mars_training.sampling import MaskSampler


@dataclass(kw_only=True)
class State:
    """What moves; the current epoch is the one after `history`.

    Attributes:
        selected: the epoch of least validation error so far, and its weights, on the processor.
        step: steps of the current epoch that are done; `seconds` went into them.
        sums: over those steps, of every loss term, as a share of the epoch's steps.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    sampler: MaskSampler
    history: list[EpochReport] = field(default_factory=list)
    selected: EpochReport | None = None
    selected_weights: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return len(self.history)

    def select(self, report: EpochReport) -> None:
        """Make the epoch just ended, with the model's weights, the selected one."""
        self.selected = report
        self.selected_weights = {name: t.detach().cpu().clone() for name, t in self.model.state_dict().items()}

    def end_epoch(self, report: EpochReport) -> None:
        """Add the report; the next epoch begins."""
        self.history.append(report)
        self.step, self.seconds, self.sums = 0, 0.0, {}


def save(run: Path, state: State) -> None:
    """Write all files of a run directory; within an epoch the resume file alone. Every process must call it."""
    tensors = _tensors(state)
    if distributed.is_main():
        checkpoint.save_resume(run, tensors, _facts(state))
        _save_results(run, state)


def _save_results(run: Path, state: State) -> None:
    if state.step or not state.history:
        return
    assert state.selected is not None
    last = state.history[-1]
    checkpoint.save_weights(run / "last.safetensors", state.model.state_dict(), epoch=last.epoch)
    if state.selected.epoch == last.epoch:
        checkpoint.save_weights(run / "selected.safetensors", state.selected_weights, epoch=last.epoch)
    checkpoint.write_json(
        run / "metrics.json",
        {
            "selected": dataclasses.asdict(state.selected),
            "last": dataclasses.asdict(last),
            "history": [dataclasses.asdict(report) for report in state.history],
        },
    )


def load(run: Path, state: State) -> None:
    """Go on where the run was interrupted, if it was; results that the kill came before are written now.

    Every process must call it; only the main one needs to see the files.

    Raises:
        UsageError: the file to go on from is damaged, or of another training.
    """
    if distributed.is_main():
        checkpoint.remove_partials(run)
    stored = checkpoint.load_resume(run) if distributed.is_main() else None
    facts = distributed.from_main(lambda: stored and stored[1])
    if facts is None:
        return
    tensors = distributed.tensors_from_main(stored[0] if stored else {})
    reason = _misfit(state, tensors, facts)
    if reason:
        raise checkpoint.damaged_resume(run, reason)
    restore(state, tensors, facts)
    if distributed.is_main():
        _save_results(run, state)


def _misfit(state: State, tensors: Mapping[str, Tensor], facts: Any) -> str:
    """Why `state` cannot become what was stored; empty when it can."""
    lacking = [name for name in _facts(state) if not isinstance(facts, Mapping) or name not in facts]
    if lacking:
        return f"it lacks {lacking[0]!r}"
    weights = state.model.state_dict()
    parameters = [p for group in state.optimiser.param_groups for p in group["params"]]
    for name, value in _under("optimiser", tensors).items():
        index = name.partition(".")[0]
        if not index.isdecimal() or int(index) >= len(parameters):
            return f"optimiser.{name} is of no parameter"
        if value.dim() and value.shape != parameters[int(index)].shape:
            return f"optimiser.{name} is {tuple(value.shape)}; its parameter {tuple(parameters[int(index)].shape)}"
    sampler = {name: getattr(state.sampler, name) for name in ("probabilities", "agreement", "drawn")}
    selected = weights if facts["selected"] is not None else {}
    wanted = {"model": weights, "selected": selected, "sampler": sampler}
    return next(filter(None, (checkpoint.misfit(_under(part, tensors), of) for part, of in wanted.items())), "")


def _facts(state: State) -> dict[str, Any]:
    return {
        "history": [dataclasses.asdict(report) for report in state.history],
        "selected": None if state.selected is None else state.selected.epoch,
        "step": state.step,
        "seconds": state.seconds,
        "sums": state.sums,
    }


def _tensors(state: State) -> dict[str, Tensor]:
    sampler = state.sampler
    tensors = {f"model.{name}": t for name, t in state.model.state_dict().items()}
    tensors |= {f"selected.{name}": t for name, t in state.selected_weights.items()}
    for index, values in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": t for name, t in values.items() if t is not None}
    return tensors | {
        "sampler.probabilities": sampler.probabilities,
        "sampler.agreement": distributed.all_sum(sampler.agreement),
        "sampler.drawn": distributed.all_sum(sampler.drawn),
    }


def restore(state: State, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Make `state` what `_tensors` and `_facts` were taken from, to the last bit."""
    state.model.load_state_dict(_under("model", tensors))
    _restore_optimiser(state.optimiser, _under("optimiser", tensors))
    _restore_sampler(state.sampler, _under("sampler", tensors))
    state.selected_weights = _under("selected", tensors)
    state.history = [report_from_dict(table) for table in facts["history"]]
    state.selected = None if facts["selected"] is None else state.history[facts["selected"]]
    state.step, state.seconds, state.sums = facts["step"], facts["seconds"], facts["sums"]


def _restore_sampler(sampler: MaskSampler, tensors: Mapping[str, Tensor]) -> None:
    sampler.probabilities = tensors["probabilities"]
    # Counts are sums over processes: one of them takes all up again.
    share = 1.0 if distributed.is_main() else 0.0
    sampler.agreement, sampler.drawn = tensors["agreement"] * share, tensors["drawn"] * share


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        parameter = parameters[int(index)]
        # The parameter's own memory format: an update in another one rounds differently.
        laid_out = value if value.dim() == 0 else torch.empty_like(parameter, device="cpu").copy_(value)
        moments.setdefault(int(index), {})[key] = laid_out
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
