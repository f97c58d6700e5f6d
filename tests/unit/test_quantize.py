"""Quantized pieces: folding changes nothing, conversion is exact, and one export serves every batch size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mars_edge.errors import ParityError
from mars_export import cache, pieces, quantize
from mars_export.biases import round_biases
from mars_export.hush import hushed
from mars_training.model.mars import DeployedMars
from tests.helpers.tiny_mars import NAMES, SHAPES, model, recipe, split

EVERYTHING = torch.ones(8, len(NAMES), dtype=torch.bool)


@pytest.fixture(scope="module")
def prepared() -> DeployedMars:
    deployed = model().deployed
    with hushed():
        quantize.prepare(deployed, SHAPES)
        deployed(split(8, 1).batch(torch.arange(8)), EVERYTHING)
        quantize.freeze_observers(deployed)
    return deployed


@pytest.fixture(scope="module")
def converted(prepared: DeployedMars) -> DeployedMars:
    with hushed():
        return quantize.convert(prepared)


def test_folding_keeps_every_output_and_leaves_no_batch_norm() -> None:
    deployed = model().deployed
    folded = pieces.float_pieces(deployed)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    inputs = split(8, 1).batch(torch.arange(8))
    torch.testing.assert_close(folded(inputs, EVERYTHING), deployed(inputs, EVERYTHING), rtol=1e-4, atol=1e-5)


def test_folded_weights_have_plain_strides() -> None:
    # A (4, 1, 3, 3) weight is contiguous in both memory formats; lowering reads its strides.
    folded = pieces.float_pieces(model().deployed)
    for name, weight in folded.named_parameters():
        expected = torch.empty(weight.shape).stride()
        assert weight.stride() == expected, name


def test_conversion_answers_exactly_as_the_fake_quantized_model_with_whole_biases(prepared: DeployedMars) -> None:
    # Biases are rounded at conversion; rounded before it, there is nothing left to differ.
    with hushed():
        whole, converted = copy.deepcopy(prepared), quantize.convert(prepared)
    for method, piece in pieces.pieces_of(whole).items():
        rounded = dict(pieces.pieces_of(converted)[method].named_parameters())
        for name, parameter in piece.named_parameters():
            if name.endswith("bias"):
                parameter.data.copy_(rounded[name])
    inputs = split(8, 2).batch(torch.arange(8))
    with torch.no_grad():
        torch.testing.assert_close(converted(inputs, EVERYTHING), whole(inputs, EVERYTHING), rtol=0, atol=1e-6)


def test_conversion_rounds_the_bias_of_every_int8_layer(prepared: DeployedMars, converted: DeployedMars) -> None:
    trained = prepared.state_dict()
    rounded = {name: tensor for name, tensor in converted.state_dict().items() if name.endswith("bias")}
    assert any(not torch.equal(tensor, trained[name]) for name, tensor in rounded.items() if name in trained)
    with hushed():
        again = copy.deepcopy(converted)
    assert sum(round_biases(piece.traced) for piece in pieces.pieces_of(again).values()) > 0  # type: ignore[arg-type]
    for name, tensor in rounded.items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-6, atol=0)


def test_one_sample_and_many_give_the_same_answers(converted: DeployedMars) -> None:
    inputs = split(8, 2).batch(torch.arange(8))
    with torch.no_grad():
        together = converted(inputs, EVERYTHING)
        alone = converted({name: x[:1] for name, x in inputs.items()}, EVERYTHING[:1])
    torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-5)


def test_logits_lie_on_the_grid_of_the_output_step(converted: DeployedMars) -> None:
    (step,) = pieces.output_steps(converted.head)
    assert len(pieces.output_steps(converted.route_stage)) == 2
    with torch.no_grad():
        counts = converted(split(8, 2).batch(torch.arange(8)), EVERYTHING) / step
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)
    assert pieces.output_steps(nn.ReLU()) == ()


def test_a_missing_modality_stays_exactly_zero_inside_the_int8_router(converted: DeployedMars) -> None:
    quantizers = [
        n for n in converted.route_stage.traced.graph.nodes  # type: ignore[union-attr]
        if n.op == "call_function" and "quantize_per_tensor" in str(n.target) and "dequantize" not in str(n.target)
    ]  # fmt: skip
    for node in quantizers[: len(NAMES)]:
        scale, zero_point, low, high = node.args[1:5]
        assert low <= zero_point <= high, f"zero is not representable with scale {scale}"


def test_a_piece_has_no_modes(prepared: DeployedMars) -> None:
    prepared.train()
    prepared.eval()
    assert not prepared.head.training
    with hushed():
        copied = copy.deepcopy(prepared)
    assert isinstance(copied.head, pieces.Piece)


def test_quantization_aware_training_is_the_recipe_with_another_schedule() -> None:
    given = recipe(qat_epochs=3, qat_rate=0.25)
    used = quantize.quantization_schedule(given)
    assert used.schedule.epochs == 3
    assert used.schedule.rate == pytest.approx(given.schedule.rate * 0.25)
    assert (used.loss, used.model, used.augment) == (given.loss, given.model, given.augment)


def test_stored_pieces_answer_as_before_and_only_for_their_key(
    converted: DeployedMars, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run") / "qat"
    cache.save(folder, {"weights": "a"}, converted, SHAPES, {"chosen_epoch": 2})
    assert cache.load(folder, {"weights": "b"}, model().deployed) is None
    found = cache.load(folder, {"weights": "a"}, model().deployed)
    assert found is not None and found[1] == {"chosen_epoch": 2}
    loaded = found[0]
    assert loaded is not None
    inputs = split(5, 2).batch(torch.arange(5))
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs, EVERYTHING[:5]), converted(inputs, EVERYTHING[:5]), rtol=0, atol=1e-6)
    (folder / "head.pt2").unlink()
    assert cache.load(folder, {"weights": "a"}, model().deployed) is None


@pytest.mark.parametrize(
    ("name", "content"), [("key.json", b"{"), ("head.pt2", b"PK\x03\x04cut off"), ("made.json", b"")]
)
def test_damaged_pieces_count_as_not_there(
    converted: DeployedMars, tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("run") / "qat"
    cache.save(folder, {"weights": "a"}, converted, SHAPES, {})
    (folder / name).write_bytes(content)
    assert cache.load(folder, {"weights": "a"}, model().deployed) is None


def test_other_settings_or_data_have_pieces_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / "selected.safetensors").write_bytes(b"weights")
    keys = [cache.key(run, {"epochs": n}, 0, data=split(rows, seed)) for n, rows, seed in
            ((1, 8, 1), (1, 8, 1), (2, 8, 1), (1, 9, 1), (1, 8, 2))]  # fmt: skip
    folders = [cache.folder_of(run, key).name for key in keys]
    assert folders[0] == folders[1] and len(set(folders)) == 4


def test_int8_that_costs_more_than_allowed_is_refused_with_both_errors() -> None:
    quantize._require_kept(0.10, 0.12, 0.02)
    for error, shown in ((0.15, "15.00"), (float("nan"), "nan")):
        with pytest.raises(ParityError) as caught:
            quantize._require_kept(0.10, error, 0.02)
        assert f"(10.00 % in float, {shown} % in int8), export.most_lost allows 2; see --sensitivity" in str(
            caught.value
        )
