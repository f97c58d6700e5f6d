"""Whether a depth picture shows surfaces: against plain loops, on slopes and edges, and with none there."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.faults import corrupt
from mars_edge.rig import IDENTITIES, SPECIES, render, sample_scene
from mars_runtime.facts import FactFinder
from mars_runtime.health import SampleSeen
from mars_runtime.limits import limits_of
from mars_runtime.sensors.driver import Frame, Traits
from mars_runtime.surface import STEP_SHARE, missing_share, roughness

RAW = Traits(description="depth camera", rate_hz=15.0, raw=True)
LIMITS = limits_of("depth", RAW)


def seen(depth: NDArray[np.uint16]) -> SampleSeen:
    return FactFinder("depth").facts(Frame(data=depth), RAW, 0.0)


def room(rng: np.random.Generator, shape: tuple[int, int] = (240, 320), noise: float = 0.003) -> NDArray[np.uint16]:
    """A corridor: two walls and a floor that recede to 8 m, noisy in proportion to depth."""
    v, u = np.mgrid[: shape[0], : shape[1]]
    x, y = u - shape[1] / 2 + 0.5, v - shape[0] / 2 + 0.5
    depth = np.minimum.reduce([250_000.0 / np.abs(x), 250_000.0 / np.maximum(y, 1e-3), np.full(shape, 8000.0)])
    return (depth * (1.0 + noise * rng.standard_normal(shape))).astype(np.uint16)


def test_a_pixel_is_on_a_surface_if_a_neighbour_in_its_row_is_about_as_far() -> None:
    rng = np.random.default_rng(1)
    depth = rng.choice(np.array([0, 500, 540, 700], np.uint16), (30, 40))

    def alike(a: int, b: int) -> bool:
        return a > 0 and b > 0 and abs(a - b) <= STEP_SHARE * a

    rows = depth.astype(int).tolist()
    missing = sum(
        not (c > 0 and alike(row[c - 1], row[c])) and not (c < 39 and alike(row[c], row[c + 1]))
        for row in rows
        for c in range(40)
    )
    assert missing_share(depth) == pytest.approx(missing / depth.size)


@pytest.mark.parametrize("fill", [0.03, 0.1, 0.3, 0.5])
def test_dots_that_are_like_none_of_their_neighbours_are_no_measurement_however_many(fill: float) -> None:
    rng = np.random.default_rng(2)
    dots = np.where(rng.random((480, 640)) < fill, 1.0 / rng.uniform(1e-4, 5e-3, (480, 640)), 0.0).astype(np.uint16)
    assert (seen(dots).invalid_depth or 0.0) > LIMITS.invalid_depth_share


@pytest.mark.parametrize("share", [0.001, 0.01, 0.03])
def test_roughness_is_the_noise_in_proportion_to_depth(share: float) -> None:
    rng = np.random.default_rng(3)
    v, u = np.mgrid[:240, :320]
    slope = 1.0 / (1e-4 + 3e-6 * u + 2e-6 * v)
    assert roughness(
        (slope * (1 + share * rng.standard_normal(slope.shape))).round().astype(np.uint16)
    ) == pytest.approx(share, rel=0.15)


def test_holes_do_not_make_a_surface_rough() -> None:
    rng = np.random.default_rng(4)
    wall = rng.normal(1000.0, 2.0, (240, 320)).astype(np.uint16)
    whole = roughness(wall)
    wall[rng.random(wall.shape) < 0.1] = 0
    assert whole is not None and roughness(wall) == pytest.approx(whole, rel=0.15)


def test_too_little_that_is_measured_says_nothing() -> None:
    dots = np.zeros((120, 160), np.uint16)
    dots[::3, ::3] = 700
    assert roughness(dots) is None
    assert roughness(np.ones((2, 9), np.uint16)) is None
    assert roughness(np.ones((9, 9, 2), np.uint16)) is None


@pytest.mark.parametrize("seed", range(3))
def test_a_corridor_that_recedes_to_eight_metres_is_all_surface_and_no_noise(seed: int) -> None:
    facts = seen(room(np.random.default_rng(seed), noise=0.008))
    assert (facts.invalid_depth or 0.0) < 0.2
    assert facts.noise is not None and facts.noise < LIMITS.noise_most


@pytest.mark.parametrize("species", SPECIES)
def test_whoever_stands_before_the_rig_shows_ten_times_less_noise_than_the_limit(species: str) -> None:
    rng = np.random.default_rng([5, SPECIES.index(species)])
    scenes = [sample_scene(rng, species, identities=IDENTITIES["test"]) for _ in range(12)]
    found = [seen(render(scene, "depth")) for scene in scenes]
    assert max(each.noise or 0.0 for each in found) < LIMITS.noise_most / 10


@pytest.mark.parametrize(("fault", "fact"), [("cover", "invalid_depth"), ("scatter", "noise"), ("garbage", "noise")])
def test_a_blind_depth_camera_is_beyond_its_limit_whatever_it_looked_at(fault: str, fact: str) -> None:
    rng = np.random.default_rng(6)
    limit = {"invalid_depth": LIMITS.invalid_depth_share, "noise": LIMITS.noise_most}[fact]
    for depth in (room(rng), np.full((112, 112), 600, np.uint16), np.zeros((480, 640), np.uint16)):
        value = getattr(seen(corrupt(fault, depth, rng)), fact)
        assert value is not None and value > 1.05 * limit
