"""The device side: engines, sensors, health, the decision loop; never imports torch.

For applications: `with mars_runtime.open(model, sensors) as stream: for decision in stream: ...`.
"""

from mars_runtime.application import open_stream as open  # noqa: A004 - read as mars_runtime.open

__all__ = ["open"]
