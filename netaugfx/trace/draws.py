"""Who draws random numbers while a model is traced: this thread, or another one."""

from __future__ import annotations

import functools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .surroundings import random_states, random_states_differ, random_states_kept


class Draws:
    """What this thread draws from the global generators, which are those of all threads.

    Where it is the only thread, every draw is its own. Beside others its draws are seen as they are made: by functions
    of `random` and `numpy.random`, and by those of torch that are called while a model is traced. One that a file took
    by name (`from random import random`) is not: `widen` refuses its model then by numbers, `plan` alone does not.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.alone = threading.active_count() == 1
        self.noted = self.ever = False
        self.states = random_states()

    def since(self) -> bool:
        """Whether this thread has drawn since this was asked last."""
        before, self.states = self.states, random_states()
        noted, self.noted = self.noted, False
        return (self.alone or noted) and random_states_differ(self.states, before)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave the global random states as they were, unless it is other threads alone that have drawn."""
        with random_states_kept(lambda: self.alone or self.ever):
            yield

    def note(self) -> None:
        """Remember that somebody draws, if it is this thread."""
        if threading.get_ident() == self.thread:
            self.noted = self.ever = True

    def noticed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that tells of its draws."""

        @functools.wraps(function)
        def draws(*args: Any, **kwargs: Any) -> Any:
            self.note()
            return function(*args, **kwargs)

        return draws

    def of_torch(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function of torch on real tensors, and notice whether it draws."""
        if self.alone:
            return function(*args, **kwargs)
        before = torch.get_rng_state()
        result = function(*args, **kwargs)
        if not torch.equal(before, torch.get_rng_state()):
            self.note()
        return result

    def replacements(self) -> Iterator[tuple[Any, str, Any]]:
        """Yield owner, name and what tells of its draws, of the functions outside of torch; none if alone."""
        if self.alone:
            return
        rooms: list[tuple[Any, Any]] = [(random, random._inst)]
        if "numpy" in sys.modules:
            numpy = sys.modules["numpy"].random
            rooms.append((numpy, numpy.mtrand._rand))
        for room, generator in rooms:
            for name, function in list(vars(room).items()):
                reads = name in ("getstate", "get_state")
                if getattr(function, "__self__", None) is generator and not reads:
                    yield room, name, self.noticed(function)
