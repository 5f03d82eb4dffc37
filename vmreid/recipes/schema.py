"""The recipe's types. Each number that a run depends on has its one place here or in the DeepSpeed JSON, never in both.

``null`` in ``model`` means "as the backbone defines it" (``vmreid/models/registry.py``).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Positive = Annotated[int, Field(gt=0)]
Growth = tuple[Annotated[int, Field(ge=0)], Positive]
Fraction = Annotated[float, Field(ge=0, le=1)]
Protocol = Literal["market1501", "msmt17", "veri776", "cuhk03np", "vehicleid", "open_set"]
MEMORY_GIB = 1.0  # for ranking, where nothing else is given
Channels = tuple[Fraction, Fraction, Fraction]


class Section(BaseModel):
    """A frozen part of the recipe; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Start(Section):
    """What training from scratch begins with, where it is not the weights' 0.02; see ``vmreid/models/initialise.py``."""

    A: Literal["log", "normal", "one"] = "log"  # of A_log: log(1..d_state), drawn from N(0, 1), or 0 for every state
    delta: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1e-3, 1e-1)  # step sizes, log-uniform
    token_std: Annotated[float, Field(ge=0)] = 0.02  # of class token and positions, truncated normal; 0: zeros

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.delta[0] > self.delta[1]:
            raise ValueError(f"model.start.delta {list(self.delta)} must be [low, high] with low <= high")
        return self


class Model(Section):
    """Which backbone, and what deviates from its definition."""

    backbone: str
    weights: str | None = None  # published weights or a run's folder to start from; None: from scratch
    dim: Positive | None = None  # channels; VMAMBA: those of its first stage
    depth: Positive | None = None  # blocks; VMAMBA: those of its third stage
    depth_schedule: tuple[Growth, ...] | None = None  # [first epoch, depth] of each phase, in the place of depth
    heads: Positive | None = None  # attention backbones only
    d_state: Positive | None = None  # backbones with a selective scan only
    expand: Positive | None = None  # MAMBA, VMAMBA, VIM only: inner channels a channel
    patch: Positive = 16  # all but VMAMBA
    start: Start = Start()
    scan_backend: Literal["auto", "reference", "torch", "mamba_ssm", "fused"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.depth_schedule is None:
            return self
        phases = [list(phase) for phase in self.depth_schedule]
        if self.depth is not None:
            raise ValueError(
                f"model.depth {self.depth} and model.depth_schedule {phases} say the same thing; leave out one of the two"
            )
        grows = all(a < b and c < d for (a, c), (b, d) in pairwise(self.depth_schedule))
        if not grows or not self.depth_schedule or self.depth_schedule[0][0] != 0:
            raise ValueError(
                f"model.depth_schedule {phases} must begin at epoch 0 and grow in both, such as [[0, 4], [20, 6], [40, 8]]"
            )
        return self

    def depth_in(self, epoch: int) -> int | None:
        """Of a model that grows: its depth in an epoch, counted from 0; else None."""
        return max((depth for first, depth in self.depth_schedule or () if first <= epoch), default=None)

    def at_depth(self, depth: int | None) -> Self:
        """A model that grows, at one of its depths. None: this one."""
        return self.model_copy(update={"depth": depth, "depth_schedule": None}) if depth else self

    def from_scratch(self) -> Self:
        """The same backbone without published weights, whose file may be gone once a run is trained."""
        return self.model_copy(update={"weights": None})


class Augment(Section):
    """What training does to a picture, in this order; 0 switches a part off."""

    crop_scale: tuple[Fraction, Fraction]  # share of the picture's area that a random resized crop keeps; [1, 1]: all of it
    flip: Fraction  # probability of a horizontal flip
    colour_jitter: Fraction  # strength of brightness, contrast and saturation
    rand_augment: Fraction = 0  # probability of two of RandAugment's operations at magnitude 9
    pad: Annotated[int, Field(ge=0)] = 0  # pixels of black border, of which a crop of the image size keeps a random part
    local_grayscale: Fraction = 0  # probability that a random rectangle turns grey
    erasing: Fraction = 0  # probability that a random rectangle becomes the mean colour


class WeightedShards(Section):
    """One of several sets that are trained on together."""

    shards: str  # as data.shards
    weight: Annotated[float, Field(gt=0)]  # share of a batch's identities, of the sum of all weights


ONE_SET, SEVERAL_SETS = "one set", "several sets"  # what pydantic puts into the place of an error; see load.py


class Data(Section):
    """Pictures: where, how large, how many of each identity in a batch."""

    # folder written by shards.write, or its URL; or a list of {shards, weight}; None: the synthetic set below
    shards: (
        Annotated[
            Annotated[str, Tag(ONE_SET)] | Annotated[tuple[WeightedShards, ...], Tag(SEVERAL_SETS)],
            Discriminator(lambda value: SEVERAL_SETS if isinstance(value, list | tuple) else ONE_SET),
        ]
        | None
    ) = None
    cache_dir: str | None = None  # whole files of remote sets, shared by a node's ranks; None: vmreid in the user's cache folder
    cache_gib: Annotated[float, Field(gt=0)] = 20.0  # at most this much of them: 64 shards that training mixes, and room
    skip_unreadable: bool = False  # go on without pictures that cannot be read, and count them; training only
    image_size: tuple[Positive, Positive]  # height, width
    pictures_per_identity: Positive  # K of P x K
    workers: Annotated[int, Field(ge=0)]  # decoding processes a rank; 0: in the training process
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    augment: Augment

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shards == ():
            raise ValueError("data.shards [] must name at least one set; leave it out for the synthetic one")
        if min(self.std) == 0:
            raise ValueError(f"data.std {list(self.std)} must be above 0 in each channel")
        if not 0 < self.augment.crop_scale[0] <= self.augment.crop_scale[1]:
            raise ValueError(f"data.augment.crop_scale {list(self.augment.crop_scale)} must be [low, high] with 0 < low <= high")
        return self


class Synthetic(Section):
    """The embedded set, rendered when ``data.shards`` is left out (see ``shards/synthetic``)."""

    identities: Annotated[int, Field(ge=4)]  # half of them train, half test
    cameras: Annotated[int, Field(ge=2)]
    pictures: Annotated[int, Field(ge=2)]  # of each identity
    seed: Annotated[int, Field(ge=0)]


class Loss(Section):
    """Identity cross entropy + batch-hard triplet loss."""

    label_smoothing: Fraction
    triplet_margin: Annotated[float, Field(gt=0)] | None  # None: soft margin


class Optim(Section):
    """Optimizer and schedule. Gradient clipping belongs to the DeepSpeed JSON."""

    name: Literal["adamw", "sgd"]
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)  # adamw
    momentum: Fraction = 0.9  # sgd
    warmup_epochs: Annotated[float, Field(ge=0)]  # linear; a run shorter than this never leaves it
    final_lr_share: Fraction  # the cosine ends at this share of lr


