"""Module + inputs -> graph with a value at every node: meta copies, proxies that carry values, the tracer."""

from .attributes import Attribute
from .forwards import forward_of
from .functions import Applied
from .guards import Guard
from .meta import (
    META,
    Remembered,
    compute,
    in_mode,
    is_plain,
    meta_copy,
    on_meta,
    on_random_data,
    real_copy,
    substitute,
    without_caches,
)
from .surroundings import ONE_AT_A_TIME, random_states_kept, set_random_states
from .traced import Inputs, Traced
from .tracer import is_torch_leaf, trace

__all__ = [
    "META", "ONE_AT_A_TIME", "Applied", "Attribute", "Guard", "Inputs", "Remembered", "Traced", "compute", "forward_of",
    "in_mode", "is_plain", "is_torch_leaf", "meta_copy", "on_meta", "on_random_data", "random_states_kept", "real_copy",
    "set_random_states", "substitute", "trace", "without_caches",
]  # fmt: skip
