"""Evaluation: every subset of what rows have, streamed, with calibration, and nothing measured on nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import jaccard_score, log_loss
from torch import Tensor, nn

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_edge.metrics import CALIBRATION_BINS
from mars_edge.modality import Modality
from mars_training.checkpoint import RunInfo, load_deployed, save_info, save_weights
from mars_training.commands import evaluate as evaluate_command
from mars_training.data.split import IGNORED, Source, Split
from mars_training.evaluate import (
    SubsetScore,
    batch_size_for,
    evaluate,
    logits_by_subset,
    mean_error,
    rows_with,
    score_subsets,
    score_table,
)
from mars_training.methods import build_model, deployed_of
from mars_training.recipe import DataRecipe, EncoderRecipe, ModelRecipe, Recipe

NAMES = ("a", "b", "c")
CLASSES = ("one", "two", "three")


def vector(name: str) -> Modality:
    return Modality(name=name, kind="vector", length=3)


SOURCE = Source(modalities=tuple(map(vector, NAMES)), labels=CLASSES, positive_label=None, note="toy")


class Summing(nn.Module):
    """Every modality gives class scores; the logits are the sum over those that are present."""

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Identity() for name in names})
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.encoded = 0

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.encoders)

    def encode_all(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        self.encoded += len(inputs[self.modalities[0]])
        return [self.encoders[name](inputs[name]) for name in self.modalities]

    def classify(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        masks = present.unbind(dim=1)
        parts = [f * p.view(-1, *[1] * (f.dim() - 1)) for f, p in zip(features, masks, strict=True)]
        return self.scale * torch.stack(parts).sum(dim=0)


def split_of(n: int = 60, *, present: Tensor | None = None, seed: int = 0) -> Split:
    """Vectors that favour the label's class, with noise; zeros where a row lacks a modality."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    inputs = {}
    for index, name in enumerate(NAMES):
        x = torch.randn(n, 3, generator=generator) + torch.eye(3)[labels]
        inputs[name] = x if present is None else x * present[:, index : index + 1]
    return Split(inputs=inputs, labels=labels, groups=labels, group_names=CLASSES, present=present)


def some_missing(n: int = 60) -> Tensor:
    """Row i has the modalities that are the bits of i + 1 modulo 8; nobody has none."""
    return torch.tensor([[bool(((i % 7) + 1) >> bit & 1) for bit in range(3)] for i in range(n)])


def expected_logits(split: Split, row: int, subset: Sequence[str]) -> NDArray[np.float64]:
    total = sum(split.inputs[name][torch.tensor([row])][0].double() for name in subset)
    assert isinstance(total, Tensor)
    result: NDArray[np.float64] = 2.0 * total.numpy()
    return result


def test_a_row_counts_only_in_subsets_it_has_all_of() -> None:
    present = some_missing()
    split = split_of(present=present)
    found = {s.subset: s for s in score_subsets(Summing(), split, SOURCE)}
    for subset in subsets.all_subsets(NAMES):
        rows = [i for i in range(60) if all(present[i, NAMES.index(name)] for name in subset)]
        assert rows_with(split, subset).tolist() == rows
        hits = sum(int(expected_logits(split, i, subset).argmax()) == i % 3 for i in rows)
        score = found[subsets.label(subset, NAMES)]
        assert (score.n, score.value) == (len(rows), hits / len(rows))
        assert score.low <= score.value <= score.high


def test_a_subset_no_row_has_is_not_measured_and_in_no_mean() -> None:
    present = torch.ones(60, 3, dtype=torch.bool)
    present[:30, 0] = False
    present[30:, 1] = False
    found = evaluate(Summing(), split_of(present=present), SOURCE)
    assert found.unmeasured == {"a+b": "no row has it", "a+b+c": "no row has it"}
    assert [s.subset for s in found.scores] == ["a", "b", "c", "a+c", "b+c"]
    assert mean_error(found.scores) == pytest.approx(np.mean([1 - s.value for s in found.scores]))
    table = score_table(found.scores, found.unmeasured).splitlines()
    assert table[6].split() == ["a+b", "-", "-", "0", "no", "row", "has", "it"]
    assert table[-1] == "n = 0: not measured, and in no mean"


def test_nothing_measured_has_no_mean() -> None:
    with pytest.raises(UsageError) as caught:
        mean_error([])
    assert str(caught.value) == "0 subsets of modalities have rows to measure on; at least 1 is needed"


def test_live_and_spoof_need_both_classes_in_every_subset() -> None:
    source = dataclasses.replace(SOURCE, positive_label="one")
    present = torch.ones(60, 3, dtype=torch.bool)
    present[torch.arange(60) % 3 == 0, 2] = False
    found = evaluate(Summing(), split_of(present=present), source)
    assert found.unmeasured == dict.fromkeys(("c", "a+c", "b+c", "a+b+c"), "its rows are all of one class")
    assert [s.metric for s in found.scores] == ["acer"] * 3


