"""The simulated rig: what a frame is, which physics it obeys, and which people may appear where."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_edge.rig import (
    ATTACKS,
    IDENTITIES,
    MODALITIES,
    SIZE,
    SPECIES,
    Artefact,
    Pose,
    Rig,
    Scene,
    Wear,
    draw_split,
    modalities,
    render,
    render_all,
    render_split,
    sample_scene,
    true_depth_mm,
)
from mars_edge.rig.cameras import INFRARED_CAMERA, look, rotation
from mars_edge.rig.head import build_head, draw_anatomy
from mars_edge.rig.species import surface_of

FRONTAL = Pose(yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0, x_mm=0.0, y_mm=0.0, distance_mm=450.0)
CENTRE = slice(SIZE // 4, 3 * SIZE // 4)


def scene_of(species: str, seed: int = 0) -> Scene:
    return sample_scene(np.random.default_rng(seed), species, identities=IDENTITIES["test"])


def plane_residual_mm(z: np.ndarray) -> float:
    """Largest distance in disparity-free space from the best plane: 1/z of a plane is affine in pixel coordinates."""
    y, x = np.mgrid[0 : z.shape[0], 0 : z.shape[1]]
    design = np.stack([x.ravel(), y.ravel(), np.ones(z.size)], 1)
    inverse = 1.0 / z.astype(np.float64).ravel()
    fit = design @ np.linalg.lstsq(design, inverse, rcond=None)[0]
    return float(np.abs(1.0 / fit - z.ravel()).max())


def uncut(species: str, seed: int) -> Scene:
    """A sheet or panel that fills the centre of the picture."""
    scene = scene_of(species, seed)
    whole = replace(scene.artefact, width_mm=300.0, height_mm=330.0, silhouette=False)
    return replace(scene, artefact=whole)


def bilinear(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    column, row = np.clip(x.astype(int), 0, 190), np.clip(y.astype(int), 0, 190)
    fx, fy = x - column, y - row
    top = grid[row, column] * (1 - fx) + grid[row, column + 1] * fx
    bottom = grid[row + 1, column] * (1 - fx) + grid[row + 1, column + 1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy)


@pytest.mark.parametrize("species", SPECIES)
def test_frames_have_the_shape_type_and_range_of_their_sensor(species: str) -> None:
    frames = render_all(scene_of(species))
    assert tuple(frames) == MODALITIES
    assert (frames["rgb"].shape, frames["rgb"].dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert (frames["depth"].shape, frames["depth"].dtype) == ((SIZE, SIZE), np.uint16)
    assert (frames["ir"].shape, frames["ir"].dtype) == ((SIZE, SIZE), np.uint8)
    valid = frames["depth"][frames["depth"] > 0]
    assert valid.size > 0.02 * SIZE * SIZE
    assert valid.min() >= 200 and valid.max() <= 2000


def test_every_frame_preprocesses_with_the_rigs_own_modalities() -> None:
    frames = render_all(scene_of("bona_fide"))
    assert tuple(m.name for m in modalities()) == MODALITIES
    for modality in modalities():
        tensor = modality.preprocess(frames[modality.name])
        assert tensor.shape == modality.shape and tensor.dtype == np.float32
        assert 0.0 <= tensor.min() < tensor.max() <= 1.0


@pytest.mark.parametrize("species", SPECIES)
def test_equal_scenes_render_to_equal_frames(species: str) -> None:
    scene = scene_of(species, 3)
    again = pickle.loads(pickle.dumps(scene))
    assert again == scene
    surface_of.__globals__["_build"].cache_clear()
    first = render_all(scene)
    surface_of.__globals__["_build"].cache_clear()
    build_head.cache_clear()
    second = render_all(again)
    for modality in MODALITIES:
        np.testing.assert_array_equal(first[modality], second[modality])


@pytest.mark.parametrize("modality", MODALITIES)
def test_another_noise_seed_changes_the_frame_but_not_the_true_depth(modality: str) -> None:
    scene = scene_of("bona_fide", 4)
    other = replace(scene, seed=scene.seed + 1)
    assert (render(scene, modality) != render(other, modality)).mean() > 0.1
    np.testing.assert_array_equal(true_depth_mm(scene), true_depth_mm(other))


def test_a_flat_print_and_a_panel_are_planes_in_true_depth() -> None:
    for species in ("flat_print", "screen_replay"):
        for seed in range(4):
            scene = replace(uncut(species, seed), pose=replace(FRONTAL, yaw_deg=18.0, pitch_deg=-9.0, roll_deg=7.0))
            z = true_depth_mm(scene)[CENTRE, CENTRE]
            assert plane_residual_mm(z) < 0.05, species


def test_a_plane_lies_where_the_pose_says() -> None:
    pose = replace(FRONTAL, yaw_deg=20.0, pitch_deg=10.0, x_mm=6.0, y_mm=-4.0)
    scene = replace(uncut("flat_print", 0), pose=pose)
    view = look(INFRARED_CAMERA, surface_of(scene), pose, scene.background_mm)
    normal = rotation(pose)[:, 2].astype(np.float64)
    distance = normal @ np.array([pose.x_mm, pose.y_mm, pose.distance_mm])
    expected = distance / np.tensordot(normal, view.rays.astype(np.float64), 1)
    np.testing.assert_allclose(view.z[CENTRE, CENTRE], expected[CENTRE, CENTRE], atol=0.05)


@pytest.mark.parametrize("species", ("bona_fide", "silicone_mask", "bent_print"))
def test_faces_and_bent_sheets_are_not_planes(species: str) -> None:
    scene = replace(scene_of(species, 1), pose=FRONTAL)
    assert plane_residual_mm(true_depth_mm(scene)[CENTRE, CENTRE]) > 5.0


def test_a_silicone_mask_has_the_true_depth_of_the_head_it_copies() -> None:
    for seed in range(5):
        mask = replace(scene_of("silicone_mask", seed), pose=FRONTAL, wear=Wear(), eyes_closed=False)
        face = replace(mask, species="bona_fide", bearer=mask.identity, artefact=Artefact())
        difference = np.abs(true_depth_mm(mask) - true_depth_mm(face))[CENTRE, CENTRE]
        assert np.median(difference) < 1.0
        assert np.quantile(difference, 0.95) < mask.artefact.gap_mm + 2.0


def test_the_ray_caster_lands_on_the_surface() -> None:
    """Reference: the point at the returned depth, taken back to the object frame, has the height field's height."""
    for seed in range(6):
        scene = scene_of("bona_fide", seed)
        surface = surface_of(scene)
        view = look(INFRARED_CAMERA, surface, scene.pose, scene.background_mm)
        front = np.array([scene.pose.x_mm, scene.pose.y_mm, scene.pose.distance_mm])
        front = front + rotation(scene.pose) @ np.array([0.0, 0.0, surface.height[60:110, 70:123].max()])
        local = (np.moveaxis(view.rays * view.z, 0, -1) - front) @ rotation(scene.pose)
        x, y = (local[..., 0] + 192.0) / 2.0, (local[..., 1] + 160.0) / 2.0
        inside = view.present & (x > 0) & (y > 0) & (x < 190) & (y < 190)
        gap = np.abs(-local[..., 2] - bilinear(surface.height, x, y))[inside]
        # OpenCV interpolates on a raster of 1/32 cell: 0.06 mm of u is up to that much of height on a steep face.
        assert np.median(gap) < 0.06
        assert np.quantile(gap, 0.9) < 1.5


