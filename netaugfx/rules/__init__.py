"""Operator -> channel rule, one file per family: the one place to teach an operator."""

import operator

from . import contraction, elementwise, movement, norm, pooling, views
from .registry import (
    Call,
    NoRule,
    Op,
    Path,
    Ref,
    Typed,
    is_leaf,
    layer_of,
    register_rule,
    resize,
    rule_of,
)

register_rule(operator.getitem)(movement.index)

__all__ = [
    "Call", "NoRule", "Op", "Path", "Ref", "Typed", "contraction", "elementwise", "is_leaf", "layer_of", "movement",
    "norm", "pooling", "register_rule", "resize", "rule_of", "views",
]  # fmt: skip
