"""How benchmarks/browser_agreement.py sorts what a page answers, and what it reports of two paces."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def benchmark(repository: Path) -> Iterator[ModuleType]:
    sys.path.insert(0, str(repository / "benchmarks"))
    yield importlib.import_module("browser_agreement")
    sys.path.remove(str(repository / "benchmarks"))


class Page:
    """Answers sample i under subset number s with the logits (i, s) and the experts (9, s)."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, int]] = []

    def evaluate(self, script: str, given: Any) -> list[Any]:
        block, count, wanted = given
        self.blocks.append((block, count))
        return [[[float(i), float(s)], [9, s]] for i in range(block, block + count) for s in range(len(wanted))]


def test_every_sample_is_asked_once_under_every_subset(benchmark: ModuleType) -> None:
    page, subsets = Page(), [("a",), ("b",), ("a", "b")]
    found = benchmark._asked(page, {"a": np.zeros((45, 2), np.float32), "b": np.zeros((45, 3), np.float32)}, subsets)
    assert page.blocks == [(0, 20), (20, 20), (40, 5)]
    for number, subset in enumerate(subsets):
        assert found[subset].logits.tolist() == [[float(i), float(number)] for i in range(45)]
        assert found[subset].experts.tolist() == [sorted([9, number])] * 45


def test_a_block_holds_its_samples_in_the_order_of_the_modalities(benchmark: ModuleType) -> None:
    class Manifest:
        names = ("b", "a")

    samples = {
        name: np.random.default_rng(index).random((22, 2, 3), dtype=np.float32) for index, name in enumerate("ab")
    }
    asset = benchmark._block(samples, Manifest, 20)
    given = np.frombuffer(asset.stored, "<f4").reshape(2, 2, 2, 3)
    assert np.array_equal(given[:, 0], samples["b"][20:])
    assert np.array_equal(given[:, 1], samples["a"][20:])


def test_a_pace_is_told_as_a_ratio(benchmark: ModuleType) -> None:
    took = np.array([[2.0, 1.0], [4.0, 3.0], [6.0, 2.0]])
    paces = {"python onnxruntime": benchmark._pace(took / 2.0), "browser": benchmark._pace(took)}
    assert benchmark._pace_table(paces).splitlines()[2:] == [
        "| python onnxruntime | 2.00 | 2.90 | 1.00 | 1.00 |",
        "| browser | 4.00 | 5.80 | 2.00 | 2.00 |",
    ]


def test_a_float_model_has_no_steps_to_count_in(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.helpers.tiny_sound import write_onnx

    write_onnx(tmp_path / "tiny_sound.onnx")
    monkeypatch.setattr(sys, "argv", ["browser_agreement.py", str(tmp_path / "tiny_sound.onnx")])
    assert benchmark.main() == 2
    assert capsys.readouterr().err == (
        "browser_agreement: tiny_sound.onnx has a float output: there are no output steps to count in\n"
    )
