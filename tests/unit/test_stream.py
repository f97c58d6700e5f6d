"""What a stream refuses before any thread starts."""

from __future__ import annotations

import pytest

from mars_edge.errors import UsageError
from mars_runtime.pipeline import Settings
from mars_runtime.stream import Stream
from tests.fake_engine import FakeEngine, manifest


def test_a_model_that_answers_with_a_map_is_not_streamed() -> None:
    maps = manifest(task="segmentation", positive_label=None)
    with pytest.raises(UsageError) as caught:
        Stream(FakeEngine(maps), [], Settings(policy=maps.policy))
    assert str(caught.value) == (
        "fake answers with a map (segmentation); streams decide for classification only, "
        "`mars-edge evaluate --model FILE` measures it"
    )
