"""The first way in, without weights: trace, infer, plan."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .errors import InputError, NetAugFXError, PinnedError, PlanError, TraceError
from .examples import Example, arguments, on_meta, with_given
from .infer import OUTPUT, infer, names_kept, out_channels
from .model import WideModel
from .parts import calls_of, join, to_plan_for
from .plan import Amount, Plan, with_choices
from .rules import is_leaf
from .trace import META, ONE_AT_A_TIME, Inputs, Remembered, Traced, in_mode, trace

NOT_REACHED = (
    "is not called on the example in eval mode, so that what it is given is not known; "
    "an example that reaches it lets it grow"
)
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
    made, _ = inferred(model, example_inputs, globs_of(keep), {})
    if strict:
        raise_if_pinned(made)
    return with_choices(
        made,
        factor=factor,
        diversity=diversity,
        choices=choices,
        max_config=max_config,
        divisor=divisor,
    )


def inferred(
    model: nn.Module, example_inputs: Any, keep: tuple[str, ...], pins: Mapping[str, str]
) -> tuple[Plan, Example]:
    """Return the widths of `model`; where its root cannot be traced, those of its traceable children.

    Likewise where nothing grows in the whole, and some of it is opaque: a detector inside a module of the user's.
    """
    example = example_of(model, example_inputs)
    given = with_given(example_inputs, example)
    try:
        with ONE_AT_A_TIME:
            traces, traced_at = _traces(model, example)
            whole = infer(traces, keep=keep, pins=pins)[0]
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
            apart = _apart(model, given, keep, pins, why)
        except TraceError as failure:
            said = (str(failure.__cause__).splitlines() or [""])[0]
            raise error if said in str(error) else type(error)(f"{error} {failure}") from None
        except Exception:  # it cannot be copied
            raise error from None
        if not pins and not keep and not apart.widths:
            raise
        return apart, on_meta(example)
    if not whole.widths and whole.opaque and not pins and not keep:
        why = "; ".join(f"'{path}' {reason}" for path, reason in whole.opaque.items())
        with suppress(Exception):  # then the whole says why nothing grows
            apart = _apart(model, given, keep, pins, f"nothing grows in the whole, as {why}")
            if apart.widths:
                return apart, on_meta(example)
    return whole, traced_at


def _apart(
    model: nn.Module, given: Example, keep: tuple[str, ...], pins: Mapping[str, str], why: str
) -> Plan:
    """Return the joint plan of the largest traceable modules in `model`, which is run on `given` for that.

    Raises:
        TraceError: It does not run.
    """
    calls = calls_of(model, given)
    plans = dict(_children(model, "", calls, keep, pins))
    made = join(model, plans, why)
    return replace(made, opaque={**made.opaque, **_not_reached(model, "", calls, plans)})


def _not_reached(
    model: nn.Module, prefix: str, calls: Mapping[str, list[Example]], plans: Mapping[str, Plan]
) -> dict[str, str]:
    """Return the largest modules with layers, in none of the parts, of which the example reaches nothing."""
    found: dict[str, str] = {}
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if path in plans:
            continue
        if path in calls or any(called.startswith(f"{path}.") for called in calls):
            found |= _not_reached(child, f"{path}.", calls, plans)
        elif any(out_channels(m) for m in child.modules()):
            found[path] = NOT_REACHED
    return found


def _children(
    model: nn.Module,
    prefix: str,
    calls: Mapping[str, list[Example]],
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
                made, _ = infer(
                    _traces(child, to_plan_for(calls[path][0]))[0], keep=globs, pins=mine
                )
            except NetAugFXError:
                made = None
            if made is not None and (made.widths or not made.opaque):
                yield path, made
                continue
        yield from _children(child, f"{path}.", calls, keep, pins)


def raise_if_pinned(made: Plan) -> None:
    """Raise PinnedError with every width that cannot grow, but for outputs and what is kept on purpose."""
    lines = [
        f"  {name}: {why}"
        for name, why in made.pinned.items()
        if why != OUTPUT and not why.startswith("it is kept by keep=")
    ]
    lines += [f"  {path}: opaque, {why}" for path, why in made.opaque.items()]
    if lines:
        raise PinnedError("strict=True, but these cannot grow:\n" + "\n".join(lines))


def globs_of(keep: Iterable[str]) -> tuple[str, ...]:
    """Return `keep=` as a tuple of globs, of which one may come alone."""
    globs = (keep,) if isinstance(keep, str) else tuple(keep) if isinstance(keep, Iterable) else ()
    if not isinstance(keep, Iterable) or not all(isinstance(g, str) for g in globs):
        raise PlanError(f"keep must be globs of module names, such as ('head',); {keep!r} came.")
    return globs


def example_of(model: nn.Module, example_inputs: Any) -> Example:
    """Return `example_inputs=` as the arguments of a forward; without them, what the model's configuration says."""
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
