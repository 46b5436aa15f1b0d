"""A model in parts, as a whole: what every part by itself cannot show."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..contract import drop_hooks, extract_base
from ..copies import deep_copy
from ..examples import copied, with_values
from ..parts import WideParts, share
from ..plan import Config
from ..trace import in_mode, random_states_kept, set_random_states
from .judge import hooks_change_the_base, output_tensors, said, same, short


def fault_of_the_whole(wide: WideParts, configs: tuple[Config, ...], seed: int) -> str | None:
    """Return what breaks law 2 where the parts run in the model around them, None where nothing does.

    Subnets must run wherever the base does; the base must compute the same before and after, and keep its buffers; and
    no hook that subnets do not run may change what the whole computes. All this in each mode in which the base takes
    the example: a detector in training wants targets.
    """
    with random_states_kept():
        base, whole = extract_base(wide), deep_copy(wide)
        args, kwargs = with_values(wide.example, whole, seed)

        def outputs(run: Callable[..., Any]) -> list[Tensor]:
            set_random_states(seed)
            own_args, own_kwargs = copied((args, kwargs))
            with torch.no_grad():
                return output_tensors(run(*own_args, **own_kwargs))

        plain, hooked = whole, []
        if any(m._forward_hooks or m._forward_pre_hooks for m in wide.modules()):
            plain = deep_copy(wide)
            with suppress(Exception), torch.no_grad():  # what hooks left is of other images then
                others = tree_map(_darker, (args, kwargs))
                in_mode(plain, False)(*others[0], **others[1])
            hooked = _without_hooks(plain, configs)
        for mode in ("eval", "train"):
            for model in (base, whole, plain):
                in_mode(model, mode == "train")
            try:
                before, repeated = outputs(base), outputs(base)
            except Exception:
                continue
            repeats = mode == "eval" and _all_same(before, repeated)
            try:
                found = outputs(whole)
            except Exception as error:
                return f"in {mode} mode the whole fails where its parts are wide, and not before: {said(error)}"
            if repeats and not _all_same(before, found):
                return "the base computes something else where its parts are wide"
            if hooked and repeats and not _computes(plain, before, outputs):
                return hooks_change_the_base(hooked)
            kept = {name: b.clone() for name, b in whole.base.named_buffers()}
            for config in configs:
                at = f"in {mode} mode, at {short(config, wide.plan)}"
                try:
                    outputs(whole.at(config))
                except Exception as error:  # whatever the network raises, the base does not
                    return f"{at}, the whole fails, and the base does not: {said(error)}"
                for name, b in whole.base.named_buffers():
                    if not torch.equal(b, kept[name]):
                        return f"{at}, a pass changes the buffer '{name}'"
            if repeats and not _all_same(before, outputs(whole)):
                return "the base computes something else after a subnet ran"
    return None


def _darker(t: Any) -> Any:
    return t * 0.9 if isinstance(t, Tensor) and t.is_floating_point() else t


def _without_hooks(whole: WideParts, configs: tuple[Config, ...]) -> list[str]:
    """Take the hooks that no subnet runs from the parts that grow; return the paths of their modules."""
    had = []
    for path, part in whole.wides.items():
        if any(part.plan.config(share(c, path)) != part.base_config for c in configs):
            program, _ = part.program(*part.example)
            had += [f"{path}.{p}".rstrip(".") for p in drop_hooks(part.base, program)]
    return had


def _computes(
    model: nn.Module, expected: list[Tensor], outputs: Callable[[nn.Module], list[Tensor]]
) -> bool:
    try:
        return _all_same(expected, outputs(model))
    except Exception:
        return False


def _all_same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
