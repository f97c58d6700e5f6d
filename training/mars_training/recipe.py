"""A recipe: everything that decides a training run, from one TOML file.

Frozen and keyword-only; an unknown key is an error that lists the known ones. The resolved recipe is
saved beside the weights.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from mars_edge.errors import UsageError
from mars_edge.manifest import CONTENT_FAULTS
from mars_training.ranges import (
    Count,
    InnerShare,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Share,
    ShareBelowOne,
    Whole,
    check_ranges,
)

Method = Literal["mars", "moe", "modality_dropout", "hemis", "shaspec", "dmrnet", "simmlm", "flex_moe"]
Reader = Literal["rig", "digits", "casia_surf", "crema_d", "food101", "mcubes", "table"]
DataProtocol = Literal["official", "speaker_disjoint"]
ExpertKind = Literal["conv", "mlp", "resnet_stage", "low_rank"]
FusionKind = Literal["conv", "resnet_stage"]
TextReading = Literal["mean", "last"]
OptimiserName = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step", "poly"]
# Their two passes are stacked from features; the peers' steps are written for one incomplete pass.
_SEVERAL_MASKS = ("mars", "moe", "modality_dropout")
SplitName = Literal["train", "validation", "test"]
Precision = Literal["fp32", "bf16", "auto"]
Threshold = Literal["equal_error", "bpcer", "apcer", "argmax"]
OnMissing = Literal["continue", "abstain", "fail_closed"]
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where samples come from. `train`, `validation` and `test` count the rig's rendered samples only."""

    reader: Reader
    train: Count = 4000
    validation: Count = 1000
    test: Count = 2000
    seed: Whole = 0
    """Of the rig's scenes, the digits' pairing, and what is held out of training for validation."""
    fold: Whole = 0
    """digits: which pair of speakers is the test set (0 to 2). crema_d, speaker-disjoint: which fifth of the actors
    is (0 to 4)."""
    pairings: Count = 2
    """digits only: how many written digits each recording is paired with."""
    protocol: DataProtocol = "official"
    """crema_d only: the published lists, which have every speaker on both sides, or splits that share no speaker."""
    size: Whole = 0
    """Height of the images in pixels, which are square but for mcubes; 0 takes the reader's own."""
    limit: Whole = 0
    """Read only this many rows of every split, as evenly over the classes as they allow; 0 reads all. For trials."""
    always_present: tuple[str, ...] = ()
    """Modalities that are never missing: subsets without them are neither drawn in training nor evaluated."""

    def __post_init__(self) -> None:
        if self.protocol != "official" and self.reader != "crema_d":
            raise UsageError(f"data.protocol is {self.protocol!r}; reader {self.reader!r} has the official split only")
        if self.fold and self.reader not in ("digits", "crema_d"):
            raise UsageError(f"data.fold is {self.fold}; reader {self.reader!r} has no folds")
        if self.size and self.reader in ("digits", "table"):
            raise UsageError(f"data.size is {self.size}; reader {self.reader!r} has sizes of its own")
        if self.size < 0 or self.limit < 0:
            raise UsageError(f"data.size is {self.size} and data.limit {self.limit}; they must be 0 or more")
        check_ranges(self, "data")


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe:
    """One modality's encoder: blocks (ResNet kinds: stages) of `channels[i]` outputs and stride `strides[i]`."""

    kind: str = "conv"
    """One of `mars_training.model.backbones.KINDS`; each kind's module names its source."""
    channels: tuple[Count, ...] = (16, 32, 64, 64)
    strides: tuple[Count, ...] = (2, 2, 2, 1)
    kernel: Count = 3
    pool: bool = False
    """The mean over all pixels at the end."""
    span: Whole = 0
    """conv only: outputs of one more block whose kernel spans the whole remaining map, so that place in it (for
    audio: order in time) still counts; 0 has none."""
    components: Count = 2
    """projection only: principal components kept."""
    depths: tuple[Count, ...] = ()
    """resnet, resnet_se, deeplab: residual blocks per stage."""
    reduction: Count = 16
    """resnet_se: how many times narrower squeeze-and-excitation is than the feature."""
    expansion: Count = 4
    """mobile, mobile_seg: how many times wider an inverted residual is inside."""
    aspp: Count = 256
    """deeplab, mobile_seg: outputs of the pyramid pooling."""
    low: Count = 48
    """deeplab, mobile_seg: channels of the map at stride 4 that joins the pyramid's."""
    embedding: Count = 64
    """text_lstm, text_mean: numbers per word."""
    reading: TextReading = "last"
    """text_lstm: the state after the last word, or the mean over all words."""

    def __post_init__(self) -> None:
        check_ranges(self, "encoder")
        if len(self.channels) != len(self.strides) or not self.channels:
            raise UsageError(
                f"encoder has {len(self.channels)} channels and {len(self.strides)} strides; give one stride per block"
            )
        if self.span and (self.pool or self.kind != "conv"):
            raise UsageError('encoder has a span; it needs kind = "conv" and pool = false')
        if self.depths and len(self.depths) != len(self.channels):
            raise UsageError(
                f"encoder has {len(self.channels)} channels and {len(self.depths)} depths; give one depth per stage"
            )


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Sizes of the shared stages, and the options beyond the paper (all off by default)."""

    encoders: dict[str, EncoderRecipe] = field(default_factory=dict)
    """By modality name; a modality without a table gets the default encoder."""
    experts: Count = 8
    active_experts: Count = 2
    width: Count = 96
    """Channels d of the task representation z."""
    fusion_kind: FusionKind = "conv"
    """One convolution block, or a stage of two ResNet basic blocks."""
    fusion_kernel: Count = 3
    fusion_stride: Count = 2
    expert_kind: ExpertKind = "conv"
    """What a layer of `expert_channels` is: a convolution block; a linear layer with bias and ReLU, without batch norm
    ("mlp": no kernel, no stride); a ResNet basic block; or, beyond the paper, see `expert_rank`."""
    expert_channels: tuple[Count, ...] = (96,)
    expert_kernel: Count = 3
    expert_stride: Count = 2
    expert_rank: Count = 8
    """low_rank only: each expert is a correction of this rank to the shared expert, which is a "conv" one."""
    shared_expert: bool = False
    """One more expert that always runs; its output is added to the gated sum."""
    detach_residual: bool = False
    """The residual's gradient stops at the residual router."""
    residual_scope: Literal["sample", "combination"] = "sample"
    """Whose residual routes a partial sample: its own (the paper), or the batch mean of its combination."""
    student_rate: Share = 0.0
    """Share of partial samples that the feature router routes in training."""
    expert_dropout: ShareBelowOne = 0.0
    residual_routing: bool = True
    """False: the feature router routes both passes, a plain mixture of experts; the first rung of the ablation."""
    router_noise: bool = True
    """False: the residual router has no noise, neither scale nor loss; the second rung of the ablation."""
    router_warmup: Whole = 0
    """Beyond the paper: first epochs in which the feature router routes both passes and the residual router learns
    from it; then they change places."""
    combination_router: bool = False
    """Beyond the paper: the feature router's logits gain a learned bias per modality that is there."""
    baseline_size: Literal["parameters", "expert"] = "parameters"
    """modality_dropout only: its one stage has the parameters of all experts, or is one expert, as in the paper."""
    dispatch: Literal["dense", "sparse"] = "dense"
    """In training, "sparse" runs an expert on the rows routed to it alone; its batch norm then sees only those."""

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if not 1 <= self.active_experts < self.experts:
            raise UsageError(
                f"active_experts is {self.active_experts}; with {self.experts} experts, "
                f"allowed: 1 to {self.experts - 1}"
            )
        if not self.expert_channels:
            raise UsageError("expert_channels is empty; give the outputs of at least one layer")
        if self.expert_kind == "low_rank" and not self.shared_expert:
            raise UsageError('expert_kind "low_rank" corrects a shared expert; it needs shared_expert = true')


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """Weights of all losses, and when they begin; a method reads those that it has."""

    task: NotNegative = 1.0
    incomplete: NotNegative = 1.0
    """Beyond the paper, for every method: weight of the incomplete pass's cross-entropy beside the complete one's.
    The paper's 1 gives the complete set half of the task; the mean over 7 subsets gives it a seventh."""
    balance: NotNegative = 0.05
    imitate: NotNegative = 1.0
    noise: NotNegative = 0.01
    imitate_temperature: Positive = 1.0
    imitate_start: Whole = 0
    """Beyond the paper: the first epoch with imitation; before, the feature router learns from the task alone."""
    label_smoothing: ShareBelowOne = 0.0
    distill: NotNegative = 0.0
    """Beyond the paper, for every method: the incomplete pass learns from the complete pass's class probabilities."""
    distill_temperature: Positive = 2.0
    align: NotNegative = 0.1
    """shaspec: distance between the shared features of two modalities (its released settings, alpha)."""
    domain: NotNegative = 0.02
    """shaspec: cross-entropy of telling modalities apart by their specific features (beta)."""
    rank: NotNegative = 0.1
    """simmlm: more modalities must not have the larger task loss (arXiv 2507.19264, section 4)."""
    kl: NotNegative = 1e-3
    """dmrnet: divergence of the embedding's distribution from the standard normal (its released settings)."""
    hard: NotNegative = 0.3
    """dmrnet: extra task loss of the combinations whose embeddings are the least certain (released: 0.3 and 0.7)."""
    specialise: NotNegative = 0.01
    """flex_moe: cross-entropy between the router and the expert that is a combination's own (released settings)."""
    first_stage: Whole = 2
    """Epochs of the first stage of the peers that have two: simmlm trains its experts alone, flex_moe on complete
    rows, dmrnet without `hard`. The released settings are a tenth of all epochs (flex_moe) and 5 (dmrnet)."""

    def __post_init__(self) -> None:
        if min(self.imitate_temperature, self.distill_temperature) <= 0.0:
            raise UsageError(
                f"loss.imitate_temperature is {self.imitate_temperature} and distill_temperature "
                f"{self.distill_temperature}; they must be above 0"
            )
        check_ranges(self, "loss")


