"""A profile that is interrupted, and one whose machine changes half-way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mars_edge.cli import main
from mars_runtime.commands import profile
from mars_runtime.profiling.statistics import distribution, independent


def test_an_interrupted_profile_writes_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile, "measure", interrupted)
    asked = ["--json", str(tmp_path / "a.json"), "--md", str(tmp_path / "a.md"), "--picture", str(tmp_path / "a.svg")]
    assert main(["profile", "--model", "spoken_digits.pte", "--mode", "quick", *asked]) == 130
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "mars-edge: profile: interrupted; nothing is written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_changes_for_good_half_way_leaves_the_median_an_interval() -> None:
    generator = np.random.default_rng(0)
    times = np.concatenate([generator.normal(1.0, 0.01, 1800), generator.normal(5.0, 0.01, 1900)])
    assert independent(times > np.median(times)) == round(np.sqrt(3700))
    found = distribution(times).intervals["p50"]
    assert found.low is not None
    assert found.high is not None
    # Either half could have been all of it.
    assert found.low < 1.1
    assert found.high > 4.9
