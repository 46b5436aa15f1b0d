"""(graph, Plan) -> a program at a config: one graph for all configs, and the statistics that it gathers."""

from .calibrate import BatchStatistics, averages
from .program import (
    Bound,
    Program,
    called_as_it_is,
    checked,
    count,
    nothing,
    opaque,
    scaled,
    submodule,
    tensor,
)
from .rewriting import contract, replace_argument, rewrite

__all__ = [
    "BatchStatistics", "Bound", "Program", "averages", "called_as_it_is", "checked", "contract", "count", "nothing",
    "opaque", "replace_argument", "rewrite", "scaled", "submodule", "tensor",
]  # fmt: skip
