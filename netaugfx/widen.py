"""The way in: plan, allocate, verify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from .axes import size
from .checks import seed_of
from .copies import deep_copy
from .errors import PlanError, TraceError, VerifyError
from .examples import Example, on_meta, with_given
from .model import WideModel
from .parts import WideParts, calls_of, part_of, to_plan_for
from .plan import Plan, with_choices
from .planning import example_of, globs_of, inferred, raise_if_pinned
from .rules import resize
from .storage import Rooms, create, form, initial, own_seed
from .verify import culprits
from .verify import verify as check


def widen(
    model: nn.Module,
    *,
    plan: Plan | None = None,
    seed: int = 0,
    verify: bool = True,
    **plan_arguments: Any,
) -> WideModel:
    """Return a WideModel around a copy of `model`: every width can grow, and at rest it is the base.

    Args:
        model: Any module; it is not touched, and neither is the global random state.
        plan: A plan made for a model of the same structure; without it one is made from `plan_arguments`.
        seed: Of the new blocks' initial values, and of `WideModel.sample`.
        verify: Check laws 2, 3 and 4 by numbers before returning. What fails is found, pinned and reported in
            `pinned`.
        **plan_arguments: As `netaugfx.plan` takes them.

    Raises:
        TypeError: An unknown argument. ConfigError: `seed` is no whole number.
        PlanError: Nothing can grow, `plan` is not of this model, or memory is short. As `plan` otherwise.
        VerifyError: A law is broken, and pinning widths does not mend it.
    """
    seed = seed_of(seed, "widen")
    if plan is not None:
        if not isinstance(plan, Plan):
            raise PlanError(f"widen: plan must be what netaugfx.plan returned; {plan!r} came.")
        extra = set(plan_arguments) - {"example_inputs"}
        if extra:
            raise TypeError(
                f"widen: {', '.join(sorted(extra))} came beside a plan, which settles that; make the plan with them."
            )
    example_inputs = plan_arguments.pop("example_inputs", None)
    keep, strict = globs_of(plan_arguments.pop("keep", ())), plan_arguments.pop("strict", False)
    unknown = set(plan_arguments) - {"factor", "diversity", "choices", "max_config", "divisor"}
    if unknown:
        raise TypeError(f"widen() got unexpected arguments {', '.join(sorted(unknown))}.")
    pins: dict[str, str] = {}
    while True:
        if plan is None:
            made, example = inferred(model, example_inputs, keep, pins)
            if strict:
                raise_if_pinned(made)
            made = with_choices(made, **_without(plan_arguments, pins, made))
        else:
            _fits(plan, model)
            made, example = plan, on_meta(example_of(model, example_inputs))
        if not made.widths:
            said = {*made.pinned.values(), *made.opaque.values()}
            reasons = sorted(said, key=lambda r: (not r.startswith("verification failed"), r))
            raise PlanError(
                f"Nothing can grow in {type(model).__name__}: "
                + ("; ".join(reasons[:5]) or "it has no layers that have rules")
                + "."
            )
        build = _allocate_parts if made.parts else _allocate
        given = with_given(example_inputs, example)
        if made.parts or (made.opaque and _shapes(given) == _shapes(example)):
            example = given  # what is not traced may look at values
        _reserve(made, model)
        wide = build(model, made, example, seed)
        if not verify:
            return wide
        small = build(model, probe(made), example, seed)
        report = check(small, [small.max_config])
        if report:
            return wide
        found = culprits(small)
        if not found or plan is not None:
            raise VerifyError(
                f"{type(model).__name__}: {report}. Widths found at fault: {found or 'none'}."
            )
        pins.update(dict.fromkeys(found, f"verification failed: {report}"))


def probe(made: Plan) -> Plan:
    """Return `made` with every width growing by little, and by another amount than its neighbours.

    The laws do not depend on how far widths grow; a little is cheap, and two widths that ought to be one but have the
    same base size are told apart.
    """
    widths = [
        replace(w, choices=(w.base, w.base + 1 + i % 3, w.base + 4 + i % 3))
        if len(w.choices) > 1
        else w
        for i, w in enumerate(made.widths)
    ]
    return replace(made, widths=tuple(widths))


def _without(arguments: dict[str, Any], pins: Mapping[str, str], made: Plan) -> dict[str, Any]:
    """Return the plan's arguments without sizes for widths that verification has pinned."""
    if not pins or not isinstance(arguments.get("max_config"), Mapping):
        return arguments
    largest = {k: v for k, v in arguments["max_config"].items() if k not in pins}
    return {**arguments, "max_config": largest}


