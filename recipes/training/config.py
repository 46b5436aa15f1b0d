"""What a training run is: a frozen record, from which it can be built again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.errors import RunError
from recipes.teachers import ONLINE
from recipes.training.distillation import Distillation

NETAUG_ONLY = (
    *("factor", "diversity", "ratios", "coupling", "kinds", "keep"),
    *("alpha", "alpha_end", "samples", "stop_stream", "stop_inner", "sort"),
    "max_config",
)
SCHEDULED = ("alpha", "alpha_end", "stop_stream", "stop_inner", "sort")
SPOS_ONLY = ("ceiling", "path_dropout")


@dataclass(frozen=True)
class TrainConfig:
    """Two runs of one config end with the same weights (on a CPU, bit for bit).

    "The paper" is Cai, Gan, Lin, Han, "Network Augmentation for Tiny Deep Learning", ICLR 2022;
    "the authors" are their published training runs (mit-han-lab/tinyml, netaug/). Where neither is
    named, the default is ours.

    Args:
        model: a name as in recipes/models.py
        data: a SPEC as in recipes/data.py
        model_args: arguments of the model's constructor
        pretrained: start from the library's trained weights
        init: start from these weights, a safetensors file (transfer)
        num_classes: classes; None: from the data
        channels: channels of an image; None: from the data
        image_size: pixels; None: from the data
        hold_out: share of the training images that is kept from training, for a search
        method: "baseline", "netaug", "sandwich" or "spos"
        tune: what learns: "all"; "bias" (biases, norms, classifier); "lite" (these and lite residual modules
            beside the blocks): TinyTL, Cai et al. 2020
        factor: widest subnet over base (the paper's r); or by kind, {"stream": 3, ...}
        diversity: steps from the base to the widest (the paper's s); or by kind
        ratios: by kind, instead of factor and diversity; the authors have inner 1, 1.6, 2.2, 2.8 with stream 1,
            2, 3 or 1, 1.8, 2.6
        coupling: "independent", or "expand": an inner width is its ratio times the stream width before it, as
            sampled (the authors'); then the largest is 3 x 2.8 times the base
        max_config: the widest, width by width, instead of factor
        kinds: which kinds of widths grow; None: inner ones in NetAug (the paper's: both), both else; where
            `factor`, `ratios` and the like speak of some kinds, those
        keep: globs of module names whose widths stay
        alpha: weight of the augmented loss (the paper's value)
        alpha_end: alpha falls or rises to it linearly; None: constant (paper's)
        samples: augmented networks per step (the paper's value; more hurt)
        stop_stream: share of the epochs after which streams stay (the authors': 0.5)
        stop_inner: likewise inner widths (the authors': 1, never); where both are over, the base trains alone
        sort: before each epoch in which both kinds grow, the channels of largest L1 norm move into the base
            (the authors', for inner widths; here streams too); not from trained weights
        ceiling: the costliest path, as "3.0x" (times the base's MACs)
        path_dropout: probability that a width stays at its base size in a step
        epochs: passes over the training images (the authors': 150)
        batch_size: images per step and process (the authors', with 16 processes)
        accumulate: batches per optimiser step
        opt: timm's name of an optimiser; its SGD is Nesterov's (the paper's)
        lr: peak learning rate (the authors': 0.025 per process)
        momentum: of SGD (the paper's)
        weight_decay: of the optimiser (the paper's)
        decay_norms: whether norms and biases decay too (the authors': no)
        clip_grad: largest L2 norm of the gradient of all that is trained
        sched: timm's name of a schedule; stepped after every update (the paper's)
        warmup_epochs: epochs of linear warm-up, among the above (the authors': 5 beside the 150)
        smoothing: label smoothing (the paper's)
        ema: decay per step of an average of the base; then it is what counts
        precision: Accelerate's mixed precision: "no", "bf16" or "fp16"
        channels_last: features and weights in memory as (N, H, W, C): often faster
        dropout: probability before the classifier
        dropblock: probability, of the feature map behind each block (Ghiasi et al. 2018)
        mixup: alpha of MixUp's Beta distribution (Zhang et al. 2018); 0: none
        cutmix: likewise CutMix (Yun et al. 2019); with both, one of them for each batch
        augment: of the training images: "standard", "none", or "autoaugment" or "randaugment" on top of the
            standard one
        seed: of weights, order, augmentation and sampling
        distill: who teaches what; None: nobody
    """

    # --- the network and its data
    model: str
    data: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    init: str | None = None
    num_classes: int | None = None
    channels: int | None = None
    image_size: int | None = None
    hold_out: float = 0.0
    method: str = "baseline"
    tune: str = "all"

    # --- NetAug: what grows, and how far
    factor: Any = 3.0
    diversity: Any = 2
    ratios: Mapping[str, tuple[float, ...]] | None = None
    coupling: str = "independent"
    max_config: Mapping[str, int] | None = None
    kinds: tuple[str, ...] | None = None
    keep: tuple[str, ...] = ()

    # --- NetAug: how it is used
    alpha: float = 1.0
    alpha_end: float | None = None
    samples: int = 1
    stop_stream: float = 1.0
    stop_inner: float = 1.0
    sort: bool = False

    # --- single path one-shot (method "spos"), where neither of the two above holds
    ceiling: str | None = None
    path_dropout: float = 0.0

    # --- optimisation
    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    opt: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 4e-5
    decay_norms: bool = True
    clip_grad: float | None = None
    sched: str = "cosine"
    warmup_epochs: int = 0
    smoothing: float = 0.1
    ema: float | None = None
    precision: str = "no"
    channels_last: bool = False

    # --- regularisers, for comparison (the paper's tables 3 and 6)
    dropout: float = 0.0
    dropblock: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    augment: str = "standard"

    seed: int = 0

    # --- distillation
    distill: Distillation | None = None

    @property
    def grows(self) -> bool:
        """Whether the model is widened."""
        by_itself = self.distill is not None and self.distill.teacher in ONLINE
        return self.method in ("netaug", "sandwich", "spos") or by_itself

    def __post_init__(self) -> None:
        """Refuse values that no run can have.

        Raises:
            RunError: with the value that came and those that are possible.
        """
        one_of = {
            "method": ("baseline", "netaug", "sandwich", "spos"),
            "tune": ("all", "bias", "lite"),
            "coupling": ("independent", "expand"),
            "augment": ("standard", "none", "autoaugment", "randaugment"),
            "precision": ("no", "bf16", "fp16"),
        }
        for name, allowed in one_of.items():
            if getattr(self, name) not in allowed:
                raise RunError(f"{name} is {getattr(self, name)!r}; one of {allowed} is possible.")
        shares = ("stop_stream", "stop_inner", "dropout", "dropblock", "path_dropout")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise RunError(f"{name} is a share from 0 to 1; {getattr(self, name)!r} came.")
        if not 0 <= self.hold_out < 1:
            raise RunError(f"hold_out is a share from 0 to below 1; {self.hold_out!r} came.")
        if self.method == "spos" and self.coupling == "expand":
            raise RunError("Single paths draw each width by itself: give no --coupling expand.")
        if not isinstance(self.max_config, Mapping | None):
            raise RunError(f"max_config maps widths to sizes; {self.max_config!r} came.")
        if self.max_config is not None and (self.ratios or self.coupling == "expand"):
            raise RunError("max_config says how far each width grows: give no ratios or coupling.")
        for name in ("smoothing", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise RunError(
                    f"{name} is a number from 0 to below 1; {getattr(self, name)!r} came."
                )
        for name in ("mixup", "cutmix", "weight_decay", "alpha", "alpha_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise RunError(f"{name} is a finite number from 0 on; {value!r} came.")
        if not 0 <= self.seed < 2**32:
            raise RunError(f"seed is a whole number from 0 to {2**32 - 1}; {self.seed!r} came.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise RunError(f"ema is a decay between 0 and 1, e.g. 0.999; {self.ema!r} came.")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise RunError(f"clip_grad is a norm above 0; {self.clip_grad!r} came.")

    def without_effect(self) -> list[str]:
        """The fields that were set, but mean nothing to this method."""
        idle = {
            "netaug": SPOS_ONLY,
            "sandwich": (*SCHEDULED, *SPOS_ONLY),
            "spos": (*SCHEDULED, "samples"),
        }
        names = idle.get(self.method, SPOS_ONLY if self.grows else (*NETAUG_ONLY, *SPOS_ONLY))
        if self.max_config is not None:  # which says how far
            names = (*names, "factor", "diversity")
        fresh = {field.name: field.default for field in dataclasses.fields(self)}
        return [name for name in dict.fromkeys(names) if getattr(self, name) != fresh.get(name)]

    def identity(self) -> dict[str, Any]:
        """The fields that make the run what it is, as JSON; the baseline has no widths."""
        fields = dataclasses.asdict(self)
        left_out = () if self.grows else NETAUG_ONLY
        if self.method != "spos":
            left_out = (*left_out, *SPOS_ONLY)
        unset = {"distill": None, "max_config": None, "hold_out": 0.0}
        for name, value in unset.items():
            if fields[name] == value:
                del fields[name]
        return {name: value for name, value in fields.items() if name not in left_out}
