"""The exception tree: one root, and the exit codes the commands promise."""

from __future__ import annotations

import inspect

import pytest

from mars_edge import errors

EXIT_CODES = {
    "MarsEdgeError": 1,
    "UsageError": 2,
    "NoSensorError": 3,
    "ModelFileError": 4,
    "ObjectiveMissedError": 5,
    "EngineError": 1,
    "SensorError": 1,
    "ParityError": 1,
}


def classes() -> dict[str, type[BaseException]]:
    found = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in found if issubclass(kind, BaseException)}


def test_every_exception_is_a_mars_edge_error_with_the_promised_exit_code() -> None:
    assert {name: kind.exit_code for name, kind in classes().items()} == EXIT_CODES  # type: ignore[attr-defined]
    assert all(issubclass(kind, errors.MarsEdgeError) for kind in classes().values())


@pytest.mark.parametrize("name", EXIT_CODES)
def test_the_drawing_at_the_top_of_the_module_is_the_truth(name: str) -> None:
    lines = [line.lstrip("|`- ") for line in (errors.__doc__ or "").splitlines()]
    drawn = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(name + " ")}
    assert drawn == {name: EXIT_CODES[name]}


def test_a_sensor_is_only_gone_when_the_driver_says_so() -> None:
    assert not errors.SensorError("timed out").gone
    gone = errors.SensorError("/dev/video2 vanished", gone=True)
    assert gone.gone
    assert str(gone) == "/dev/video2 vanished"
