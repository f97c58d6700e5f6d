"""Artifacts of one tiny model, made once for all engine suites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mars_runtime.engines import Engine, engine_status, open_engine
from mars_runtime.engines.protocol import BINDING, NATIVE, ONNX

if TYPE_CHECKING:
    from tests.helpers.tiny_artifact import TinyModel


@dataclass(frozen=True, kw_only=True)
class Artifacts:
    """The same model three times; the two .pte differ in who owns inputs and outputs."""

    model: TinyModel
    in_place: Path
    planned: Path
    onnx: Path


ENGINE_CASES = {
    f"{NATIVE}/in_place": (NATIVE, "in_place"),
    f"{NATIVE}/planned": (NATIVE, "planned"),
    f"{BINDING}/in_place": (BINDING, "in_place"),
    f"{BINDING}/planned": (BINDING, "planned"),
    ONNX: (ONNX, "onnx"),
}


def require_engine(name: str) -> None:
    """Skips the test, with the reason, where the engine is not installed."""
    status = {entry.name: entry for entry in engine_status()}[name]
    if not status.available:
        pytest.skip(f"{name}: {status.detail}")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    # Here, because the suites of sensors share this file and need no torch.
    from tests.helpers.tiny_artifact import TinyModel, write_onnx, write_pte

    folder = tmp_path_factory.mktemp("tiny")
    artifacts = Artifacts(
        model=TinyModel.create(),
        in_place=folder / "in_place.pte",
        planned=folder / "planned.pte",
        onnx=folder / "tiny.onnx",
    )
    write_pte(artifacts.model, artifacts.in_place, artifacts.planned)
    write_onnx(artifacts.model, artifacts.onnx)
    return artifacts


@pytest.fixture(scope="module", params=sorted(ENGINE_CASES))
def engine(request: pytest.FixtureRequest, tiny: Artifacts) -> Iterator[Engine]:
    """Every engine in turn, open on the tiny model."""
    name, artifact = ENGINE_CASES[request.param]
    require_engine(name)
    opened = open_engine(getattr(tiny, artifact), engine=name)
    yield opened
    opened.close()


@pytest.fixture(params=["in_place", "planned"])
def tiny_pte(request: pytest.FixtureRequest, tiny: Artifacts) -> Path:
    path: Path = getattr(tiny, request.param)
    return path
