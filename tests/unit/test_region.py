"""The face region: found where it is, carried to other sensors, kept for a moment, and no decision without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_edge.rig import modalities, render, sample_scene, true_depth_mm
from mars_runtime import region
from mars_runtime.region import Box, Finder, RegionSettings, RegionState
from mars_runtime.sensors.pictures import load_picture
from tests.fake_engine import RIG, manifest
from tests.unit.test_pipeline import Bench

RGB, DEPTH, IR = modalities()


def moved(scene: Any, x_mm: float) -> Any:
    return replace(scene, pose=replace(scene.pose, x_mm=scene.pose.x_mm + x_mm))


def scene(number: int) -> Any:
    return sample_scene(np.random.default_rng(number), "bona_fide", identities=range(750, 1000))


def overlap(a: Box, b: Box) -> float:
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    common = max(0.0, width) * max(0.0, height)
    return common / (a.width * a.height + b.width * b.height - common)


class Fixed:
    """A detector that sees what it is told."""

    def __init__(self, box: Box | None) -> None:
        self.box = box
        self.asked = 0

    def find(self, picture: NDArray[np.uint8]) -> Box | None:
        self.asked += 1
        return self.box


def finder(box: Box | None, settings: RegionSettings | None = None) -> tuple[Finder, Fixed]:
    made = Finder(settings or RegionSettings(margin=0.0), [RGB, DEPTH, IR])
    detector = Fixed(box)
    made._detector = detector
    return made, detector


COLOUR = np.zeros((112, 112, 3), np.uint8)
NOTHING = np.zeros((112, 112), np.uint16)


# Depth.


@pytest.mark.parametrize("number", range(6))
def test_the_nearest_head_is_where_the_rig_put_it_and_moves_with_it(number: int) -> None:
    subject = scene(number)
    truth = true_depth_mm(subject)
    boxes = [region.nearest_head(render(each, "depth"), DEPTH.range) for each in (subject, moved(subject, 40.0))]
    for box in boxes:
        assert box is not None
        middle = truth[int(box.y + box.height / 2), :]
        assert 0.5 < box.height / box.width < 2.0 and np.isfinite(middle).any()
    first, second = boxes
    assert first is not None and second is not None
    near = np.argwhere(truth <= truth.min() + 120.0)
    (top, left), (below, right) = near.min(axis=0), near.max(axis=0)
    face = Box(x=float(left), y=float(top), width=float(right - left), height=float(below - top))
    assert overlap(first, face) > 0.35
    assert second.x - first.x > 3.0 and abs(second.y - first.y) < 6.0


def test_shoulders_are_no_part_of_a_head() -> None:
    depth = np.full((120, 160), 790, np.uint16)
    depth[20:60, 60:90] = 450
    depth[60:120, 30:120] = 470
    box = region.nearest_head(depth, (300.0, 800.0))
    assert box is not None
    assert (box.x, box.y, box.width) == (60.0, 20.0, 30.0) and 35.0 <= box.height <= 45.0


def test_an_empty_or_specked_depth_picture_has_no_head() -> None:
    assert region.nearest_head(NOTHING, DEPTH.range) is None
    specked = NOTHING.copy()
    specked[::17, ::13] = 400
    assert region.nearest_head(specked, DEPTH.range) is None


# Boxes and calibration.


def test_a_box_goes_through_a_homography_and_back_to_itself() -> None:
    matrix = ((1.1, 0.0, 12.0), (0.0, 0.9, -7.0), (0.0, 0.0, 1.0))
    box = Box(x=10.0, y=20.0, width=30.0, height=40.0)
    there = box.mapped(matrix)
    assert there == Box(x=23.0, y=11.0, width=33.0, height=36.0)
    back = there.mapped(region._inverse(matrix))
    np.testing.assert_allclose([back.x, back.y, back.width, back.height], [10, 20, 30, 40], atol=1e-9)


def test_a_region_is_square_has_its_margin_and_is_cut_at_the_edge() -> None:
    grown = Box(x=10.0, y=20.0, width=20.0, height=40.0).grown(0.25)
    assert grown == Box(x=-10.0, y=10.0, width=60.0, height=60.0)
    part = grown.cut(np.arange(100 * 100).reshape(100, 100))
    assert part is not None and part.shape == (60, 50) and part[0, 0] == 1000
    assert Box(x=95.0, y=0.0, width=50.0, height=50.0).cut(np.zeros((100, 100))) is None


def test_a_face_seen_in_colour_is_cropped_at_the_calibrated_place_of_every_other_sensor() -> None:
    shift = ((1.0, 0.0, 10.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    made, _ = finder(
        Box(x=40.0, y=30.0, width=32.0, height=32.0), RegionSettings(margin=0.0, to_reference={"ir": shift})
    )
    large = np.zeros((224, 224), np.uint16)
    _, boxes = made.find(RegionState(), {"rgb": COLOUR, "depth": large, "ir": COLOUR[..., 0]}, 1.0)
    assert boxes is not None
    assert boxes["rgb"] == Box(x=40.0, y=30.0, width=32.0, height=32.0)
    assert boxes["depth"] == Box(x=80.0, y=60.0, width=64.0, height=64.0)
    assert boxes["ir"] == Box(x=30.0, y=30.0, width=32.0, height=32.0)


# Time.


def test_the_last_region_is_used_for_a_moment_and_then_there_is_none() -> None:
    made, detector = finder(Box(x=40.0, y=30.0, width=32.0, height=32.0))
    state, boxes = made.find(RegionState(), {"rgb": COLOUR}, 1.0)
    assert boxes is not None and state.sensor == "rgb"
    detector.box = None
    for now_s, there in ((1.3, True), (1.99, True), (2.01, False), (2.02, False)):
        state, boxes = made.find(state, {"rgb": COLOUR}, now_s)
        assert (boxes is not None) is there, now_s


def test_a_face_is_looked_for_five_times_a_second_whether_there_is_one_or_not() -> None:
    made, detector = finder(Box(x=40.0, y=30.0, width=32.0, height=32.0))
    state = RegionState()
    for step in range(30):
        state, _ = made.find(state, {"rgb": COLOUR}, step / 30.0)
    assert detector.asked == 5
    detector.box, detector.asked = None, 0
    state = RegionState()
    for step in range(30):
        state, _ = made.find(state, {"rgb": COLOUR}, step / 30.0)
    assert detector.asked == 5


def test_depth_is_asked_only_when_colour_and_infrared_are_gone() -> None:
    made, detector = finder(None)
    frames = {name: render(scene(3), name) for name in ("rgb", "depth", "ir")}
    state, boxes = made.find(RegionState(), {"rgb": frames["rgb"], "ir": frames["ir"]}, 1.0)
    assert boxes is None and detector.asked == 2
    state, boxes = made.find(RegionState(), {"depth": frames["depth"]}, 1.0)
    assert boxes is not None and state.sensor == "depth" and detector.asked == 2


def test_a_hand_before_the_camera_is_no_face_while_a_picture_shows_none() -> None:
    made, detector = finder(None)
    depth = render(scene(3), "depth")
    state, boxes = made.find(RegionState(), {"rgb": COLOUR, "depth": depth}, 1.0)
    assert boxes is None and detector.asked == 1
    state, boxes = made.find(state, {"depth": depth}, 1.9)
    assert boxes is None
    state, boxes = made.find(state, {"depth": depth}, 2.1)
    assert boxes is not None and state.sensor == "depth" and detector.asked == 1


def test_a_tick_with_depth_alone_does_not_use_up_the_look_at_a_picture() -> None:
    made, detector = finder(Box(x=40.0, y=30.0, width=32.0, height=32.0))
    state, _ = made.find(RegionState(), {"rgb": COLOUR}, 1.0)
    state, _ = made.find(state, {"depth": NOTHING}, 1.25)
    state, _ = made.find(state, {"rgb": COLOUR}, 1.3)
    assert detector.asked == 2 and state.seen_s == 1.3


def test_a_region_in_pixels_of_a_picture_of_another_size_is_forgotten() -> None:
    made, detector = finder(None)
    depth = np.repeat(np.repeat(render(scene(3), "depth"), 2, axis=0), 2, axis=1)
    state, boxes = made.find(RegionState(), {"depth": depth}, 1.0)
    assert boxes is not None
    state, boxes = made.find(state, {"rgb": COLOUR}, 1.05)
    assert boxes is None and detector.asked == 1


def test_equal_states_and_samples_give_equal_regions() -> None:
    given = {"depth": render(scene(4), "depth")}
    found = [finder(None)[0].find(RegionState(), given, 7.0) for _ in range(2)]
    assert found[0] == found[1]


# Detectors.


def test_the_cascade_is_there_and_finds_no_face_where_none_is() -> None:
    haar = region.Haar()
    assert not haar._cascade.empty()
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    assert haar.find(noise) is None and haar.find(np.zeros((120, 160), np.uint8)) is None


@pytest.mark.parametrize(("name", "least"), [("rgb", 6), ("ir", 10)])
def test_the_cascade_finds_most_rendered_faces_where_they_are(name: str, least: int) -> None:
    haar, found = region.Haar(), 0
    for number in range(12):
        truth = true_depth_mm(scene(number))
        rows, columns = np.nonzero(truth <= truth.min() + 120.0)
        box = haar.find(np.ascontiguousarray(np.squeeze(render(scene(number), name))))
        if box is None:
            continue
        x, y = box.x + box.width / 2, box.y + box.height / 2
        found += columns.min() < x < columns.max() and rows.min() < y < rows.max()
    assert found >= least


@pytest.mark.parametrize("scale", [1, 2])
def test_the_cascade_finds_a_face_of_a_photograph(scale: int) -> None:
    cbook = pytest.importorskip("matplotlib.cbook")
    picture = load_picture(Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    picture = np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)
    # From ear to ear and from the hat to the chin, read off the photograph.
    face = Box(x=165.0 * scale, y=135.0 * scale, width=200.0 * scale, height=195.0 * scale)
    for sample in (picture, np.ascontiguousarray(picture[..., 1])):
        box = region.Haar().find(sample)
        assert box is not None and overlap(box, face) > 0.6


def test_a_decision_without_a_face_says_so_and_blames_no_sensor() -> None:
    bench = Bench(manifest(RIG), region=RegionSettings())
    give(bench, "rgb", COLOUR)
    give(bench, "depth", NOTHING)
    decision = bench.tick()
    assert (decision.outcome.verdict, decision.outcome.reason, decision.subset) == ("abstain", "no face", "none")
    assert {n: s.status for n, s in decision.modalities.items()} == {"rgb": "ok", "depth": "ok", "ir": "missing"}
    assert decision.alarm == () and bench.engine.calls == []
    bench.now_s += 0.1
    for name, frame in sample_face().items():
        give(bench, name, frame)
    bench.now_s += 0.05
    decision = bench.tick()
    assert decision.outcome.reason is None and decision.subset == "rgb+depth+ir"
    assert bench.engine.calls == [({"rgb", "depth", "ir"}, set())]


def test_a_sensor_whose_picture_does_not_show_the_face_takes_no_part() -> None:
    far = ((1.0, 0.0, 500.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    bench = Bench(manifest(RIG), region=RegionSettings(to_reference={"ir": far}))
    for name, frame in sample_face().items():
        give(bench, name, frame)
    decision = bench.tick()
    assert decision.subset == "rgb+depth"
    assert (decision.modalities["ir"].status, decision.modalities["ir"].reason) == ("missing", "no face")


def sample_face() -> dict[str, NDArray[Any]]:
    """A rendered face that the cascade finds in colour."""
    for number in range(12):
        picture = render(scene(number), "rgb")
        if region.Haar().find(picture) is not None:
            return {name: render(scene(number), name) for name in ("rgb", "depth", "ir")}
    raise AssertionError("the cascade found no rendered face")


def give(bench: Bench, name: str, data: NDArray[Any]) -> None:
    bench.now_s += 1e-6
    bench.feeds[name].give(data)


def test_of_several_faces_the_largest_is_taken() -> None:
    assert region._largest([(0.0, 0.0, 5.0, 5.0), (9.0, 9.0, 8.0, 8.0)]) == Box(x=9.0, y=9.0, width=8.0, height=8.0)
    assert region._largest([]) is None


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--face-model .*: no such file; allowed: a YuNet \.onnx, or leave it out"):
        region.YuNet(str(tmp_path / "yunet.onnx"))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"OpenCV cannot read it as YuNet$"):
        region.YuNet(str(tmp_path / "junk.onnx"))


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    sound = Modality(name="audio", kind="audio", rate_hz=8000, window_s=1.0, mel_bands=32)
    with pytest.raises(UsageError) as caught:
        Finder(RegionSettings(), [sound])
    assert str(caught.value) == "--region face: the model takes no picture to find a face in"
    identity = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    with pytest.raises(UsageError) as caught:
        Finder(RegionSettings(to_reference={"thermal": identity}), [RGB, DEPTH])
    assert str(caught.value) == "the calibration names 'thermal'; the model's pictures: rgb, depth"


def test_a_calibration_file_is_read_or_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "calibration.toml"
    path.write_text("[sensor.ir]\nto_reference = [[1, 0, 5], [0, 1, 0], [0, 0, 1]]\n")
    assert region.load_calibration(path) == {"ir": ((1.0, 0.0, 5.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))}
    wrong = {
        "x": "not TOML",
        "[ir]\na = 1": "expected one [sensor.NAME] table per sensor",
        "[sensor.ir]\nto_reference = [[1, 0], [0, 1]]": "expected to_reference = three rows of three numbers",
        "[sensor.ir]\nto_reference = [[0, 0, 0], [0, 1, 0], [0, 0, 1]]": "that can be inverted",
        "[sensor.ir]\nto_reference = [['a', 0, 0], [0, 1, 0], [0, 0, 1]]": "three rows of three numbers",
    }
    for text, message in wrong.items():
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            region.load_calibration(path)
        assert message in str(caught.value) and str(caught.value).startswith(f"--calibration {path}: ")
    with pytest.raises(UsageError, match=r"No such file or directory$"):
        region.load_calibration(tmp_path / "nothing.toml")