def test_a_panel_shows_no_picture_in_infrared_but_one_in_colour() -> None:
    for seed in range(6):
        panel = replace(scene_of("screen_replay", seed), pose=replace(FRONTAL, yaw_deg=25.0))
        lit = panel.lighting
        panel = replace(panel, lighting=replace(lit, sun_ir=0.05, ambient_ir=0.05))
        face = replace(panel, species="bona_fide", bearer=panel.identity, artefact=Artefact())
        assert surface_of(panel).materials.infrared[..., 0].std() < 1e-3
        assert (
            surface_of(panel).materials.infrared[..., 0].mean()
            < 0.25 * surface_of(face).materials.infrared[..., 0].mean()
        )
        emission = surface_of(panel).materials.emission
        assert emission is not None and emission.std() > 0.02


def test_dye_ink_vanishes_in_infrared_and_carbon_ink_stays() -> None:
    scene = uncut("flat_print", 2)

    def contrast(carbon: float) -> float:
        sheet = surface_of(replace(scene, artefact=replace(scene.artefact, carbon=carbon)))
        return float(sheet.materials.infrared[40:120, 60:130, 0].std())

    assert contrast(0.0) < 1e-3
    assert contrast(1.0) > 0.03


def test_depth_noise_grows_with_the_square_of_distance() -> None:
    scene = uncut("flat_print", 2)
    quiet = replace(scene.imaging, depth_dropout=0.0, depth_noise_px=0.3)

    def spread_mm(distance_mm: float) -> float:
        there = replace(scene, imaging=quiet, pose=replace(FRONTAL, distance_mm=distance_mm), background_mm=2000.0)
        error = render(there, "depth")[CENTRE, CENTRE].astype(float) - true_depth_mm(there)[CENTRE, CENTRE]
        return float(np.std(error[np.abs(error) < 100]))

    ratio = spread_mm(700.0) / spread_mm(350.0)
    assert 3.0 < ratio < 6.5