def _reserve(plan: Plan, model: nn.Module) -> None:
    """Refuse a plan whose blocks there is no memory for, before any of them is made: none is written to here."""
    first = next(model.parameters(), torch.empty(0))
    try:
        torch.empty(plan.augmented_elements, dtype=first.dtype, device=first.device)
    except (RuntimeError, MemoryError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise PlanError(
            f"The blocks of this plan take {plan.block_memory(first.element_size())}, which cannot be allocated "
            f"({said}). Take a smaller factor, or keep=... for the largest layers; describe(plan(...)) tells the size."
        ) from error


def _fits(made: Plan, model: nn.Module) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, axes in made.axes.items():
        shape = [size(axis, made.base_config) for axis in axes]
        came = list(tensors[name].shape) if name in tensors else None
        if came != shape:
            raise PlanError(
                f"The plan is not of this model: it has '{name}' with shape {shape}, the model {came or 'nothing'}."
            )


def _shapes(example: Example) -> list[torch.Size]:
    return [t.shape for t in tree_leaves(example) if isinstance(t, Tensor)]


def _allocate(model: nn.Module, made: Plan, example: Example, seed: int) -> WideModel:
    return _around(_copied(model), made, example, seed)


def _allocate_parts(model: nn.Module, made: Plan, example: Example, seed: int) -> WideModel:
    calls = calls_of(model, example)
    base = _copied(model)  # once: what parts share, with each other or with the root, stays shared
    memo: dict[int, Any] = {}
    for path in made.parts:
        child = base.get_submodule(path)
        memo |= {id(x): x for x in (*child.modules(), *child.parameters(), *child.buffers())}
    for path in made.parts:
        child = base.get_submodule(path)
        planned_for = to_plan_for(calls[path][0])
        memo[id(child)] = _around(child, part_of(made, path), planned_for, seed)
    calls = {path: calls[path] for path in made.parts}
    return WideParts(deep_copy(base, memo), made, example, calls, seed)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return deep_copy(model)
    except RuntimeError as error:
        raise TraceError(f"{type(model).__name__} cannot be copied: {error}.") from error


def _around(base: nn.Module, made: Plan, example: Example, seed: int) -> WideModel:
    """Return the WideModel whose base is this very module."""
    tensors = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    rooms = Rooms()
    fresh: dict[str, dict[str, Tensor] | None] = {}
    for name in made.axes:
        whole = form(made, name)
        if not whole.order or whole.fill is not None or made.max_config == made.base_config:
            continue
        path, _, leaf = name.rpartition(".")
        t = tensors[name]
        if path not in fresh:
            fresh[path] = _reset(base.get_submodule(path), path, made, seed)
        with torch.device("cpu"):  # where blocks begin, whatever the default is
            full = initial(whole, t, made, seed, fresh[path])
            blocks = create(whole, t, full, made)
        for axis, block in blocks.items():
            room = rooms.room(path)
            if isinstance(t, nn.Parameter):
                room.register_parameter(
                    f"{leaf}_axis{axis}",
                    nn.Parameter(block, block.is_floating_point() or block.is_complex()),
                )
            else:
                room.register_buffer(f"{leaf}_axis{axis}", block)
    rooms.train(base.training)
    return WideModel(base, made, rooms, example, seed)


def _reset(module: nn.Module, path: str, made: Plan, seed: int) -> dict[str, Tensor] | None:
    """Return the layer's Parameters in their largest shapes as its own `reset_parameters` makes them."""
    if not hasattr(module, "reset_parameters") or parametrize.is_parametrized(module):
        return None
    device = "meta" if any(p.device.type == "meta" for p in module.parameters()) else "cpu"
    memo: dict[int, Any] = {}
    for leaf, t in {**module._parameters, **module._buffers}.items():
        if t is None:
            continue
        axes = made.axes.get(f"{path}.{leaf}" if path else leaf)
        shape = t.shape if axes is None else [size(axis, made.max_config) for axis in axes]
        kind = torch.float32 if t.is_floating_point() else t.dtype
        empty = torch.full(
            shape, float("nan") if t.is_floating_point() else 0, dtype=kind, device=device
        )
        memo[id(t)] = nn.Parameter(empty) if isinstance(t, nn.Parameter) else empty
    largest: Any = deep_copy(module, memo)
    resize(largest)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(own_seed(path, seed))
        try:
            largest.reset_parameters()
        except (RuntimeError, ValueError, TypeError, AttributeError):
            return None
    return {k: p.detach() for k, p in largest._parameters.items() if p is not None}