@dataclass(frozen=True, kw_only=True)
class SamplingRecipe:
    """Discrepancy-guided sampling; `guided = false` keeps it uniform."""

    guided: bool = True
    start: Whole = 20
    tau: Positive = 0.06
    floor: Annotated[float, Range(low=0, high=0.5)] = 0.03
    masks_per_row: Count = 1
    """Beyond the paper, for mars, moe and modality_dropout: incomplete passes per row and step. Encoders run once for
    all of them, so another one costs a fusion, the experts and the head."""

    def __post_init__(self) -> None:
        if self.masks_per_row < 1:
            raise UsageError(f"sampling.masks_per_row is {self.masks_per_row}; it must be at least 1")
        check_ranges(self, "sampling")


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """The optimiser and how its rate moves. `milestones` are shares of all epochs (step schedule)."""

    optimiser: OptimiserName = "adamw"
    schedule: Schedule = "cosine"
    rate: Positive = 2e-3
    encoder_rate: dict[str, NotNegative] = field(default_factory=dict)
    """By modality name, a factor on the rate of its encoder's parameters; 1 where none is given."""
    weight_decay: NotNegative = 1e-2
    momentum: ShareBelowOne = 0.9
    batch_size: Count = 64
    epochs: Count = 20
    warmup_epochs: NotNegative = 1.0
    milestones: tuple[Share, ...] = (0.5, 0.75)
    clip_norm: Positive = 5.0
    precision: Precision = "fp32"
    validate_every: Count = 1
    select_from: Share = 0.0
    """Share of the epochs that must be over before one may be selected: a small validation split would pick
    a lucky epoch from before the rate has come down."""
    patience: Whole = 0
    """Stop after this many epochs without a better validation error; 0 trains all epochs."""
    checkpoint_every_s: NotNegative = 600.0
    """Within an epoch too, save what a killed run goes on with when this many seconds are over; 0 saves at the ends
    of epochs only."""

    def __post_init__(self) -> None:
        if self.patience < 0 or self.checkpoint_every_s < 0:
            raise UsageError(
                f"schedule.patience is {self.patience} and checkpoint_every_s {self.checkpoint_every_s}; "
                f"they must be 0 or more"
            )
        check_ranges(self, "schedule")


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe:
    """Light changes to preprocessed training tensors; geometry is the same for all image modalities of a sample."""

    flip: bool = False
    flip_negates: dict[str, tuple[Whole, ...]] = field(default_factory=dict)
    """By modality, the channels whose sign a mirror turns, as it does for an angle of polarisation; zero is at 0.5."""
    shift_px: Whole = 0
    crop_px: Whole = 0
    """Side of one random square cut out of all image modalities and the label map of a sample; 0 keeps the whole."""
    brightness: Share = 0.0
    """Image values gain a uniform offset within plus or minus this (range 0..1), per modality and sample."""
    contrast: Share = 0.0
    """Image values are scaled about their mean by a uniform factor within 1 plus or minus this."""
    audio_gain: Share = 0.0
    """Log-mel values gain a uniform offset within plus or minus this (1.0 is 80 dB)."""
    audio_shift: Whole = 0
    """Log-mel frames are shifted in time by up to this many."""
    audio_stretch: ShareBelowOne = 0.0
    """Frames are read at a pace within 1 plus or minus this: faster and slower speech."""
    audio_warp: ShareBelowOne = 0.0
    """Bands are read at an index scaled by 1 plus or minus this: longer and shorter vocal tracts."""
    audio_bands: NotNegative = 0.0
    """Bands are shifted by up to this many, in fractions too."""
    audio_colour: Share = 0.0
    """Bands gain a smooth random offset within plus or minus this: other microphones and rooms (1.0 is 80 dB)."""
    audio_noise: Share = 0.0
    """Noise of a uniform mean log-mel value in 0 to this is added as power."""
    audio_band_mask: Whole = 0
    """One run of up to this many bands is set to the sample's mean (SpecAugment, arXiv 1904.08779)."""
    audio_frame_mask: Whole = 0
    """One run of up to this many frames is set to the sample's mean."""
    photometric: tuple[str, ...] = ()
    """Names of the image modalities whose brightness and contrast change."""

    def __post_init__(self) -> None:
        if self.crop_px < 0 or self.shift_px < 0:
            raise UsageError(f"augment.crop_px is {self.crop_px} and shift_px {self.shift_px}; they must be 0 or more")
        check_ranges(self, "augment")


