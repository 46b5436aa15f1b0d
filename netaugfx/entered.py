"""Which `with wide.at(config)` block a forward stands in."""

from __future__ import annotations

import threading

from torch._compile import _disable_dynamo

from .plan import Config


class Entered:
    """The configs of the `with wide.at(config)` blocks that are open, by thread."""

    def __init__(self) -> None:
        self.configs: dict[int, list[Config]] = {}

    @_disable_dynamo
    def enter(self, config: Config) -> None:
        """Open a block in this thread."""
        self.configs.setdefault(threading.get_ident(), []).append(config)

    @_disable_dynamo
    def leave(self) -> None:
        """Close the block that this thread opened last."""
        here = threading.get_ident()
        self.configs[here].pop()
        if not self.configs[here]:
            del self.configs[here]

    def here(self) -> Config | None:
        """Return the config of the innermost block of this thread, or of the only one that a thread of torch serves."""
        stack = self.configs.get(threading.get_ident())
        if stack is None and isinstance(threading.current_thread(), threading._DummyThread):
            stacks = list(self.configs.values())  # a backward pass that runs a forward again
            stack = stacks[0] if len(stacks) == 1 else None
        return stack[-1] if stack else None
