"""What a decision says: experts and their gates, which samples are skewed, what the policy allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from contract.manifest_cases import small_manifest
from mars_edge import subsets
from mars_edge.gates import top_k_gates
from mars_edge.manifest import Manifest, OperatingPoint, Policy
from mars_edge.metrics import rate
from mars_runtime import downgrade, policy, skew
from mars_runtime.limits import Limits
from mars_runtime.skew import Stamp

_SUBSETS = ((), ("rgb",), ("depth",), ("ir",), ("rgb", "ir"), ("rgb", "depth"), ("rgb", "depth", "ir"))
_LOGITS: tuple[list[float] | None, ...] = ([1.0, 2.5], [2.0, -1.0], [0.0, 0.30], [float("nan"), 0.0], None)
_POLICIES = (
    Policy(),
    Policy(require=("depth|ir",)),
    Policy(require=("rgb", "depth"), on_missing="abstain"),
    Policy(on_missing="fail_closed"),
)


def gates_cases() -> list[dict[str, Any]]:
    """Router logits, K, and the experts that run with their gates, the largest first."""
    random = np.random.default_rng(1000)
    rows = [random.normal(0.0, 2.0, 8).astype(np.float32) for _ in range(6)]
    rows += [np.zeros(4, np.float32), np.array([1, 3, 3, 2, 3], np.float32), np.array([80, -80, 0], np.float32)]
    return [_gates(row, k) for row in rows for k in (1, 2, row.size)]


def _gates(row: Any, k: int) -> dict[str, Any]:
    indices, weights = top_k_gates(row[None], k)
    return {"logits": row.tolist(), "k": k, "experts": indices[0].tolist(), "gates": weights[0].tolist()}


def skew_cases() -> list[dict[str, Any]]:
    """Stamps of one decision and the sensors that are left out."""
    stamps: Sequence[dict[str, tuple[float, float]]] = (
        {"rgb": (5.0, 15.0)},
        {"rgb": (5.0, 15.0), "ir": (5.02, 15.0)},
        {"rgb": (5.0, 15.0), "ir": (5.3, 15.0)},
        {"rgb": (5.0, 15.0), "depth": (4.6, 15.0), "ir": (5.03, 15.0)},
        {"rgb": (5.0, 30.0), "depth": (4.9, 5.0), "ir": (5.2, 29.0)},
        # As fast as the fastest, and not quite: the newer of two is the reference, or the only one.
        {"rgb": (5.0, 30.0), "ir": (5.3, 27.3)},
        {"rgb": (5.0, 30.0), "ir": (5.3, 27.2)},
    )
    return [_skew(table) for table in stamps]


def _skew(table: dict[str, tuple[float, float]]) -> dict[str, Any]:
    given = {n: Stamp(stamped_s=at_s, limits=Limits(period_s=1.0 / hz)) for n, (at_s, hz) in table.items()}
    stamps = {name: {"stamped_s": at_s, "rate_hz": hz} for name, (at_s, hz) in table.items()}
    return {"stamps": stamps, "skewed": {name: dict(found) for name, found in skew.skewed(given).items()}}


def models() -> dict[str, Manifest]:
    """The manifests that the policy is asked of."""
    return {
        "live or spoof": small_manifest(policy=Policy()),
        "plain": small_manifest(labels=("a", "b"), positive_label=None, policy=Policy()),
    }


def model_cases() -> list[dict[str, Any]]:
    """Those manifests as text."""
    return [{"name": name, "text": manifest.to_json()} for name, manifest in models().items()]


def critical_cases() -> list[dict[str, Any]]:
    """Manifests, and the sensors whose loss is an alarm: required, or letting more attacks in when covered."""
    rates: dict[str, dict[str, Any]] = {
        "equal everywhere": {},
        "worse without ir": {"rgb+depth": (8, 1)},
        "worse without ir by another species": {"rgb+depth": (1, 9)},
        "worse without ir, which may not decide then": {"rgb+depth": (30, 30, False)},
        "better without depth": {"rgb+depth+ir": (9, 9), "rgb+ir": (1, 1)},
        "the whole may not decide": {"rgb+depth+ir": (0, 0, False)},
        "nothing is measured of it": {"rgb+depth": None},
    }
    return [_critical(name, changes, policy) for name, changes in rates.items() for policy in _POLICIES[:2]]


def _critical(name: str, changes: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    labels = [subsets.label(s, ("rgb", "depth", "ir")) for s in subsets.all_subsets(("rgb", "depth", "ir"))]
    points = {label: _measured(*((5, 5) if label not in changes else changes[label] or ())) for label in labels}
    manifest = small_manifest(operating_points=points, policy=Policy())
    critical = list(downgrade.critical_sensors(manifest, policy))
    return {
        "name": f"{name}, {policy.require}",
        "text": manifest.to_json(),
        "policy": asdict(policy),
        "critical": critical,
    }


def _measured(prints: int | None = None, masks: int | None = None, certified: bool = True) -> OperatingPoint:
    """An operating point with so many of 50 attacks of each species accepted; none measured by default."""
    found = {"print": prints, "mask": masks}
    return OperatingPoint(
        threshold=0.5, metric="acer", value=0.1, low=0.0, high=0.2, n=100, certified=certified,
        apcer={species: rate(errors, 50) for species, errors in found.items() if errors is not None},
    )  # fmt: skip


def policy_cases() -> list[dict[str, Any]]:
    """Decisions and their outcomes, by the model's name."""
    return [case for name, manifest in models().items() for case in _outcomes(name, manifest)]


def _outcomes(name: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    for wanted in _POLICIES:
        for present in _SUBSETS:
            for logits in _LOGITS:
                yield _outcome(name, manifest, wanted, present, logits)
    yield _outcome(name, manifest, Policy(), ("rgb",), [0.0, 1.0], allow_uncertified=True)
    # Exactly at its threshold.
    yield _outcome(name, manifest, Policy(), ("rgb",), [0.0, 0.0], allow_uncertified=True)
    yield _outcome(name, manifest, Policy(), ("ir",), [0.0, 1.0], held="the engine failed: on purpose")


def _outcome(
    name: str, manifest: Manifest, wanted: Policy, present: Sequence[str], logits: list[float] | None, **more: Any
) -> dict[str, Any]:
    given = None if logits is None else np.array(logits, np.float32)
    found = asdict(policy.decide(manifest, wanted, present, given, **more))
    # JSON has no NaN: a logit that is not finite is written as null.
    kept = None if logits is None else [value if np.isfinite(value) else None for value in logits]
    case = {"manifest": name, "policy": asdict(wanted), "present": list(present), "logits": kept, **more}
    return case | {"outcome": {key: value for key, value in found.items() if key != "shares"}}
