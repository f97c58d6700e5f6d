"""The defender's table: species by subset, and what an attacker gains by covering sensors."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from mars_edge import defence
from mars_edge.admission import objection
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest, Policy
from mars_edge.metrics import rate
from mars_edge.modality import Modality
from tests.fake_engine import manifest, point

SPECIES = ("print", "screen", "mask")


def measured(seed: int = 0, *, certified: str = "ir", n: int = 300, **changes: object) -> Manifest:
    """Random error rates per subset and species; subsets with the modality `certified` are certified."""
    generator = np.random.default_rng(seed)
    points = {
        label: point(certified=certified in label, apcer={s: rate(int(generator.integers(0, 40)), n) for s in SPECIES})
        for label in manifest().operating_points
    }
    return replace(manifest(), operating_points=points, **changes)  # type: ignore[arg-type]


def accepted(m: Manifest, label: str | None, species: str) -> float:
    """What an attacker with this species gets in front of exactly these sensors."""
    if label is None or objection(m, m.policy, label.split("+")):
        return 0.0
    return m.operating_points[label].apcer[species].value


@pytest.mark.parametrize("seed", range(3))
def test_species_come_worst_first_and_the_worst_is_where_the_runtime_decides(seed: int) -> None:
    m = measured(seed)
    rows = defence.species_table(m)
    assert {row.species for row in rows} == set(SPECIES)
    for row in rows:
        by_subset = {label: accepted(m, label, row.species) for label in m.operating_points}
        assert row.worst.value == max(by_subset.values()) == by_subset[row.worst_subset]
        assert {label: r.value for label, r in row.apcer.items()} == {
            label: p.apcer[row.species].value for label, p in m.operating_points.items()
        }
    worst = [row.worst.value for row in rows]
    assert worst == sorted(worst, reverse=True)


def test_where_no_subset_decides_the_worst_is_of_all() -> None:
    m = measured(certified="nothing")
    rows = defence.species_table(m)
    assert rows[0].worst.value == max(r.value for p in m.operating_points.values() for r in p.apcer.values())
    assert defence.deciding_subsets(m) == () and defence.downgrade_risks(m) == ()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize(
    "policy", [Policy(), Policy(require=("depth|ir",)), Policy(on_missing="abstain"), Policy(require=("rgb",))]
)
def test_risks_are_the_difference_of_what_the_runtime_accepts_in_every_way_to_cover(
    seed: int, at_once: int, policy: Policy
) -> None:
    m = measured(seed, policy=policy)
    expected = {}
    for before in m.operating_points:
        for covered in itertools.combinations(before.split("+"), at_once):
            after = "+".join(name for name in before.split("+") if name not in covered) or None
            sides = [label is not None and not objection(m, policy, label.split("+")) for label in (before, after)]
            for species in SPECIES if any(sides) else ():
                key = ("+".join(covered), before, after, species)
                expected[key] = accepted(m, after, species) - accepted(m, before, species)
            if any(sides):
                before_worst, after_worst = (max(accepted(m, x, s) for s in SPECIES) for x in (before, after))
                expected["+".join(covered), before, after, defence.WORST] = after_worst - before_worst
    found = {(r.sensor, r.before, r.after, r.species): r for r in defence.downgrade_risks(m, at_once=at_once)}
    assert {key: pytest.approx(risk.gain) for key, risk in found.items()} == expected
    for (_, before, after, _), risk in found.items():
        assert risk.abstains is (after is None or objection(m, policy, after.split("+")) is not None)
        assert (risk.apcer_after is None) is risk.abstains
        assert (risk.apcer_before is None) is (objection(m, policy, before.split("+")) is not None)
        assert -1.0 <= risk.gain_low <= risk.gain <= risk.gain_high <= 1.0


def test_the_largest_gain_comes_first_and_denial_last() -> None:
    risks = defence.downgrade_risks(measured())
    order = [(risk.abstains, -risk.gain) for risk in risks]
    assert order == sorted(order)
    assert not risks[0].abstains and risks[-1].abstains


def test_a_subset_that_unlocks_decisions_is_a_gain_from_nothing() -> None:
    points = {
        "rgb+depth+ir": point(certified=False, apcer={"mask": rate(3, 300)}),
        "rgb+ir": point(apcer={"mask": rate(30, 300)}),
    }
    (risk,) = [r for r in defence.downgrade_risks(manifest(operating_points=points)) if r.species == "mask"][:1]
    assert (risk.sensor, risk.apcer_before, risk.gain) == ("depth", None, 0.1)
    assert risk.gain_low == pytest.approx(binomtest(30, 300).proportion_ci(0.975, method="exact").low)


@pytest.mark.parametrize(("before", "after"), [(0.02, 0.02), (0.01, 0.2), (0.3, 0.0)])
def test_the_interval_of_a_gain_holds_the_truth_as_often_as_it_says(before: float, after: float) -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(30):
        shares = (before, after)
        first, then = ({"mask": rate(int(generator.binomial(100, p)), 100)} for p in shares)
        points = {"rgb+ir": point(apcer=first), "ir": point(apcer=then)}
        risks = defence.downgrade_risks(manifest(operating_points=points))
        risk = next(r for r in risks if r.species == "mask" and r.after == "ir")
        held += risk.gain_low <= after - before <= risk.gain_high
    assert held >= 28


def test_the_interval_of_the_worst_species_bounds_every_species_at_once() -> None:
    m = measured()

    def bounds(label: str) -> tuple[float, float]:
        rates = m.operating_points[label].apcer.values()
        each = [binomtest(r.errors, r.n).proportion_ci(1.0 - 0.025 / 3, method="exact") for r in rates]
        return max(b.low for b in each), max(b.high for b in each)

    risks = defence.downgrade_risks(m)
    risk = next(r for r in risks if (r.before, r.after, r.species) == ("rgb+ir", "ir", defence.WORST))
    (low_before, high_before), (low_after, high_after) = bounds("rgb+ir"), bounds("ir")
    assert (risk.gain_low, risk.gain_high) == pytest.approx((low_after - high_before, high_after - low_before))


def test_a_species_measured_on_one_side_only_has_no_gain() -> None:
    points = {
        "rgb+ir": point(apcer={"mask": rate(3, 300), "print": rate(0, 300)}),
        "ir": point(apcer={"mask": rate(30, 300)}),
    }
    risks = [r for r in defence.downgrade_risks(manifest(operating_points=points)) if r.after == "ir"]
    assert sorted(r.species for r in risks) == ["mask", defence.WORST]


def test_a_file_of_an_earlier_version_has_no_table_and_says_so() -> None:
    assert defence.species_table(manifest()) == () == defence.downgrade_risks(manifest())
    assert defence.text_table(manifest()) == (
        "no error rates per attack species in this file: it detects no attacks, or is of an earlier version"
    )


def test_covering_nothing_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        defence.downgrade_risks(measured(), at_once=0)
    assert str(caught.value) == "at_once is 0; at least 1 sensor must be covered"


def test_the_text_shows_every_subset_and_every_way_in_100_columns() -> None:
    m = measured()
    lines = defence.text_table(m).splitlines()
    assert max(map(len, lines)) <= 100
    heads = lines[1].split()
    assert heads == ["species", "[rgb]", "[depth]", "ir", "[rgb+depth]", "rgb+ir", "depth+ir", "rgb+depth+ir"]
    row = defence.species_table(m)[0]
    cells = [f"{100 * r.value:.1f}/{100 * r.high:.1f}" for r in row.apcer.values()]
    assert lines[2].split() == [row.species, *cells]
    ways = [r for r in defence.downgrade_risks(m) if r.species == defence.WORST]
    shown = [line for line in lines if " -> " in line and not line.startswith("covered")]
    assert len(shown) == len(ways) == 8
    assert all(line.startswith(way.sensor) for line, way in zip(shown, ways, strict=True))


def test_many_subsets_and_long_names_wrap() -> None:
    modalities = tuple(
        Modality(name=f"camera_{i}", kind="image", size=(8, 8), dtype="uint8", range=(0, 255)) for i in range(5)
    )
    apcer = {"an attack species of a very long name": rate(1, 300), "mask": rate(0, 300)}
    wide = manifest(modalities=modalities)
    wide = replace(wide, operating_points={label: point(apcer=apcer) for label in wide.operating_points})
    text = defence.text_table(wide)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("an attack speci...") >= 4
    assert "and 64 more ways, of no larger gain" in text