def test_modalities_that_are_always_there_are_in_every_evaluated_subset() -> None:
    found = score_subsets(Summing(), split_of(), SOURCE, always_present=("b",))
    assert [s.subset for s in found] == ["b", "a+b", "b+c", "a+b+c"]
    with pytest.raises(UsageError) as caught:
        score_subsets(Summing(), split_of(), SOURCE, always_present=("d",))
    assert str(caught.value) == "unknown modality 'd'; this model has: a, b, c"


def test_calibration_and_likelihood_are_those_of_a_plain_loop() -> None:
    split = split_of(200)
    (score,) = [s for s in score_subsets(Summing(), split, SOURCE) if s.subset == "a+c"]
    bins: dict[int, list[tuple[float, bool]]] = {}
    shares = []
    for i in range(200):
        powers = np.exp(expected_logits(split, i, ("a", "c")))
        share = powers / powers.sum()
        shares.append(share)
        bins.setdefault(math.ceil(share.max() * CALIBRATION_BINS), []).append((share.max(), share.argmax() == i % 3))
    gaps = [len(b) * abs(np.mean([c for c, _ in b]) - np.mean([hit for _, hit in b])) for b in bins.values()]
    assert score.ece == pytest.approx(sum(gaps) / 200, abs=1e-6)
    assert score.nll == pytest.approx(log_loss(split.class_labels.numpy(), np.array(shares)), rel=1e-5)


def test_every_sample_is_encoded_once_whatever_the_batch_size() -> None:
    split = split_of(50)
    for size in (1, 7, 64):
        model = Summing()
        logits = logits_by_subset(model, split, subsets.all_subsets(NAMES), batch_size=size)
        assert model.encoded == 50
        for subset, rows in logits.items():
            reference = np.array([expected_logits(split, i, subset) for i in range(50)])
            np.testing.assert_allclose(rows.numpy(), reference, atol=1e-5)


def test_large_images_are_evaluated_few_at_a_time() -> None:
    big = Split(
        inputs={"a": torch.zeros(3, 4, 1024, 1024, dtype=torch.float16)},
        labels=torch.zeros(3, dtype=torch.long),
        groups=torch.zeros(3, dtype=torch.long),
        group_names=("x",),
    )
    assert (batch_size_for(big), batch_size_for(split_of())) == (4, 128)


