"""What a network computes, taken down for comparison: the measuring side of the law tests."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-9  # of float64, relative to the largest entry of what is compared

Run = Callable[..., Any]


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass.

    Args:
        output: what the forward returned, tensors detached.
        gradients: of each Parameter by name; None where it got none.
        inputs: the inputs' gradients.
        buffers: by name, after the pass.
        random: the global random state after the pass.
    """

    output: Any
    gradients: dict[str, Tensor | None]
    inputs: list[Tensor | None]
    buffers: dict[str, Tensor]
    random: Tensor


def leaves(value: Any, path: str = "output") -> Iterator[tuple[str, Any]]:
    """Every leaf of a nested output with its path; containers are part of the path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{type(value).__name__}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            name = f"{path}.{type(value).__name__}.{field.name}"
            yield from leaves(getattr(value, field.name), name)
    else:
        yield path, value


def detached(value: Any) -> list[tuple[str, Any]]:
    return [(path, x.detach().clone() if isinstance(x, Tensor) else x) for path, x in leaves(value)]


def run(call: Run, owner: nn.Module, inputs: tuple[Tensor, ...], seed: int = 0) -> Pass:
    """Call once and go back once.

    Args:
        call: what is called on the inputs.
        owner: the module whose Parameters and buffers are read.
        inputs: left as they are.
        seed: of the global random state before the pass; the state is put back afterwards.
    """
    for parameter in owner.parameters():
        parameter.grad = None
    given = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = call(*given)
        taken = detached(output)
        loss = weighted(output)
        assert loss is None or loss.isfinite(), "not finite: nothing can be compared"
        if loss is not None and loss.requires_grad:
            loss.backward()
        state = torch.get_rng_state()
    return Pass(
        output=taken,
        gradients={
            name: None if p.grad is None else p.grad.detach()  # the next pass makes new ones
            for name, p in owner.named_parameters()
        },
        inputs=[None if x.grad is None else x.grad.detach() for x in given],
        buffers={name: b.detach().clone() for name, b in owner.named_buffers()},
        random=state,
    )


def weighted(output: Any) -> Tensor | None:
    """A scalar that reads every output element with a weight of its own."""
    generator = torch.Generator().manual_seed(7)
    total = None
    for _, x in leaves(output):
        if isinstance(x, Tensor) and x.is_floating_point():
            weights = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
            term = (x * weights).sum()
            total = term if total is None else total + term
    return total


def step(owner: nn.Module, rate: float = 0.01) -> None:
    """One step of gradient descent, each Parameter's by its largest entry: nothing runs away."""
    with torch.no_grad():
        for parameter in owner.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad / (parameter.grad.abs().amax() + 1e-12)


# ---------------------------------------------------------------- comparing


