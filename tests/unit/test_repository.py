"""What the documents say about the repository is true of the repository."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

import mars_edge

FOLDERS = ("mars_edge", "training/mars_training", "export/mars_export", "runtime/mars_runtime")


def text(repository: Path, name: str) -> str:
    return (repository / name).read_text(encoding="utf-8")


def requirements(repository: Path) -> set[str]:
    """Every distribution that pyproject.toml asks for, at run time, in an extra, or to build."""
    project = tomllib.loads(text(repository, "pyproject.toml"))
    extras = project["project"]["optional-dependencies"].values()
    wanted = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(r for e in extras for r in e),
    ]
    found = [re.match(r"[A-Za-z0-9_-]+", requirement) for requirement in wanted]
    return {match.group() for match in found if match} - {"mars-edge", "pip"}


def test_every_dependency_is_justified_in_architecture(repository: Path) -> None:
    document = text(repository, "ARCHITECTURE.md")
    section = document[document.index("## Dependencies") : document.index("## Where do I change X")]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    named = {name for row in rows for name in re.findall(r"[a-z][a-z0-9_-]+", row)}
    assert requirements(repository) - named == set()


def test_every_path_that_architecture_names_exists(repository: Path) -> None:
    document = text(repository, "ARCHITECTURE.md")
    named = set(re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:py|toml|md))`", document))
    assert len(named) > 15
    places = [repository, *(repository / f for f in FOLDERS), repository / "training/mars_training/model"]
    places += [repository / "training", repository / "runtime/mars_runtime/sensors", repository / "docs"]
    missing = [name for name in sorted(named) if not any((place / name).exists() for place in places)]
    assert missing == []


def test_continuous_integration_runs_the_command_of_the_readme(repository: Path) -> None:
    readme = text(repository, "README.md")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", readme, re.S) for line in block.splitlines()]
    assert "scripts/check" in commands
    steps = [line for line in text(repository, ".ci/run").splitlines() if line and not line.startswith("#")]
    assert steps[-1] == "scripts/check </dev/null"


@pytest.mark.parametrize("name", ["scripts/check", ".ci/run"])
def test_a_script_can_be_executed(name: str, repository: Path) -> None:
    assert os.access(repository / name, os.X_OK)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_package_ships_its_types(folder: str, repository: Path) -> None:
    assert (repository / folder / "py.typed").is_file()


def test_the_pinned_executorch_is_the_same_everywhere(repository: Path) -> None:
    pins = [re.findall(r"executorch==([\d.]+)", text(repository, "pyproject.toml"))]
    pins.append(re.findall(r'EXECUTORCH_VERSION = "([\d.]+)"', text(repository, "hatch_build.py")))
    pins.append(re.findall(r"ExecuTorch ([\d.]+\d)", text(repository, "NOTICE")))
    pins.append(re.findall(r"release v([\d.]+\d)", text(repository, "NOTICE")))
    assert all(pins)
    assert len({version for found in pins for version in found}) == 1


def test_the_changelog_has_an_entry_for_this_version(repository: Path) -> None:
    assert f"\n## {mars_edge.__version__} " in text(repository, "CHANGELOG.md")