@dataclass(frozen=True, kw_only=True)
class ExportRecipe:
    """How a run becomes an artifact, and what the artifact may decide."""

    qat_epochs: Whole = 2
    """Most epochs of quantization-aware training: validation keeps the best of them and of the start; 0 only observes
    ranges (post-training quantization)."""
    qat_rate: PositiveShare = 0.1
    """Share of `schedule.rate` that quantization-aware training rises to; it falls as a cosine from there."""
    qat_warmup: ShareBelowOne = 0.1
    """Share of the quantization-aware epochs in which the rate rises."""
    qat_freeze: Share = 0.5
    """Share of the quantization-aware epochs after which the ranges of activations stay as they are."""
    qat_distill: Share = 0.5
    """Share of the quantization-aware loss that is the distance from the float model's class probabilities, at
    `loss.distill_temperature`; the rest is the recipe's own loss."""
    most_lost: Share = 0.02
    """Int8 may cost so much of the mean validation error; what costs more is not written."""
    float_layers: tuple[str, ...] = ()
    """Layers that stay float32 in int8 artifacts: METHOD/MODULE.PATH, as in "encode_rgb/stack.0.0", or METHOD."""
    threshold: Threshold = "equal_error"
    """Live/spoof tasks: how the threshold is picked on validation; "argmax" keeps probability 0.5."""
    bpcer_target: InnerShare = 0.01
    """For threshold = "bpcer": the share of bona fide presentations that may be rejected."""
    apcer_target: InnerShare = 0.05
    """For threshold = "apcer": the share of the worst attack species that may be accepted."""
    apcer_bounded: bool = False
    """The 95 % upper bound on validation must meet `apcer_target`, not only the share that was counted there."""
    temperature: bool = True
    """Divide the logits of each subset by one number fitted on validation, so that scores are probabilities."""
    certify_max_error: Share = 1.0
    """A subset is certified when the 95 % upper bound of its test error is at most this (1 certifies all)."""
    certify_max_apcer: Share = 1.0
    """Live/spoof: and when that of every attack species is at most this, with all species bounded at once."""
    certify_max_bpcer: Share = 1.0
    """Live/spoof: and when that of the rejected bona fide presentations is at most this."""
    certify_min_samples: Count = 100
    """Fewer test samples certify nothing; live/spoof: of the smaller class."""
    certify_min_per_species: Count = 1
    """Live/spoof: fewer test samples of any attack species certify nothing."""
    require: tuple[str, ...] = ()
    on_missing: OnMissing = "continue"
    masking_faults: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self, "export")
        for fault in self.masking_faults:
            if fault not in CONTENT_FAULTS:
                raise UsageError(f"export.masking_faults names {fault!r}; allowed: {', '.join(CONTENT_FAULTS)}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, complete but for its seed."""

    name: str
    data: DataRecipe
    method: Method = "mars"
    model: ModelRecipe = field(default_factory=ModelRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    sampling: SamplingRecipe = field(default_factory=SamplingRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    export: ExportRecipe = field(default_factory=ExportRecipe)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"name is {self.name!r}; allowed: letters, digits, _, - and ., the first of them no .")
        if self.sampling.masks_per_row > 1 and self.method not in _SEVERAL_MASKS:
            raise UsageError(
                f"sampling.masks_per_row is {self.sampling.masks_per_row}; method {self.method!r} takes 1, "
                f"only {', '.join(_SEVERAL_MASKS)} take more"
            )

    def to_dict(self) -> dict[str, Any]:
        """Every key with its resolved value, as plain JSON types once dumped."""
        return dataclasses.asdict(self)


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        UsageError: no such file, not TOML, an unknown key, or a value of the wrong type or range.
    """
    return recipe_from_dict(read_toml(path, "recipe"))


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        UsageError: no such file, a folder, or not TOML; the message calls the file a `what`.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no {what} at {path}") from None
    except IsADirectoryError:
        raise UsageError(f"{what} {path} is a folder; give a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {path} is not TOML: {error}") from None


def recipe_from_dict(table: Mapping[str, Any]) -> Recipe:
    """The recipe a nested table describes; missing keys take their defaults.

    Raises:
        UsageError: an unknown or missing key, or a value of the wrong type or range.
    """
    recipe = strict_dataclass(Recipe, table, "recipe")
    assert isinstance(recipe, Recipe)
    return recipe


def strict_dataclass(kind: Any, table: object, where: str) -> Any:
    """An instance of the dataclass `kind` from a nested table; `where` names the table in messages.

    Raises:
        UsageError: an unknown or missing key, or a value of the wrong type or range.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} is {table!r}; it must be a table")
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(table) - set(fields))
    if unknown:
        raise UsageError(f"unknown key {unknown[0]!r} in {where}; known keys: {', '.join(fields)}")
    missing = [name for name, f in fields.items() if name not in table and _is_required(f)]
    if missing:
        raise UsageError(f"{where} lacks the key {missing[0]!r}")
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in table.items()})


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _value(kind: Any, value: object, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return strict_dataclass(kind, value, where)
    if origin is Literal:
        return _choice(get_args(kind), value, where)
    if origin is tuple:
        return _items(get_args(kind)[0], value, where)
    if origin is dict:
        return {k: _value(get_args(kind)[1], v, f"{where}.{k}") for k, v in _table(value, where).items()}
    return _scalar(kind, value, where)


def _choice(allowed: tuple[Any, ...], value: object, where: str) -> Any:
    if value not in allowed:
        raise UsageError(f"{where} is {value!r}; allowed: {', '.join(map(str, allowed))}")
    return value


def _items(kind: Any, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where} is {value!r}; it must be a list")
    return tuple(_value(kind, item, where) for item in value)


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} is {value!r}; it must be a table")
    return value


def _scalar(kind: Any, value: object, where: str) -> Any:
    assert not isinstance(kind, types.GenericAlias)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise UsageError(f"{where} is {value!r}; it must be of type {kind.__name__}")
    return value
