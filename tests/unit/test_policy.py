"""What may be decided on which subset, and how strict wishes combine."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_edge.manifest import Policy
from mars_runtime.policy import ON_MISSING, Outcome, decide, stricter
from tests.fake_engine import manifest, point

NAMES = ("rgb", "depth", "ir")
LOGITS = np.array([0.0, 1.0], np.float32)
CONTINUE = Policy()


def test_the_score_is_the_softmax_probability_of_the_positive_label() -> None:
    outcome = decide(manifest(), CONTINUE, NAMES, LOGITS)
    score = math.e / (1.0 + math.e)
    assert outcome == Outcome(label="bona_fide", score=pytest.approx(score), threshold=0.5, verdict="accept")


@pytest.mark.parametrize(("threshold", "verdict", "label"), [(0.73, "accept", "bona_fide"), (0.74, "reject", "attack")])
def test_each_subset_decides_at_its_own_threshold(threshold: float, verdict: str, label: str) -> None:
    points = {"rgb+depth+ir": point(), "rgb+ir": point(threshold=threshold)}
    outcome = decide(manifest(operating_points=points), CONTINUE, ["ir", "rgb"], LOGITS)
    assert (outcome.verdict, outcome.label, outcome.threshold) == (verdict, label, threshold)


def test_the_temperature_divides_the_logits() -> None:
    points = {"ir": point(temperature=4.0)}
    outcome = decide(manifest(operating_points=points), CONTINUE, ["ir"], LOGITS)
    assert outcome.score == pytest.approx(1.0 / (1.0 + math.exp(-0.25)))


def test_plain_classification_gives_the_label_and_abstains_below_the_threshold() -> None:
    three = manifest(labels=("a", "b", "c"), positive_label=None, operating_points={"ir": point(threshold=0.6)})
    sure = decide(three, CONTINUE, ["ir"], np.array([0, 5, 0], np.float32))
    assert (sure.verdict, sure.label) == ("b", "b")
    unsure = decide(three, CONTINUE, ["ir"], np.array([0, 0.1, 0], np.float32))
    assert unsure == Outcome(
        label=None, score=None, threshold=0.6, verdict="abstain", reason="score below the threshold"
    )


@pytest.mark.parametrize(
    ("policy", "present", "reason"),
    [
        (CONTINUE, [], "no sensor is usable"),
        (CONTINUE, ["rgb"], "subset rgb is not certified"),
        (CONTINUE, ["depth"], "subset depth has no operating point"),
        (Policy(require=("depth|ir",)), ["rgb"], "requires depth|ir"),
        (Policy(require=("depth", "rgb")), ["depth", "ir"], "requires rgb"),
        (Policy(on_missing="abstain"), ["rgb", "ir"], "depth missing"),
    ],
)
def test_a_subset_that_may_not_decide_abstains_and_says_why(policy: Policy, present: list[str], reason: str) -> None:
    points = {"rgb+depth+ir": point(), "rgb+ir": point(), "depth+ir": point(), "rgb": point(certified=False)}
    outcome = decide(manifest(operating_points=points), policy, present, LOGITS)
    assert (outcome.verdict, outcome.label, outcome.score, outcome.reason) == ("abstain", None, None, reason)


def test_every_subset_without_a_certificate_abstains() -> None:
    certified = {"rgb+depth", "ir"}
    points = {
        "+".join(s): point(certified="+".join(s) in certified)
        for size in (1, 2, 3)
        for s in itertools.combinations(NAMES, size)
    }
    for label in points:
        verdict = decide(manifest(operating_points=points), CONTINUE, label.split("+"), LOGITS).verdict
        assert (verdict != "abstain") == (label in certified)


def test_requirements_are_met_by_any_of_their_members() -> None:
    for present in (["rgb", "depth"], ["rgb", "ir"], NAMES):
        assert decide(manifest(), Policy(require=("depth|ir",)), present, LOGITS).verdict == "accept"


def test_fail_closed_rejects_whatever_it_may_not_decide() -> None:
    closed = Policy(on_missing="fail_closed")
    assert decide(manifest(), closed, NAMES, LOGITS).verdict == "accept"
    for present in ([], ["rgb"], ["rgb", "ir"]):
        outcome = decide(manifest(), closed, present, LOGITS if present else None)
        assert (outcome.verdict, outcome.label, outcome.score) == ("reject", None, None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_output_that_is_not_finite_abstains(value: float) -> None:
    outcome = decide(manifest(), CONTINUE, NAMES, np.array([0.0, value], np.float32))
    assert (outcome.verdict, outcome.score, outcome.reason) == ("abstain", None, "the model gave no finite output")


def test_huge_logits_do_not_overflow() -> None:
    assert decide(manifest(), CONTINUE, NAMES, np.array([3e38, -3e38], np.float32)).score == 0.0


@pytest.mark.parametrize(("model", "wish"), list(itertools.product(ON_MISSING, ON_MISSING)))
def test_the_command_line_only_tightens(model: str, wish: str) -> None:
    policy = Policy(on_missing=model)  # type: ignore[arg-type]
    if ON_MISSING.index(wish) >= ON_MISSING.index(model):
        assert stricter(policy, NAMES, require=[], on_missing=wish, unsafe=False).on_missing == wish
        return
    with pytest.raises(UsageError) as error:
        stricter(policy, NAMES, require=[], on_missing=wish, unsafe=False)
    assert str(error.value) == f"--on-missing {wish} is laxer than the model's {model}; add --unsafe to insist"
    assert stricter(policy, NAMES, require=[], on_missing=wish, unsafe=True).on_missing == wish


def test_requirements_add_up_and_are_checked() -> None:
    policy = Policy(require=("ir",))
    wishes = ["depth|rgb", "ir"]
    assert stricter(policy, NAMES, require=wishes, on_missing=None, unsafe=False).require == ("ir", "depth|rgb")
    with pytest.raises(UsageError) as error:
        stricter(policy, NAMES, require=["ir|thermal"], on_missing=None, unsafe=False)
    assert str(error.value) == "--require 'ir|thermal': unknown modality 'thermal'; this model has: rgb, depth, ir"


def test_what_holds_decisions_back_abstains_or_fails_closed_whatever_the_subset() -> None:
    for policy, verdict in ((CONTINUE, "abstain"), (Policy(on_missing="fail_closed"), "reject")):
        outcome = decide(manifest(), policy, NAMES, LOGITS, held="ir went missing: no decision for 5 s")
        assert (outcome.verdict, outcome.label, outcome.score) == (verdict, None, None)
        assert outcome.reason == "ir went missing: no decision for 5 s"


def test_a_subset_that_may_not_decide_says_so_before_anything_else() -> None:
    policy = Policy(require=("depth",))
    assert decide(manifest(), policy, ["ir"], LOGITS, held="late").reason == "requires depth"


def test_a_segmentation_gives_shares_that_sum_to_one_and_abstains_like_any_other() -> None:
    model = manifest(task="segmentation", labels=("a", "b", "c"), positive_label=None)
    logits = np.random.default_rng(0).normal(size=(3, 7, 11)).astype(np.float32)
    outcome = decide(model, CONTINUE, NAMES, logits)
    assert outcome.shares is not None
    assert sum(outcome.shares.values()) == pytest.approx(1.0)
    for index, label in enumerate(model.labels):
        assert outcome.shares[label] == pytest.approx(np.mean(logits.argmax(axis=0) == index))
    refused = decide(model, Policy(require=("depth",)), ["ir"], logits)
    assert (refused.verdict, refused.shares, refused.reason) == ("abstain", None, "requires depth")
