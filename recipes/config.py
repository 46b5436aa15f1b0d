"""What a training run is: a frozen record, from which it can be built again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.distill_config import ONLINE, Distillation

NETAUG_ONLY = ("factor", "diversity", "alpha", "samples", "kinds", "keep")


@dataclass(frozen=True)
class TrainConfig:
    """Two runs of one config end with the same weights (on a CPU, bit for bit)."""

    model: str  # a name as in recipes/models.py
    data: str  # a SPEC as in recipes/data.py
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False  # start from trained weights
    num_classes: int | None = None  # None: from the data, as the two below
    channels: int | None = None
    image_size: int | None = None  # pixels
    method: str = "baseline"  # or "netaug", or "sandwich"
    factor: Any = 3.0  # widest subnet over base (the paper's r); or by kind, {"stream": 3, ...}
    diversity: Any = 2  # steps from the base to the widest (the paper's s); or by kind
    alpha: float = 1.0  # weight of the augmented loss (the paper's value)
    samples: int = 1  # augmented networks per step (the paper's value; more hurt)
    kinds: tuple[str, ...] = ("stream", "inner")  # which widths grow
    keep: tuple[str, ...] = ()  # globs of module names whose widths stay
    epochs: int = 10
    batch_size: int = 128  # images per step and process
    opt: str = "sgd"  # timm's name; its SGD is Nesterov's
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 4e-5  # the paper's value
    decay_norms: bool = True  # whether norms and biases decay too
    sched: str = "cosine"  # timm's name; stepped after every update
    warmup_epochs: int = 0
    smoothing: float = 0.1  # label smoothing (the paper's value)
    seed: int = 0  # of weights, order, augmentation and sampling
    distill: Distillation | None = None  # who teaches what; None: nobody

    @property
    def grows(self) -> bool:
        """Whether the model is widened."""
        by_itself = self.distill is not None and self.distill.teacher in ONLINE
        return self.method in ("netaug", "sandwich") or by_itself

    def identity(self) -> dict[str, Any]:
        """The fields that make the run what it is, as JSON; the baseline has no widths."""
        fields = dataclasses.asdict(self)
        left_out = () if self.grows else NETAUG_ONLY
        if self.distill is None:
            del fields["distill"]
        return {name: value for name, value in fields.items() if name not in left_out}
