"""What is elastic, what is pinned and why: as text, as a graph, as a picture."""

from .description import describe, to_networkx
from .drawing import picture

__all__ = ["describe", "picture", "to_networkx"]
