"""The exceptions of mars-edge and the exit code each one ends a command with.

MarsEdgeError            1
|-- UsageError           2   the request is wrong: flag, name, file, channel count, recipe
|-- NoSensorError        3   no sensor ever gave a usable sample
|-- ModelFileError       4   the artifact is truncated, altered, or not ours
|-- ObjectiveMissedError 5   a service-level objective was not met
|-- EngineError          1   an engine failed to execute a method
|-- SensorError          1   a driver failed (never ends a stream by itself)
`-- ParityError          1   an exported artifact differs from the model it came from
"""

from __future__ import annotations


class MarsEdgeError(Exception):
    """Anything mars-edge raises on purpose; `str(error)` is one line for a person."""

    exit_code: int = 1


class UsageError(MarsEdgeError):
    """The request is wrong; the message says what, its value, and what is allowed."""

    exit_code = 2


class NoSensorError(MarsEdgeError):
    """No sensor ever gave a usable sample."""

    exit_code = 3


class ModelFileError(MarsEdgeError):
    """The model file cannot be trusted: truncated, altered, of an unknown schema, or not ours."""

    exit_code = 4


class ObjectiveMissedError(MarsEdgeError):
    """A measured value missed the objective the user set."""

    exit_code = 5


class EngineError(MarsEdgeError):
    """An engine failed to execute a method; the message names the method and the argument."""


class SensorError(MarsEdgeError):
    """A sensor driver failed; `gone` is true when the device itself has vanished."""

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class ParityError(MarsEdgeError):
    """An exported artifact does not answer as the model it was made from."""