def same_tensors(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """The same names and, by torch.equal, the same values."""
    assert list(found) == list(expected), (
        f"{what}: {set(found) ^ set(expected) or 'another order of names'}"
    )
    for name, b in expected.items():
        same(found[name], b, f"{what} {name}")


def same(a: Any, b: Any, what: str) -> None:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        assert a.dtype == b.dtype, f"{what}: {a.dtype} instead of {b.dtype}"
        assert a.shape == b.shape, f"{what}: {tuple(a.shape)} instead of {tuple(b.shape)}"
        if not equal(a, b):
            worst = (a.double() - b.double()).abs().max().item()
            raise AssertionError(f"{what}: not equal, worst difference {worst:.3g}")
    else:
        assert type(a) is type(b), f"{what}: {type(a)} instead of {type(b)}"
        assert isinstance(a, Tensor) or a == b, f"{what}: {a!r} instead of {b!r}"


def equal(a: Tensor, b: Tensor) -> bool:
    """torch.equal, a NaN equal to a NaN."""
    if torch.equal(a, b):
        return True
    if not a.is_floating_point():
        return False
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def same_output(found: Pass, expected: Pass, what: str) -> None:
    assert [path for path, _ in found.output] == [path for path, _ in expected.output], what
    for (path, a), (_, b) in zip(found.output, expected.output, strict=True):
        same(a, b, f"{what}: {path}")


def rounded_output(found: Pass, expected: Pass, what: str) -> None:
    """Equal but for the rounding of the dtype, where torch sums in another order."""
    assert [path for path, _ in found.output] == [path for path, _ in expected.output], what
    for (path, a), (_, b) in zip(found.output, expected.output, strict=True):
        worst = (a.double() - b.double()).abs().max().item()
        scale = max(1.0, b.double().abs().max().item())
        assert a.dtype == b.dtype, f"{what}: {path}: {a.dtype} instead of {b.dtype}"
        assert worst <= 16 * torch.finfo(b.dtype).eps * scale, f"{what}: {path}: off by {worst:.3g}"


def close(a: Tensor, b: Tensor, scale: float, what: str) -> None:
    """Within the float64 tolerance of the scale."""
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} instead of {tuple(b.shape)}"
    assert a.dtype == b.dtype == torch.float64, f"{what}: {a.dtype}, {b.dtype}"
    if a.numel():
        worst = (a - b).abs().max().item()
        assert worst <= TOLERANCE * scale, f"{what}: off by {worst:.3g}, at a scale of {scale:.3g}"


def largest(tensors: Any) -> float:
    """The largest absolute entry of some tensors."""
    entries = [x.abs().max().item() for x in tensors if isinstance(x, Tensor) and x.numel()]
    return max(entries, default=0.0)


def close_output(found: Pass, expected: Pass, what: str) -> None:
    assert [path for path, _ in found.output] == [path for path, _ in expected.output], what
    scale = largest(x for _, x in expected.output)
    for (path, a), (_, b) in zip(found.output, expected.output, strict=True):
        if isinstance(b, Tensor) and b.is_floating_point():
            close(a, b, scale, f"{what}: {path}")
        else:
            same(a, b, f"{what}: {path}")


def gradient_scale(*passes: Pass) -> float:
    return max(largest([*p.gradients.values(), *p.inputs]) for p in passes)


def close_inputs(found: Pass, expected: Pass, scale: float, what: str) -> None:
    for a, b in zip(found.inputs, expected.inputs, strict=True):
        close_or_none(a, b, scale, f"{what}: the input's gradient")


def close_or_none(a: Tensor | None, b: Tensor | None, scale: float, what: str) -> None:
    """Close, where None stands for zero."""
    if a is None and b is None:
        return
    shaped = a if a is not None else b
    assert shaped is not None
    zero = torch.zeros_like(shaped)
    close(zero if a is None else a, zero if b is None else b, scale, what)


# ---------------------------------------------------------------- where weights come from


def make_distinct(model: nn.Module) -> None:
    """Move the few weights that chance made equal; among 10^8 there are some."""
    parameters = dict(model.named_parameters())
    values, order = flat(parameters).sort()
    twice = order[1:][values[1:] == values[:-1]]
    start = 0
    for parameter in parameters.values():
        stop = start + parameter.numel()
        for place in twice[(twice >= start) & (twice < stop)].tolist():
            with torch.no_grad():
                parameter.view(-1)[place - start] *= 1.0 + 1e-6
        start = stop