def maps_of(n: int = 12, *, present: Tensor | None = None) -> Split:
    """Score maps (3, 6, 5) that favour the label of each pixel; a fifth of the pixels belong to no class."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (n, 6, 5), generator=generator)
    cue = torch.eye(3)[labels].movedim(-1, 1)
    inputs = {name: cue + torch.randn(n, 3, 6, 5, generator=generator) for name in NAMES}
    labels[torch.rand(n, 6, 5, generator=generator) < 0.2] = IGNORED
    group = torch.zeros(n, dtype=torch.long)
    return Split(inputs=inputs, labels=labels, groups=group, group_names=("x",), present=present)


MAPS = dataclasses.replace(SOURCE, task="segmentation")


def test_maps_are_scored_the_same_however_they_are_streamed() -> None:
    split = maps_of()
    whole = evaluate(Summing(), split, MAPS, batch_size=12)
    for size in (1, 5):
        parts = evaluate(Summing(), split, MAPS, batch_size=size)
        assert list(map(_rounded, parts.scores)) == list(map(_rounded, whole.scores))


def _rounded(score: SubsetScore) -> dict[str, object]:
    table = dataclasses.asdict(score)
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in table.items()}


def test_miou_and_calibration_of_maps_are_those_of_all_labelled_pixels_together() -> None:
    split = maps_of()
    assert isinstance(split.labels, Tensor)
    score = evaluate(Summing(), split, MAPS, batch_size=5).scores[-1]
    logits = 2.0 * torch.stack([split.inputs[name][torch.arange(12)] for name in NAMES]).sum(dim=0)
    known = split.labels != IGNORED
    expected, chosen = split.labels[known].numpy(), logits.argmax(dim=1)[known].numpy()
    per_class = jaccard_score(expected, chosen, average=None)
    assert (score.subset, score.metric, score.n) == ("a+b+c", "miou", 12)
    assert score.value == pytest.approx(per_class.mean())
    assert list(score.detail["iou"].values()) == pytest.approx(per_class.tolist())
    assert 0 < score.low < score.value < score.high < 1
    shares = logits.softmax(dim=1).movedim(1, -1)[known].numpy()
    right = shares[np.arange(len(expected)), expected]
    assert score.nll == pytest.approx(-np.log(right).mean(), rel=1e-5)
    which = np.ceil(shares.max(axis=1) * CALIBRATION_BINS)
    hit = chosen == expected
    gaps = [abs((shares.max(axis=1) - hit)[which == b].sum()) for b in np.unique(which)]
    assert score.ece == pytest.approx(sum(gaps) / len(expected), abs=1e-5)


def test_what_is_answered_on_an_ignored_pixel_changes_nothing() -> None:
    split = maps_of()
    assert isinstance(split.labels, Tensor)
    noise = 9.0 * torch.randn(12, 3, 6, 5) * (split.labels == IGNORED)[:, None]
    other = dataclasses.replace(split, inputs={name: split.inputs[name][torch.arange(12)] + noise for name in NAMES})
    assert [_rounded(s) for s in evaluate(Summing(), split, MAPS).scores] == [
        _rounded(s) for s in evaluate(Summing(), other, MAPS).scores
    ]


def test_a_class_that_does_not_occur_has_no_iou_and_is_in_no_mean() -> None:
    split = maps_of()
    assert isinstance(split.labels, Tensor)
    labels = torch.where(split.labels == 2, 0, split.labels)
    inputs = {name: split.inputs[name][torch.arange(12)].clone() for name in NAMES}
    for x in inputs.values():
        x[:, 2] = -50.0
    score = evaluate(Summing(), dataclasses.replace(split, labels=labels, inputs=inputs), MAPS).scores[-1]
    iou = score.detail["iou"]
    assert iou["three"] is None
    assert score.value == pytest.approx((iou["one"] + iou["two"]) / 2)
    json.dumps(dataclasses.asdict(score), allow_nan=False)


def test_maps_of_rows_that_lack_a_modality_count_only_where_they_have_all() -> None:
    present = torch.ones(12, 3, dtype=torch.bool)
    present[4:, 2] = False
    found = {s.subset: s for s in evaluate(Summing(), maps_of(present=present), MAPS, batch_size=3).scores}
    assert {name: s.n for name, s in found.items()} == {
        "a": 12, "b": 12, "c": 4, "a+b": 12, "a+c": 4, "b+c": 4, "a+b+c": 4,
    }  # fmt: skip
    first = maps_of().take(torch.arange(4))
    assert _rounded(evaluate(Summing(), first, MAPS).scores[-1]) == _rounded(found["a+b+c"])


def test_maps_without_a_labelled_pixel_are_not_measured() -> None:
    split = maps_of(2)
    blank = dataclasses.replace(split, labels=torch.full((2, 6, 5), IGNORED))
    assert set(evaluate(Summing(), blank, MAPS).unmeasured.values()) == {"its rows have no labelled pixel"}


def test_a_segmentation_model_is_evaluated_on_every_subset() -> None:
    images = tuple(Modality(name=n, kind="image", size=(32, 32), dtype="uint8", range=(0, 255)) for n in ("rgb", "nir"))
    source = Source(modalities=images, labels=CLASSES, positive_label=None, note="toy", task="segmentation")
    pyramid = EncoderRecipe(kind="mobile_seg", channels=(8, 8, 8), strides=(2, 2, 2), depths=(1, 1, 1), aspp=8, low=4)
    recipe = Recipe(
        name="toy",
        data=DataRecipe(reader="rig"),
        model=ModelRecipe(
            encoders={"rgb": pyramid, "nir": pyramid}, experts=4, active_experts=2, width=8, expert_channels=(8,),
            fusion_stride=1, expert_stride=1,
        ),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    split = Split(
        inputs={m.name: torch.rand(5, 1, 32, 32, generator=generator) for m in images},
        labels=torch.randint(0, 3, (5, 32, 32), generator=generator),
        groups=torch.zeros(5, dtype=torch.long),
        group_names=("x",),
    )
    found = evaluate(deployed_of(build_model(recipe, images, 3, "segmentation")), split, source, batch_size=2)
    assert [(s.subset, s.metric, s.n) for s in found.scores] == [(n, "miou", 5) for n in ("rgb", "nir", "rgb+nir")]
    assert all(0.0 <= s.low <= s.value <= s.high < 0.4 and s.nll is not None and s.nll > 1.0 for s in found.scores)


def test_the_table_fits_a_terminal_whatever_the_names() -> None:
    rate = {"value": 0.5, "low": 0.1, "high": 1.0, "errors": 1, "n": 2}
    detail = {"bpcer": rate, "apcer_worst": rate, "worst_species": "a_mask_of_a_very_long_name_indeed"}
    long = SubsetScore(
        subset="+".join(f"modality_number_{i}" for i in range(5)),
        metric="acer", value=1.0, low=1.0, high=1.0, n=57710, detail=detail, ece=1.0, nll=123.456,
    )  # fmt: skip
    short = dataclasses.replace(long, subset="rgb+depth+ir", detail={**detail, "worst_species": "silicone_mask"})
    assert max(map(len, score_table([long, short], {long.subset: "no row has it"}).splitlines())) <= 100
    assert "100.00" in score_table([long]) and "(silicone_mask)" in score_table([short])


def test_scores_written_before_calibration_was_measured_can_still_be_read() -> None:
    old = {"subset": "a", "metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "detail": {}}
    score = SubsetScore(**old)  # type: ignore[arg-type]
    assert (score.ece, score.nll) == (None, None)
    assert score_table([score]).splitlines()[1].split()[-2:] == ["-", "-"]


IMAGES = tuple(Modality(name=n, kind="image", size=(8, 8), dtype="uint8", range=(0, 255)) for n in ("rgb", "depth"))
TOY = Source(modalities=IMAGES, labels=("spoof", "live"), positive_label="live", note="toy")
SMALL = EncoderRecipe(channels=(4,), strides=(2,))
RECIPE = Recipe(
    name="toy",
    data=DataRecipe(reader="rig"),
    model=ModelRecipe(
        encoders={"rgb": SMALL, "depth": SMALL}, experts=4, active_experts=2, width=8, expert_channels=(8,)
    ),
)


def raw_split(n: int = 40) -> Split:
    """Two classes of 8 x 8 images with the raw samples behind them."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % 2
    raw = {m.name: generator.integers(0, 200, (n, 8, 8)).astype(np.uint8) for m in IMAGES}
    for x in raw.values():
        x[labels == 1, :4] += 50
    return Split(
        inputs={m.name: torch.stack([torch.from_numpy(m.preprocess(x)) for x in raw[m.name]]) for m in IMAGES},
        labels=torch.from_numpy(labels),
        groups=torch.from_numpy(1 - labels),
        group_names=("bona_fide", "print"),
        raw=raw,
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory of an untrained model, whose data set is `raw_split`."""
    torch.manual_seed(0)
    model = build_model(RECIPE, IMAGES, 2)
    save_info(tmp_path, RunInfo(recipe=RECIPE, seed=0, source=TOY))
    for which in ("selected", "last"):
        save_weights(tmp_path / f"{which}.safetensors", model.state_dict(), epoch=0)
    monkeypatch.setattr(evaluate_command, "load_split", lambda recipe, split, folder: raw_split())
    return tmp_path


def test_the_command_prints_every_subset_and_every_fault(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_command.main([str(run), "--json", "--quiet", "--faults", "--fault-samples", "10"]) == 0
    out, err = capsys.readouterr()
    table = json.loads(out)
    assert err == ""
    assert [s["subset"] for s in table["selected"]["subsets"]] == ["rgb", "depth", "rgb+depth"]
    assert {"mean_error", "worst", "subsets", "unmeasured", "faults"} == set(table["selected"])
    assert set(table["last"]) == {"mean_error", "worst", "subsets", "unmeasured"}
    worst = max(table["last"]["subsets"], key=lambda s: s["value"])
    assert table["last"]["worst"] == {"subset": worst["subset"], "error": worst["value"]}
    faults = table["selected"]["faults"]
    assert (faults["samples"], [m["modality"] for m in faults["modalities"]]) == (10, ["rgb", "depth"])
    swap = faults["modalities"][0]
    assert swap["faults"]["swap"]["worth"] == pytest.approx(swap["faults"]["swap"]["value"] - swap["masked"]["value"])


def test_the_command_prints_tables_for_people(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_command.main([str(run), "--which", "last", "--faults"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("last epoch\nsubset") and "undetected faults, all modalities present, 40 samples" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "faults: depth: garbage" in err


def test_the_command_needs_raw_samples_for_faults(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = dataclasses.replace(raw_split(), raw=None)
    monkeypatch.setattr(evaluate_command, "load_split", lambda recipe, split, folder: blind)
    with pytest.raises(UsageError) as caught:
        evaluate_command.main([str(run), "--faults", "--quiet"])
    assert str(caught.value) == "faults need the raw samples of 'rgb', which this data set's reader does not give"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_a_gpu_is_evaluated_there_to_the_same_scores(run: Path) -> None:
    model, _ = load_deployed(run)
    on_cpu = score_subsets(model, raw_split(), TOY)
    assert isinstance(model, nn.Module)
    on_gpu = score_subsets(model.cuda(), raw_split(), TOY)
    assert [s.value for s in on_cpu] == [s.value for s in on_gpu]
