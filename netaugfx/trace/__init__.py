"""Module + inputs -> graph with a value at every node: meta copies, proxies that carry values, the tracer."""

from .meta import Remembered, is_plain
from .proxy import Guard
from .tracer import Inputs, Traced, is_torch_leaf, trace

__all__ = ["Guard", "Inputs", "Remembered", "Traced", "is_plain", "is_torch_leaf", "trace"]
