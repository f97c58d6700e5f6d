"""Artifacts of one tiny model, made once for all engine suites."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mars_edge import artifact
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
def tiny(request: pytest.FixtureRequest) -> Artifacts:
    # Here, because the suites of sensors share this file and need no torch.
    from tests.helpers import tiny_artifact
    from tests.helpers.tiny_artifact import TinyModel, write_onnx, write_pte

    model = TinyModel.create()
    # Lowering takes most of a minute on a small machine; equal sources and versions give equal files.
    key = hashlib.sha256(model.manifest().to_json().encode() + metadata.version("executorch").encode())
    for source in (tiny_artifact.__file__, artifact.__file__):
        key.update(Path(source).read_bytes())
    folder = Path(request.config.cache.mkdir("tiny_artifacts")) / key.hexdigest()[:16]
    made = Artifacts(
        model=model, in_place=folder / "in_place.pte", planned=folder / "planned.pte", onnx=folder / "tiny.onnx"
    )
    if not made.onnx.exists():
        folder.mkdir(exist_ok=True)
        write_pte(made.model, made.in_place, made.planned)
        write_onnx(made.model, made.onnx)
    return made


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
