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
    """

    # --- the network and its data
    model: str  # a name as in recipes/models.py
    data: str  # a SPEC as in recipes/data.py
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False  # start from the library's trained weights
    init: str | None = None  # start from these weights, a safetensors file (transfer)
    num_classes: int | None = None  # None: from the data, as the two below
    channels: int | None = None
    image_size: int | None = None  # pixels
    hold_out: float = 0.0  # share of the training images that is kept from training, for a search
    method: str = "baseline"  # or "netaug", "sandwich" or "spos"
    tune: str = "all"  # what learns: "all"; "bias" (biases, norms, classifier); "lite" (these and
    # lite residual modules beside the blocks): TinyTL, Cai et al. 2020

    # --- NetAug: what grows, and how far
    factor: Any = 3.0  # widest subnet over base (the paper's r); or by kind, {"stream": 3, ...}
    diversity: Any = 2  # steps from the base to the widest (the paper's s); or by kind
    ratios: Mapping[str, tuple[float, ...]] | None = None  # by kind, instead of the two above; the
    # authors have inner 1, 1.6, 2.2, 2.8 with stream 1, 2, 3 or 1, 1.8, 2.6
    coupling: str = "independent"  # "expand": an inner width is its ratio times the stream width
    # before it, as sampled (the authors'); then the largest is 3 x 2.8 times the base
    max_config: Mapping[str, int] | None = None  # the widest, width by width, instead of factor
    kinds: tuple[str, ...] | None = None  # which widths grow; None: inner ones (the paper's: both)
    keep: tuple[str, ...] = ()  # globs of module names whose widths stay

    # --- NetAug: how it is used
    alpha: float = 1.0  # weight of the augmented loss (the paper's value)
    alpha_end: float | None = None  # alpha falls or rises to it linearly; None: constant (paper's)
    samples: int = 1  # augmented networks per step (the paper's value; more hurt)
    stop_stream: float = 1.0  # share of the epochs after which streams stay (the authors': 0.5)
    stop_inner: float = 1.0  # likewise inner widths (the authors': 1, never); both: the base alone
    sort: bool = (
        False  # before each epoch in which both kinds grow, the channels of largest L1 norm
    )
    # move into the base (the authors', for inner widths; here streams too); not from trained weights

    # --- single path one-shot (method "spos"), where neither of the two above holds
    ceiling: str | None = None  # the costliest path, as "3.0x" (times the base's MACs)
    path_dropout: float = 0.0  # probability that a width stays at its base size in a step

    # --- optimisation
    epochs: int = 10  # (the authors': 150)
    batch_size: int = 128  # images per step and process (the authors', with 16 processes)
    accumulate: int = 1  # batches per optimiser step
    opt: str = "sgd"  # timm's name; its SGD is Nesterov's (the paper's)
    lr: float = 0.1  # (the authors': 0.025 per process)
    momentum: float = 0.9  # (the paper's)
    weight_decay: float = 4e-5  # (the paper's)
    decay_norms: bool = True  # whether norms and biases decay too (the authors': no)
    clip_grad: float | None = None  # largest L2 norm of the gradient of all that is trained
    sched: str = "cosine"  # timm's name; stepped after every update (the paper's)
    warmup_epochs: int = 0  # (the authors': 5 beside the 150)
    smoothing: float = 0.1  # label smoothing (the paper's)
    ema: float | None = None  # decay per step of an average of the base; then it is what counts
    precision: str = "no"  # Accelerate's mixed precision: "no", "bf16" or "fp16"
    channels_last: bool = False  # features and weights in memory as (N, H, W, C): often faster

    # --- regularisers, for comparison (the paper's tables 3 and 6)
    dropout: float = 0.0  # before the classifier
    dropblock: float = 0.0  # of the feature map behind each block (Ghiasi et al. 2018)
    mixup: float = 0.0  # alpha of MixUp's Beta distribution (Zhang et al. 2018); 0: none
    cutmix: float = 0.0  # likewise CutMix (Yun et al. 2019); with both, one of them for each batch
    augment: str = "standard"  # or "none", "autoaugment", "randaugment" on top of the standard one

    seed: int = 0  # of weights, order, augmentation and sampling

    # --- distillation
    distill: Distillation | None = None  # who teaches what; None: nobody

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
