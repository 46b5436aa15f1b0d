"""Operator -> channel rule, one file per family: the one place to teach an operator."""

from . import (
    contraction,
    elementwise,
    indexing,
    movement,
    norm,
    pooling,
    products,
    reduction,
    views,
)
from .op import Call, NoRule, Op, Path, Ref, Typed
from .registry import is_leaf, layer_of, register_rule, resize, rule_of

__all__ = [
    "Call", "NoRule", "Op", "Path", "Ref", "Typed", "contraction", "elementwise", "indexing", "is_leaf", "layer_of",
    "movement", "norm", "pooling", "products", "reduction", "register_rule", "resize", "rule_of", "views",
]  # fmt: skip
