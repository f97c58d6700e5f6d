"""Generated scenes: MCubeS' layout, equal for equal seeds, and no sensor that makes the others superfluous.

Axes: P pixels, F features.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mars_training.costs import costs
from mars_training.data.load import describe, load_split
from mars_training.data.mcubes import LABELS
from mars_training.data.split import IGNORED, Split
from mars_training.methods import build_model, deployed_of
from mars_training.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def scenes(repository: Path) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("make_material_scenes", _script(repository))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training scenes, one to validate and one to test on; read only."""
    path = tmp_path_factory.mktemp("scenes") / "generated"
    counts = ["--train", "2", "--val", "1", "--test", "1"]
    ended = _run(repository, "-o", str(path), *counts)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{path}\n", "")
    return path


@pytest.fixture(scope="module")
def recipe(repository: Path) -> Recipe:
    return load_recipe(repository / "training" / "recipes" / "generated_scenes.toml")


@pytest.fixture(scope="module")
def train(recipe: Recipe, folder: Path) -> Split:
    return load_split(recipe, "train", folder=folder)


def _script(repository: Path) -> Path:
    return repository / "docs" / "make_material_scenes.py"


def _run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(_script(repository)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_recipe_reads_every_modality_of_every_scene(recipe: Recipe, train: Split) -> None:
    batch = train.batch(torch.arange(2))
    assert {name: tuple(x.shape[1:]) for name, x in batch.items()} == {
        m.name: m.shape for m in describe(recipe.data).modalities
    }
    for name, x in batch.items():
        assert float(x.min()) >= 0.0 and float(x.max()) <= 1.0 and float(x.float().std()) > 0.03, name
    assert bool(train.presence.all())


def test_the_label_of_every_pixel_is_that_of_its_material(scenes: ModuleType, train: Split) -> None:
    assert {name: LABELS.index(name) for name in scenes.MATERIALS} == scenes.LABELS
    found = set(torch.unique(train.labels[torch.arange(2)]).tolist())
    assert len(found - {IGNORED}) >= 5 and found <= {*scenes.LABELS.values(), IGNORED}


def test_a_scene_depends_on_the_seed_and_its_number_alone(scenes: ModuleType, folder: Path) -> None:
    stored = cv2.imread(str(folder / "GT" / "generated-train-001_0.png"), cv2.IMREAD_UNCHANGED)
    assert stored is not None and stored.shape == scenes.STORED
    again = scenes.make_scene(np.random.default_rng([0, 0, 1])).label
    assert np.array_equal(stored, again.repeat(8, axis=0).repeat(8, axis=1))
    other = scenes.make_scene(np.random.default_rng([1, 0, 1])).label
    assert not np.array_equal(again, other)


def test_the_angle_is_stored_as_sine_and_cosine_of_its_double(scenes: ModuleType, folder: Path) -> None:
    sine, cosine = (np.load(folder / f"polL_aolp_{part}" / "generated-test-000_0.npy") for part in ("sin", "cos"))
    phi = scenes.make_scene(np.random.default_rng([0, 2, 0])).phi
    np.testing.assert_allclose(sine[::8, ::8], np.sin(2.0 * phi), atol=1e-6)
    np.testing.assert_allclose(cosine[::8, ::8], np.cos(2.0 * phi), atol=1e-6)


def _pixels(scenes: ModuleType, count: int) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Per modality the values (P, F) of every fourth pixel of `count` scenes, and the labels (P,)."""
    made = [scenes.make_scene(np.random.default_rng([9, 9, i])) for i in range(count)]
    columns = {
        "rgb": [s.colour for s in made],
        "aolp": [np.stack([np.sin(2 * s.phi), np.cos(2 * s.phi)], axis=2) for s in made],
        "dolp": [s.dolp[:, :, None] for s in made],
        "nir": [s.nir[:, :, None] for s in made],
    }
    # As blurred as a network at stride 4 sees them: single pixels are mostly noise.
    values = {
        name: np.concatenate([cv2.blur(x, (5, 5)).reshape(*x.shape)[::4, ::4].reshape(-1, x.shape[2]) for x in found])
        for name, found in columns.items()
    }
    labels = np.concatenate([s.label[::4, ::4].ravel() for s in made])
    return {name: x.astype(np.float64) for name, x in values.items()}, labels.astype(np.int64)


def _told_apart(values: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The share of pixels (P, F) that one Gaussian per material, fitted to them, gives to the right one."""
    scores = []
    classes = np.unique(labels)
    for label in classes:
        own = values[labels == label]
        centred = values - own.mean(axis=0)
        covariance = np.atleast_2d(np.cov(own.T)) + 1e-6 * np.eye(values.shape[1])
        distance = np.einsum("pf,fg,pg->p", centred, np.linalg.inv(covariance), centred)
        scores.append(-0.5 * distance - 0.5 * np.linalg.slogdet(covariance)[1])
    return float(np.mean(classes[np.argmax(scores, axis=0)] == labels))


def test_every_sensor_adds_to_colour_and_none_makes_the_others_superfluous(scenes: ModuleType) -> None:
    values, labels = _pixels(scenes, 24)

    def share(*names: str) -> float:
        return _told_apart(np.concatenate([values[name] for name in names], axis=1), labels)

    colour, everything = share("rgb"), share("rgb", "aolp", "dolp", "nir")
    for name in ("aolp", "dolp", "nir"):
        others = [n for n in values if n != name]
        assert share("rgb", name) > colour + 0.05, f"{name} beside colour"
        assert everything > share(*others) + 0.02, f"all beside all but {name}"
    assert colour < 0.7 < everything


@pytest.mark.parametrize(
    ("standing", "lying"), [("glass", "water"), ("plastic", "asphalt")], ids=["strongly", "weakly polarised"]
)
def test_the_angle_tells_what_stands_from_what_lies(scenes: ModuleType, standing: str, lying: str) -> None:
    values, labels = _pixels(scenes, 12)
    cosine = values["aolp"][:, 1]
    assert cosine[labels == scenes.LABELS[standing]].mean() > 0.4
    assert cosine[labels == scenes.LABELS[lying]].mean() < -0.4


def test_the_images_of_the_recipe_have_sides_that_the_total_stride_divides(recipe: Recipe) -> None:
    source = describe(recipe.data)
    with torch.device("meta"):
        model = build_model(recipe, source.modalities, len(source.labels), source.task)
    # `costs` refuses logits of another size than the images.
    found = costs(deployed_of(model), source.modalities, source.task)
    assert found.macs(("rgb",)) < found.macs(source.names)


def test_the_data_says_that_it_was_generated(folder: Path) -> None:
    assert (folder / "GENERATED.txt").read_text(encoding="utf-8") == (
        "Generated by docs/make_material_scenes.py in the layout of MCubeS. These are not photographs.\nseed 0\n"
    )
    for split in ("train", "val", "test"):
        for name in (folder / "list_folder" / f"{split}.txt").read_text(encoding="utf-8").split():
            assert name.startswith(f"generated-{split}-")


def test_a_folder_that_is_there_is_left_alone(repository: Path, tmp_path: Path) -> None:
    ended = _run(repository, "-o", str(tmp_path))
    expected = f"make_material_scenes: {tmp_path} exists already; give a new folder\n"
    assert (ended.returncode, ended.stderr) == (2, expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--seed", "-1"), ("--val", "0")])
def test_a_number_that_makes_no_sense_writes_nothing(
    repository: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ended = _run(repository, "-o", str(tmp_path / "new"), *arguments)
    assert (ended.returncode, ended.stderr) == (
        2,
        "make_material_scenes: a seed is 0 or more, and every split has at least 1 scene\n",
    )
    assert not (tmp_path / "new").exists()
