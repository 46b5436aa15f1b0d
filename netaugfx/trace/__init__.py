"""Module + inputs -> graph with a value at every node: meta copies, proxies that carry values, the tracer."""

from .attributes import Attribute
from .meta import META, Remembered, compute, is_plain, meta_copy, substitute
from .proxy import Guard
from .traced import Inputs, Traced
from .tracer import is_torch_leaf, trace

__all__ = [
    "META", "Attribute", "Guard", "Inputs", "Remembered", "Traced", "compute", "is_plain", "is_torch_leaf", "meta_copy",
    "substitute", "trace",
]  # fmt: skip