class Provenance:
    """Tells where each element of an extracted network comes from, by its value alone.

    Every element of every Parameter of `wide` is distinct (noise in float64), so no layout need be known
    to say which element of a block, or of the base, an extracted element is a copy of.
    """

    def __init__(self, wide: nn.Module, network: nn.Module) -> None:
        self.parameters = dict(wide.named_parameters())
        values, order = flat(self.parameters).sort()
        assert values.dtype == torch.float64
        assert not (values[1:] == values[:-1]).any(), "the weights are not distinct"
        asked, back = flat(dict(network.named_parameters())).sort()
        # Sorted questions: the search walks through memory in order.
        place = torch.searchsorted(values, asked).clamp_(max=len(values) - 1)
        assert torch.equal(values[place], asked), "the network holds weights that wide has not"
        self.places = torch.empty_like(back)
        self.places[back] = order[place]
        self.names = [name for name, _ in network.named_parameters()]

    def scatter(self, network: nn.Module, gradients: Mapping[str, Tensor | None]) -> dict[str, Any]:
        """What a network's gradients say of `wide`'s, by name; zero for what was not extracted."""
        total = torch.zeros(sum(p.numel() for p in self.parameters.values()), dtype=torch.float64)
        named = dict(network.named_parameters())
        assert list(named) == self.names
        parts = [
            torch.zeros(p.numel(), dtype=torch.float64)
            if gradients[n] is None
            else gradients[n].flatten()
            for n, p in named.items()
        ]
        total.index_add_(0, self.places, torch.cat(parts))
        pieces = total.split([p.numel() for p in self.parameters.values()])
        return {
            name: piece.view(p.shape)
            for (name, p), piece in zip(self.parameters.items(), pieces, strict=True)
        }


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([x.detach().flatten() for x in tensors.values()])


# ---------------------------------------------------------------- configs and copies


def some_config(wide: Any, seed: int) -> dict[str, int]:
    """A config above the base: 0 is the largest, 1 grows one width alone, others draw every width."""
    draw = random.Random(seed)
    widths = list(wide.widths.values())
    if seed == 0 or not widths:
        return dict(wide.max_config)
    if seed == 1:
        one = draw.choice(widths)
        return {one.name: one.choices[-1]}
    drawn = {width.name: draw.choice(width.choices) for width in widths}
    return drawn if drawn != wide.base_config else dict(wide.max_config)


def without_dropout(model: nn.Module) -> nn.Module:
    """The same model, every drop probability zero."""
    for module in model.modules():
        for name in ("p", "drop_prob", "drop_rate", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def as_double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a careless library might touch."""
    tensors = [*model.named_parameters(remove_duplicate=False)]
    tensors += [*model.named_buffers(remove_duplicate=False)]
    return {
        "modules": [(name, type(m)) for name, m in model.named_modules(remove_duplicate=False)],
        "training": [m.training for m in model.modules()],
        "state": copy.deepcopy(model.state_dict()),
        "tensors": [(n, id(t), t.data_ptr(), t._version, t.requires_grad) for n, t in tensors],
        "gradients": [(n, None if t.grad is None else t.grad.clone()) for n, t in tensors],
        "hooks": [hooks(m) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def structure(model: nn.Module) -> dict[str, Any]:
    """What two copies of a model have in common, tensors aside; hooks by the names of their functions."""
    return {
        "modules": [
            (name, type(m).__module__, type(m).__qualname__)
            for name, m in model.named_modules(remove_duplicate=False)
        ],
        "training": [m.training for m in model.modules()],
        "hooks": [
            (kind, [hook_name(hook) for hook in found])
            for m in model.modules()
            for kind, found in hooks(m)
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


def hook_name(hook: Any) -> str:
    hook = getattr(hook, "hook", hook)  # torch wraps some when it copies a module
    return getattr(hook, "__qualname__", type(hook).__qualname__)


def hooks(module: nn.Module) -> list[tuple[str, Any]]:
    kinds = [
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    ]
    return [(kind, list(getattr(module, kind).values())) for kind in kinds]


def same_snapshot(now: dict[str, Any], before: dict[str, Any], what: str) -> None:
    for key in ("modules", "training", "tensors", "hooks", "attributes"):
        assert now[key] == before[key], f"{what}: {key} changed"
    same_tensors(now["state"], before["state"], what)
    for (name, a), (_, b) in zip(now["gradients"], before["gradients"], strict=True):
        same(a, b, f"{what}: gradient of {name}")
    assert torch.equal(now["random"], before["random"]), f"{what}: the global random state moved"