def test_bearing_and_colour_camera_differ_by_parallax_only() -> None:
    scene = replace(scene_of("bona_fide", 2), pose=FRONTAL)
    nearer = replace(scene, pose=replace(FRONTAL, distance_mm=350.0))
    assert true_depth_mm(nearer)[CENTRE, CENTRE].min() == pytest.approx(350.0, abs=3.0)
    assert true_depth_mm(scene)[CENTRE, CENTRE].min() == pytest.approx(450.0, abs=3.0)


def test_an_identity_is_the_same_person_in_every_draw_and_another_number_is_not() -> None:
    assert draw_anatomy(7) == draw_anatomy(7)
    widths = {draw_anatomy(i).half_width for i in range(50)}
    assert len(widths) > 40


def test_splits_share_no_person_and_no_bearer() -> None:
    seen = {
        split: {person for scene in draw_split(split, 300, seed=1) for person in (scene.identity, scene.bearer)}  # type: ignore[arg-type]
        for split in IDENTITIES
    }
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_a_draw_is_half_bona_fide_with_equal_attacks_and_begins_with_the_shorter_draw() -> None:
    scenes = list(draw_split("train", 100, seed=5))
    counts = {species: sum(s.species == species for s in scenes) for species in SPECIES}
    assert counts == {"bona_fide": 50, **dict.fromkeys(ATTACKS, 10)}
    assert list(draw_split("train", 30, seed=5)) == scenes[:30]
    assert list(draw_split("train", 30, seed=6)) != scenes[:30]


def test_rendered_splits_are_stacked_frames_of_the_drawn_scenes() -> None:
    stacked = render_split("validation", 12, seed=2, workers=1)
    scenes = list(draw_split("validation", 12, seed=2))
    assert {key: (value.shape, str(value.dtype)) for key, value in stacked.items()} == {
        "rgb": ((12, SIZE, SIZE, 3), "uint8"),
        "depth": ((12, SIZE, SIZE), "uint16"),
        "ir": ((12, SIZE, SIZE), "uint8"),
        "label": ((12,), "int64"),
        "species": ((12,), "int64"),
    }
    assert [SPECIES[k] for k in stacked["species"]] == [scene.species for scene in scenes]
    np.testing.assert_array_equal(stacked["label"], stacked["species"] == 0)
    np.testing.assert_array_equal(stacked["depth"][7], render(scenes[7], "depth"))


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_a_split() -> None:
    one = render_split("train", 130, seed=3, workers=1)
    two = render_split("train", 130, seed=3, workers=2)
    for key, value in one.items():
        np.testing.assert_array_equal(value, two[key])


