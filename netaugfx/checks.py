"""What callers hand in, checked before anything is done with it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .copies import deep_copy
from .errors import ConfigError, InputError, StateError

SEEDS = -(2**63), 2**64  # what torch.Generator.manual_seed takes


def seed_of(seed: Any, function: str) -> int:
    """Return `seed`; raise ConfigError where torch could not seed a generator with it."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not SEEDS[0] <= seed < SEEDS[1]:
        raise ConfigError(
            f"{function}: seed must be a whole number of at most 64 bits; {seed!r} came."
        )
    return seed


def shape_of(shape: Any) -> tuple[int, ...]:
    """Return the shape of an input as a tuple; raise InputError where it is none."""
    lengths = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not lengths or not all(
        isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in lengths
    ):
        raise InputError(
            f"input_shape must be whole numbers from 1 on, batch included, such as (1, 3, 32, 32); {shape!r} came."
        )
    return lengths


def check_state(base: nn.Module, state_dict: Any, own: Collection[str] = ()) -> None:
    """Raise StateError where `base` would not load `state_dict`; nothing is loaded.

    Args:
        base: The module; what its `load_state_dict` takes is found out on a copy without values.
        state_dict: The checkpoint.
        own: Entries of `base` that a checkpoint does not have (blocks).
    """
    start = f"load_base: this is no checkpoint of the base, {type(base).__name__}: "
    if not isinstance(state_dict, Mapping):
        raise StateError(
            f"{start}{type(state_dict).__name__} came. Give a state_dict: entry name -> tensor."
        )
    memo: dict[int, Any] = {}
    for p in base.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    for b in base.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    empty: nn.Module = deep_copy(base, memo)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is copied to the meta device
            found: Any = empty.load_state_dict(state_dict, strict=False)
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise StateError(start + _few([x for x in lines[1:] or lines if x], "; ")) from error
    missing, unexpected = found if isinstance(found, tuple) else ((), ())  # a method of its own
    missing = [name for name in missing if name not in own]
    if missing or unexpected:
        both = [(missing, "missing"), (unexpected, "unexpected")]
        texts = [f"{len(some)} {what}: {_few(some, ', ')}" for some, what in both if some]
        raise StateError(f"{start}{'; '.join(texts)}.{_hint(empty, state_dict)}")


def _few(texts: Sequence[str], between: str, most: int = 3) -> str:
    rest = f"{between}and {len(texts) - most} more" if len(texts) > most else ""
    return between.join(texts[:most]) + rest


def _hint(base: nn.Module, state_dict: Mapping[str, Any]) -> str:
    """Return what to do, where the entries tell: a prefix that a wrapper gave them, or a wide model's state."""
    expected = base.state_dict().keys()
    start = next(iter(state_dict), "")[: -len(next(iter(expected), ""))]
    if start and {key.removeprefix(start) for key in state_dict} == expected:
        return f" Every entry starts with {start!r}, as a wrapper leaves it: take it off."
    rest = state_dict.keys() - expected
    if rest and all(re.search(r"_axis\d+$", key) for key in rest):
        return " A state of a wide model is loaded by wide.load_state_dict."
    return ""
