"""Operator -> channel rule, one file per family: the one place to teach an operator."""

from . import (
    contraction,
    elementwise,
    indexing,
    movement,
    noise,
    norm,
    pooling,
    products,
    recurrent,
    reduction,
    views,
)
from .noise import draws_noise, drops
from .norm import BATCH_NORM, INSTANCE_NORM, SUBNET_BATCH_NORMS, SUBNET_FORMS, subnet_instance_norm
from .op import Call, NoRule, Op, Path, Ref, Typed
from .recurrent import RECURRENT, with_tensors
from .registry import is_leaf, layer_of, register_rule, resize, rule_of

__all__ = [
    "BATCH_NORM", "INSTANCE_NORM", "RECURRENT", "SUBNET_BATCH_NORMS", "SUBNET_FORMS", "Call", "NoRule", "Op",
    "Path", "Ref", "Typed",
    "contraction", "draws_noise", "drops", "elementwise", "indexing", "is_leaf", "layer_of", "movement",
    "noise", "norm", "pooling", "products", "recurrent",
    "reduction", "register_rule", "resize", "rule_of", "subnet_instance_norm", "views",
    "with_tensors",
]  # fmt: skip