def test_bad_arguments_are_named_in_one_line() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match=r"^unknown species 'ghost'; choose one of bona_fide, flat_print, "):
        sample_scene(rng, "ghost", identities=range(4))
    with pytest.raises(UsageError, match=r"^identities range\(0, 1\) must hold at least two numbers, none negative$"):
        sample_scene(rng, identities=range(1))
    with pytest.raises(UsageError, match=r"^unknown modality 'thermal'; the simulated rig has rgb, depth, ir$"):
        render(scene_of("bona_fide"), "thermal")
    with pytest.raises(UsageError, match=r"^unknown split 'tset'; choose one of train, validation, test$"):
        draw_split("tset", 3, seed=0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^n=-1 and seed=0 must not be negative$"):
        draw_split("test", -1, seed=0)
    with pytest.raises(UsageError, match=r"^n=4 and workers=0 must be at least 1$"):
        render_split("test", 4, seed=0, workers=0)
    with pytest.raises(UsageError, match=r"^rate_hz=0 must be above 0$"):
        Rig(rate_hz=0)
    with pytest.raises(UsageError, match=r"^seed=-1 must not be negative$"):
        Rig(seed=-1)
    with pytest.raises(UsageError, match=r"^t_s=-0.1 must be at least 0$"):
        Rig().frame("rgb", -0.1)
    with pytest.raises(UsageError, match=r"^unknown modality 'thermal'; the simulated rig has rgb, depth, ir$"):
        Rig().frame("thermal", 0.0)


def test_the_live_rig_shows_every_attack_and_half_bona_fide_in_each_ten_turns() -> None:
    for seed in (0, 1):
        rig = Rig(seed=seed)
        shown = [rig.species_at(3.0 * turn + 0.5) for turn in range(10)]
        assert sorted(shown) == sorted(["bona_fide"] * 5 + list(ATTACKS))
    assert [Rig(seed=0).species_at(3.0 * k) for k in range(20)] != [Rig(seed=1).species_at(3.0 * k) for k in range(20)]


def test_the_live_rig_shows_test_people_only() -> None:
    rig = Rig(seed=3)
    for turn in range(40):
        scene = rig.scene_at(3.0 * turn)
        assert scene.identity in IDENTITIES["test"] and scene.bearer in IDENTITIES["test"]


def test_live_motion_is_smooth_and_noise_is_fresh_within_a_turn() -> None:
    rig = Rig(seed=0)
    times = [i / 15.0 for i in range(40)]
    scenes = [rig.scene_at(t) for t in times]
    for before, after in pairwise(scenes):
        assert abs(after.pose.yaw_deg - before.pose.yaw_deg) < 1.0
        assert abs(after.pose.distance_mm - before.pose.distance_mm) < 1.5
    assert len({scene.seed for scene in scenes}) == len(scenes)
    frames = [rig.frame("ir", t).astype(int) for t in times[:4]]
    steps = [np.abs(b - a).mean() for a, b in pairwise(frames)]
    assert all(0.05 < step < 12.0 for step in steps)


def test_a_live_frame_belongs_to_the_last_exposure() -> None:
    rig = Rig(seed=0, rate_hz=10.0)
    for i in range(50):
        assert rig.scene_at(i / 10.0).seed == rig.scene_at(i / 10.0 + 0.09).seed
        assert rig.scene_at(i / 10.0).seed != rig.scene_at((i + 1) / 10.0).seed


def test_three_threads_get_the_frames_one_thread_gets() -> None:
    jobs = [(modality, i / 15.0) for i in (0, 1, 44, 45, 46) for modality in MODALITIES]
    alone = [Rig(seed=9).frame(*job) for job in jobs]
    shared = Rig(seed=9)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda job: shared.frame(*job), jobs))
    for job, a, b in zip(jobs, alone, together, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(job))


@pytest.mark.slow
def test_a_live_frame_costs_at_most_eight_milliseconds_of_processor_time() -> None:
    rig = Rig(seed=0)
    for modality in MODALITIES:
        rig.frame(modality, 0.0)
        start = time.process_time()
        for i in range(1, 16):
            rig.frame(modality, i / 15.0)
        assert (time.process_time() - start) / 15 < 0.008, modality
