"""The way in: trace, infer, plan, allocate, verify."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map_only

from .axes import size
from .checks import seed_of
from .copies import deep_copy
from .errors import InputError, NetAugFXError, PinnedError, PlanError, TraceError, VerifyError
from .examples import Example, arguments, on_meta, with_given
from .infer import OUTPUT, infer, names_kept
from .model import WideModel
from .parts import WideParts, calls_of, join, part_of
from .plan import Amount, Plan, with_choices
from .rules import is_leaf, resize
from .storage import Rooms, create, form, initial, own_seed
from .trace import META, Inputs, Remembered, Traced, in_mode, trace
from .verify import culprits
from .verify import verify as check

WRAPPERS = {"OptimizedModule": "_orig_mod"}  # class -> the attribute that is what it wraps
WRAPPERS |= dict.fromkeys(("DataParallel", "DistributedDataParallel"), "module")


def plan(
    model: nn.Module,
    *,
    factor: Amount = 3.0,
    diversity: Amount = 2,
    choices: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    max_config: Mapping[str, int] | None = None,
    divisor: int = 1,
    example_inputs: Any = None,
    keep: Iterable[str] = (),
    strict: bool = False,
) -> Plan:
    """Return what would grow in `model`, and how far; nothing wider is allocated, and `model` is not touched.

    Args:
        model: Any module; it may be on the meta device.
        factor: The largest size of a width over its base size r >= 1: a number, or a mapping from a kind
            (`stream`, `inner`) or a width-name glob to one.
        diversity: The number of sizes s >= 1 above the base, linearly spaced up to r; a number or a mapping.
        choices: Ratios (floats) or sizes in channels (ints) outright, or a mapping likewise.
        max_config: A config to grow to; widths that it leaves out do not grow.
        divisor: Sizes above the base are multiples of it.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments of the forward;
            only shapes and dtypes matter. Without it, the model's `default_cfg` or `pretrained_cfg` says the
            image size, else 224.
        keep: Globs of module names whose widths stay.
        strict: Raise instead of pinning.

    Raises:
        TraceError: The model cannot be traced. InputError: the example does not fit it.
        PlanError: Arguments out of range; a glob that matches nothing.
        PinnedError: With `strict`, one error that lists every width that is pinned, and every opaque module.
    """
    made, _ = _inferred(model, example_inputs, _globs(keep), {})
    if strict:
        _raise_if_pinned(made)
    return with_choices(
        made,
        factor=factor,
        diversity=diversity,
        choices=choices,
        max_config=max_config,
        divisor=divisor,
    )


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
                f"widen: with a plan, {', '.join(sorted(extra))} say nothing; make the plan with them."
            )
    example_inputs = plan_arguments.pop("example_inputs", None)
    keep, strict = _globs(plan_arguments.pop("keep", ())), plan_arguments.pop("strict", False)
    unknown = set(plan_arguments) - {"factor", "diversity", "choices", "max_config", "divisor"}
    if unknown:
        raise TypeError(f"widen() got unexpected arguments {', '.join(sorted(unknown))}.")
    pins: dict[str, str] = {}
    while True:
        if plan is None:
            made, example = _inferred(model, example_inputs, keep, pins)
            if strict:
                _raise_if_pinned(made)
            made = with_choices(made, **_without(plan_arguments, pins, made))
        else:
            _fits(plan, model)
            made, example = plan, on_meta(_example(model, example_inputs))
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


def _inferred(
    model: nn.Module, example_inputs: Any, keep: tuple[str, ...], pins: Mapping[str, str]
) -> tuple[Plan, Example]:
    """Return the widths of `model`; where its root cannot be traced, those of its traceable children."""
    example = _example(model, example_inputs)
    try:
        traces, example = _traces(model, example)
        return infer(traces, keep=keep, pins=pins)[0], example
    except (TraceError, InputError) as error:
        why = str(error).splitlines()[0]
        names_kept(keep, model)  # whatever the children have of them, a glob must match something
        if isinstance(error, InputError):
            # a detector wants targets in training; in eval mode its children see what they get
            cause = (str(error.__cause__).splitlines() or [""])[0]
            why = f"it runs on the example inputs in eval mode alone: {cause}"
        if not any(True for _ in model.children()):
            raise
        try:
            calls = calls_of(model, with_given(example_inputs, example))
        except TraceError as failure:
            said = (str(failure.__cause__).splitlines() or [""])[0]
            raise error if said in str(error) else type(error)(f"{error} {failure}") from None
        except Exception:  # it cannot be copied
            raise error from None
        plans = dict(_children(model, "", calls, keep, pins))
        if not pins and not keep and not any(made.widths for made in plans.values()):
            raise
        return join(model, plans, why), on_meta(example)


def _children(
    model: nn.Module,
    prefix: str,
    calls: Mapping[str, Example],
    keep: tuple[str, ...],
    pins: Mapping[str, str],
) -> Iterator[tuple[str, Plan]]:
    """Yield the plans of the largest traceable modules below `model`."""
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if path in calls and not is_leaf(child, path):
            start = f"{path}."
            mine = {k[len(start) :]: v for k, v in pins.items() if k.startswith(start)}
            inside = [p for p, _ in child.named_modules() if p]
            globs = [g[len(start) :] for g in keep if g.startswith(start)]
            if any(fnmatchcase(path, g) for g in keep):
                continue
            globs = [g for g in globs if any(fnmatchcase(p, g) for p in inside)]
            try:
                made, _ = infer(_traces(child, calls[path])[0], keep=globs, pins=mine)
            except NetAugFXError:
                made = None
            if made is not None and (made.widths or not made.opaque):
                yield path, made
                continue
        yield from _children(child, f"{path}.", calls, keep, pins)


def _allocate_parts(model: nn.Module, made: Plan, example: Example, seed: int) -> WideModel:
    calls = calls_of(model, example)
    base = _copied(model)  # once: what parts share, with each other or with the root, stays shared
    memo: dict[int, Any] = {}
    for path in made.parts:
        child = base.get_submodule(path)
        memo |= {id(x): x for x in (*child.modules(), *child.parameters(), *child.buffers())}
    for path in made.parts:
        child = base.get_submodule(path)
        memo[id(child)] = _around(child, part_of(made, path), calls[path], seed)
    return WideParts(deep_copy(base, memo), made, example, seed)


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


def _globs(keep: Iterable[str]) -> tuple[str, ...]:
    globs = (keep,) if isinstance(keep, str) else tuple(keep) if isinstance(keep, Iterable) else ()
    if not isinstance(keep, Iterable) or not all(isinstance(g, str) for g in globs):
        raise PlanError(f"keep must be globs of module names, such as ('head',); {keep!r} came.")
    return globs


def _raise_if_pinned(made: Plan) -> None:
    lines = [
        f"  {name}: {why}"
        for name, why in made.pinned.items()
        if why != OUTPUT and not why.startswith("it is kept by keep=")
    ]
    lines += [f"  {path}: opaque, {why}" for path, why in made.opaque.items()]
    if lines:
        raise PinnedError("strict=True, but these cannot grow:\n" + "\n".join(lines))


def _example(model: nn.Module, example_inputs: Any) -> Example:
    if not isinstance(model, nn.Module):
        raise TraceError(f"A torch.nn.Module was expected; {type(model).__name__} came.")
    if isinstance(model, WideModel):
        raise PlanError(
            "The model is wide already; give the user's own model, or extract_base(it)."
        )
    inside = WRAPPERS.get(type(model).__name__)
    if inside is not None and isinstance(getattr(model, inside, None), nn.Module):
        raise PlanError(
            f"{type(model).__name__} wraps the model; widen the model itself (.{inside}) first, and wrap what comes."
        )
    example = arguments(_default(model) if example_inputs is None else example_inputs)
    try:
        Inputs.of(model, *example)
    except InputError as error:
        if not isinstance(example_inputs, Mapping | list | tuple):
            raise
        kind = "keyword" if isinstance(example_inputs, Mapping) else "positional"
        raise InputError(
            f"{error} A {type(example_inputs).__name__} as example_inputs is the forward's {kind} arguments; one that "
            "is itself an argument goes into a tuple, example_inputs=(batch,)."
        ) from None
    return example


def _shapes(example: Example) -> list[torch.Size]:
    return [t.shape for t in tree_leaves(example) if isinstance(t, Tensor)]


def _traces(model: nn.Module, example: Example) -> tuple[list[Traced], Example]:
    """Trace `model` in the mode it is in and in the other one; return the example that was traced."""
    leaves = [t for t in tree_leaves(example) if isinstance(t, Tensor)]
    examples = [tree_map_only(Tensor, lambda t: t.detach().contiguous(), example)]
    if leaves and all(t.dim() > 1 and t.shape[0] == 1 for t in leaves):
        examples.insert(0, on_meta(example, batch=2))  # a norm cannot train on a batch of one
    remembered = Remembered()
    devices = [t.device for t in (*model.parameters(), *model.buffers())]
    device = next((d for d in devices if d != META), devices[0] if devices else None)
    for i, (args, kwargs) in enumerate(examples):
        try:
            first = trace(
                model, args, kwargs, is_leaf=is_leaf, remembered=remembered, device=device
            )
            break
        except NetAugFXError:
            if i + 1 == len(examples):
                raise
    other = copy.deepcopy(first.root)
    in_mode(other, not other.training)
    how: dict[str, Any] = {"is_leaf": is_leaf, "remembered": remembered, "device": first.device}
    second = trace(other, args, kwargs, real=model, **how)
    return [first, second], on_meta((args, kwargs))


def _default(model: nn.Module) -> Tensor:
    """Return an input as the model's own configuration says, else a 224-pixel image."""
    size_of: Sequence[int] = (224, 224)
    for name in ("pretrained_cfg", "default_cfg"):
        cfg = getattr(model, name, None)
        if isinstance(cfg, Mapping) and cfg.get("input_size"):
            size_of = tuple(cfg["input_size"])
            break
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    first = next((m for m in model.modules() if isinstance(m, layers)), None)
    if not isinstance(first, nn.Conv2d):
        raise PlanError(
            f"{type(model).__name__} does not start with a 2-d convolution, so its input is unknown; "
            "give example_inputs."
        )

    def image(channels: int) -> Tensor:
        return torch.empty((2, channels, *size_of[-2:]), dtype=first.weight.dtype, device="meta")

    if size_of[:-2] and size_of[0] != first.in_channels:
        try:  # the image may be taken apart (space to depth) before the first convolution
            _traces(model, arguments(image(size_of[0])))
            return image(size_of[0])
        except NetAugFXError:
            pass
    return image(first.in_channels)


def _fits(made: Plan, model: nn.Module) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, axes in made.axes.items():
        shape = [size(axis, made.base_config) for axis in axes]
        came = list(tensors[name].shape) if name in tensors else None
        if came != shape:
            raise PlanError(
                f"The plan is not of this model: it has '{name}' with shape {shape}, the model {came or 'nothing'}."
            )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return deep_copy(model)
    except RuntimeError as error:
        raise TraceError(f"{type(model).__name__} cannot be copied: {error}.") from error


def _allocate(model: nn.Module, made: Plan, example: Example, seed: int) -> WideModel:
    return _around(_copied(model), made, example, seed)


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
                room.register_parameter(f"{leaf}_axis{axis}", nn.Parameter(block, t.requires_grad))
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