class Train(Section):
    """How long, how many pictures a step, how often to save."""

    epochs: Positive
    batch_size: Positive  # pictures per optimizer step over all ranks and accumulation: P x K
    checkpoint_epochs: Positive
    checkpoint_steps: Positive | None = None  # also after every so many steps, for epochs that take hours
    monitor_steps: Positive | None = 200  # look into the layers every so many steps; None: never
    keep_checkpoints: Positive = 2  # the last ones; the best by evaluation.every_epochs stays too
    compile: bool = False  # the backbone as compiled kernels in CUDA graphs: minutes at the start, fewer a step
    recompute: bool = False  # keep a block's inputs alone for the backward: less memory, one forward more
    deterministic: bool = False  # bit-equal repetition on a GPU too, at some cost in speed


class Rerank(Section):
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017), with the authors' values where nothing else is said."""

    k1: Annotated[int, Field(gt=0, le=500)] = 20  # nearest rows that a row's set is made of
    k2: Positive = 6  # nearest rows whose vectors are averaged; 1: none but the row's own
    lambda_value: Fraction = 0.3  # share of the original distance in the final one

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.k2 > self.k1:
            raise ValueError(f"evaluation.rerank.k2 {self.k2} must be at most evaluation.rerank.k1 = {self.k1}")
        return self

    def protocol(self) -> dict[str, float]:
        """As results state it."""
        return {"k1": self.k1, "k2": self.k2, "lambda": self.lambda_value}


class Evaluation(Section):
    """The separate pass."""

    metric: Literal["euclidean", "cosine"]
    batch_size: Positive  # pictures a forward pass on one rank
    precision: Literal["fp32", "bf16"] = "fp32"  # of the backbone; bf16 (autocast) blurs the features of a hardly trained model
    flip: bool = False  # the mean of the features of a picture and of its mirror image
    keep_features: bool = False  # in RUN/features, for further evaluations of the same weights and pictures
    protocol: Protocol = "market1501"  # what is left out or drawn (``vmreid/evaluation/protocols.py``)
    memory_gib: Annotated[float, Field(gt=0)] = MEMORY_GIB  # what ranking takes on a rank beyond the features, about
    every_epochs: Positive | None = None  # also in training, after every so many epochs; None: not
    both_directions: bool = False  # for sets whose two sides are two cameras, such as vehicle_khoa
    rerank: Rerank | None = None  # scores after re-ranking too, beside the plain ones; {}: with the values above


class Recipe(Section):
    """All that defines a run, but for the DeepSpeed JSON that ``deepspeed_config`` names."""

    seed: Annotated[int, Field(ge=0)]
    deepspeed_config: str
    model: Model
    data: Data
    synthetic: Synthetic
    loss: Loss
    optim: Optim
    train: Train
    evaluation: Evaluation

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.train.batch_size % self.data.pictures_per_identity:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} must be P x K, a multiple of data.pictures_per_identity "
                f"K = {self.data.pictures_per_identity}; choose one, or set the other"
            )
        for side in self.data.image_size:
            if side % self.model.patch:
                raise ValueError(
                    f"data.image_size {list(self.data.image_size)} must be a multiple of model.patch "
                    f"{self.model.patch} on both sides"
                )
        return self

    @property
    def identities_per_batch(self) -> int:
        """P of P x K."""
        return self.train.batch_size // self.data.pictures_per_identity
