"""The global state that a trace leaves as it was: random generators, and what runs around it."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

# What a trace replaces of torch is everybody's: who looks functions of torch up waits until it has ended.
ONE_AT_A_TIME = threading.RLock()


def random_states() -> tuple[Any, ...]:
    """The global random states: Python's, numpy's (None where it is not imported), torch's."""
    numpy = sys.modules.get("numpy")
    return random.getstate(), numpy and numpy.random.get_state(), torch.get_rng_state()


def random_states_differ(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    """Whether anything was drawn between two calls of `random_states`."""
    numpy = first[1] and second[1] and (second[1][1] != first[1][1]).any()
    moved = first[1] and second[1] and second[1][2:] != first[1][2:]
    return bool(first[0] != second[0] or numpy or moved or not torch.equal(first[2], second[2]))


def set_random_states(seed: int) -> None:
    """Seed all that `random_states` reads."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


@contextmanager
def by_itself() -> Iterator[None]:
    """Hide what runs inside from what runs around it: transforms of torch.func, and hooks on what backward saves."""
    none: Any = nullcontext()
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        none = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    with temporarily_clear_interpreter_stack(), none:
        yield


@contextmanager
def random_states_kept(put_back: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Leave the global random states as they were, CUDA's too, if `put_back` says so in the end."""
    python, numpy, cpu = random_states()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = torch.cuda.get_rng_state_all() if cuda else []
    try:
        yield
    finally:
        if put_back():
            random.setstate(python)
            torch.set_rng_state(cpu)
            if numpy is not None:
                sys.modules["numpy"].random.set_state(numpy)
            if cuda:
                torch.cuda.set_rng_state_all(devices)
