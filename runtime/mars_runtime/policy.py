"""What the runtime may say given who is present: every subset has its own certified operating point.

In face anti-spoofing the attacker chooses what is missing (a thumb over the infrared emitter), so a
subset that was not measured and certified gives `abstain`, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mars_edge import subsets
from mars_edge.admission import objection as objection
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest, OperatingPoint, Policy
from mars_edge.metrics import class_probabilities

ACCEPT, REJECT, ABSTAIN = "accept", "reject", "abstain"
# What a segmentation gives where it may decide.
MAP = "map"
# From lenient to strict.
ON_MISSING = ("continue", "abstain", "fail_closed")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is decided.

    Attributes:
        label: None when abstaining.
        score: probability of the positive label, or of `label` where there is none; None when abstaining.
        threshold: lowest score that is accepted; None where none applies.
        verdict: accept | reject | abstain, or the label for plain classification, or map for a segmentation.
        reason: why it abstains or fails closed, else None.
        shares: segmentation only: the share of the pixels of each label; None when abstaining.
    """

    label: str | None
    score: float | None
    threshold: float | None
    verdict: str
    reason: str | None = None
    shares: Mapping[str, float] | None = None


def stricter(
    policy: Policy, names: Sequence[str], *, require: Sequence[str], on_missing: str | None, unsafe: bool
) -> Policy:
    """The manifest's policy with the command line's wishes: requirements add up, `on_missing` only tightens.

    With `unsafe` the command line replaces what it names.

    Raises:
        UsageError: an unknown modality or mode, or a wish that would loosen the policy without `unsafe`.
    """
    for entry in require:
        unknown = sorted(set(entry.split("|")) - set(names))
        if unknown:
            raise UsageError(
                f"--require {entry!r}: unknown modality {unknown[0]!r}; this model has: {', '.join(names)}"
            )
    if on_missing is not None and on_missing not in ON_MISSING:
        raise UsageError(f"--on-missing {on_missing!r}; allowed: {', '.join(ON_MISSING)}")
    wanted = on_missing or policy.on_missing
    if not unsafe and ON_MISSING.index(wanted) < ON_MISSING.index(policy.on_missing):
        raise UsageError(f"--on-missing {wanted} is laxer than the model's {policy.on_missing}; add --unsafe to insist")
    kept = () if unsafe and require else policy.require
    return replace(policy, require=(*kept, *(r for r in require if r not in kept)), on_missing=wanted)  # type: ignore[arg-type]


def decide(
    manifest: Manifest,
    policy: Policy,
    present: Sequence[str],
    logits: NDArray[np.float32] | None,
    *,
    allow_uncertified: bool = False,
    held: str | None = None,
) -> Outcome:
    """The outcome for the logits of the modalities in `present`; None logits always abstain.

    Args:
        logits: float32 (classes,), or (classes, H, W) of a segmentation.
        held: why no decision may be made whatever the subset; None lets the policy alone say.
    """
    why = objection(manifest, policy, present, allow_uncertified=allow_uncertified) or held
    if why is None and (logits is None or not np.isfinite(logits).all()):
        why = "the model gave no finite output"
    point = manifest.operating_points.get(subsets.label(present, manifest.names))
    if why is not None or logits is None or point is None:
        return _refusal(manifest, policy, point, why)
    if manifest.task == "segmentation":
        return _segmented(manifest, logits)
    scores = class_probabilities(logits, point.temperature)
    if manifest.positive_label is not None:
        return _binary(manifest, point, scores, manifest.labels.index(manifest.positive_label))
    best = int(np.argmax(scores))
    label, score = manifest.labels[best], float(scores[best])
    if score < point.threshold:
        return Outcome(
            label=None, score=None, threshold=point.threshold, verdict=ABSTAIN, reason="score below the threshold"
        )
    return Outcome(label=label, score=score, threshold=point.threshold, verdict=label)


def label_map(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The index of the likeliest label of each pixel, (H, W), from logits (classes, H, W) of at most 256 classes."""
    indices: NDArray[np.uint8] = np.argmax(logits, axis=0).astype(np.uint8)
    return indices


def _segmented(manifest: Manifest, logits: NDArray[np.float32]) -> Outcome:
    counts = np.bincount(label_map(logits).ravel(), minlength=len(manifest.labels))
    shares = {label: float(count) / counts.sum() for label, count in zip(manifest.labels, counts, strict=True)}
    return Outcome(label=None, score=None, threshold=None, verdict=MAP, shares=shares)


def _refusal(manifest: Manifest, policy: Policy, point: OperatingPoint | None, why: str | None) -> Outcome:
    closes = policy.on_missing == "fail_closed" and manifest.positive_label is not None
    threshold = None if point is None else point.threshold
    return Outcome(label=None, score=None, threshold=threshold, verdict=REJECT if closes else ABSTAIN, reason=why)


def _binary(manifest: Manifest, point: OperatingPoint, scores: NDArray[np.float64], positive: int) -> Outcome:
    score = float(scores[positive])
    accepted = score >= point.threshold
    others = scores.copy()
    others[positive] = -1.0
    label = manifest.labels[positive if accepted else int(np.argmax(others))]
    return Outcome(label=label, score=score, threshold=point.threshold, verdict=ACCEPT if accepted else REJECT)
