"""The traps of tracing, each in a network of a few layers."""

import copy
import functools
import operator
import random
import sys
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torchvision.ops import nms

import netaugfx
from netaugfx.errors import InputError, TraceError
from netaugfx.trace import Applied, Inputs, Remembered, Traced, trace

Pair = namedtuple("Pair", "low high")


@dataclass
class Output:
    logits: Tensor
    features: Tensor


def image(*shape: int) -> Tensor:
    return torch.rand(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def forward(function, **children):
    """A module with this forward, and with these children, parameters and buffers."""
    cls = type("Model", (nn.Module,), {"forward": function})
    model = cls()
    for name, child in children.items():
        if isinstance(child, Tensor) and not isinstance(child, nn.Parameter):
            model.register_buffer(name, child)
        else:
            setattr(model, name, child)
    return model


def replay(model: nn.Module, traced: Traced, *args, **kwargs):
    """Run the traced graph on a copy of the model, with its real weights."""
    owner = copy.deepcopy(model)
    for name, tensor in traced.constants.items():
        owner.register_buffer(name, tensor)
    return fx.GraphModule(owner, traced.graph)(*Inputs.of(model, args, kwargs).tensors)


def check(model: nn.Module, *args, **kwargs) -> Traced:
    """Trace; the graph computes what the model does, and every node has its meta."""
    traced = trace(model, args, kwargs)
    traced.graph.lint()
    torch.manual_seed(0)
    got = replay(model, traced, *args, **kwargs)
    torch.manual_seed(0)
    torch.testing.assert_close(got, copy.deepcopy(model)(*args, **kwargs), rtol=0, atol=0)
    assert all({"val", "path", "source"} <= node.meta.keys() for node in traced.graph.nodes)
    return traced


def targets(traced: Traced) -> list[object]:
    return [node.target for node in traced.graph.nodes if node.op.startswith("call")]


class Block(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


# Shapes


def test_branch_on_a_size_is_a_guard():
    def pad_to_even(self, x):
        if x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        return self.block(x)

    model = forward(pad_to_even, block=Block())
    even, odd = check(model, image()), check(model, image(2, 3, 7, 8))
    assert F.pad not in targets(even)
    assert F.pad in targets(odd)
    (guard,) = even.guards
    assert guard.value is False
    assert guard.node.target.__name__ == "mod"
    assert guard.source.startswith("test_trace.py:")
    assert even.matches((image(),))
    assert even.matches((image(5, 3, 12, 9),))
    assert not even.matches((image(2, 3, 7, 8),))
    assert odd.matches((), {"x": image(1, 3, 9, 8)})
    assert not even.matches((image().double(),))
    assert not even.matches((image()[0],))


def test_what_torch_alone_reads_is_no_guard():
    def by_sample(self, x):
        n = x.shape[0]
        weight = self.block.weight.repeat(n, 1, 1, 1)
        y = F.conv2d(x.flatten(0, 1)[None], weight, groups=n)  # torch tries n as an integer
        return torch.reshape(y, (n, -1))

    def and_python(self, x):
        return by_sample(self, x) + len(range(x.shape[0]))

    block = nn.Conv2d(3, 4, 1)
    assert not check(forward(by_sample, block=block), image()).guards
    (guard,) = check(forward(and_python, block=block), image()).guards
    assert guard.value == 2


def test_same_padding():
    def same(self, x):
        pads = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[-2:]]
        x = F.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
        return F.conv2d(x, self.weight, None, 2)

    model = forward(same, weight=nn.Parameter(torch.rand(4, 3, 3, 3)))
    traced = check(model, image())
    assert traced.matches((image(2, 3, 16, 12),))
    replayed = replay(model, traced, image(2, 3, 16, 12))
    assert torch.equal(replayed, model(image(2, 3, 16, 12)))


def test_unpacked_shapes_stay_symbolic():
    def shuffle(self, x):
        B, C, H, W = x.shape
        return x.view(B, 2, C // 2, H, W).transpose(1, 2).reshape(B, -1, H, W)

    traced = check(forward(shuffle), image(2, 4, 8, 8))
    (view,) = traced.graph.find_nodes(op="call_method", target="view")
    assert [isinstance(size, fx.Node) for size in view.args[1:]] == [True, False, True, True, True]
    assert view.args[3].target.__name__ == "floordiv"
    assert view.args[3].meta["val"] == 2
    assert view.meta["val"].shape == (2, 2, 2, 8, 8)
    assert view.meta["val"].device.type == "meta"
    assert traced.matches((image(3, 6, 5, 5),))


def test_a_shape_counts_its_elements():
    def mean(self, x):
        assert x.shape.numel() == x.numel()
        return x.sum((2, 3)) / x.shape[2:].numel() * (x.size()[2:].numel() / x.shape.count(2))

    traced = check(forward(mean), image())
    assert traced.graph.find_nodes(op="call_method", target="numel")
    assert torch.allclose(
        replay(forward(mean), traced, image(2, 3, 5, 7)), mean(None, image(2, 3, 5, 7))
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.squeeze_(-1).squeeze_(-1),
        lambda y: y.t_() if y.dim() == 2 else y.squeeze_(),
        lambda y: y.unsqueeze_(0),
        lambda y: y.transpose_(0, 1),
        lambda y: y.swapaxes_(1, 2),
        lambda y: y.swapdims_(-1, 1),
    ],
)
def test_shapes_that_are_changed_in_place(change):
    def reshaped(self, x):
        y = x.mean((2, 3), keepdim=True)
        before = y.dim(), y.shape
        z = change(y)
        assert z is y
        assert (y.dim(), y.shape) != before
        return x.sum() * y.relu(), before[1][1]

    traced = check(forward(reshaped), image())
    mean = next(n for n in traced.graph.nodes if n.target == "mean")
    assert mean.meta["val"].shape == (2, 3, 1, 1)


def test_values_answer_as_themselves():
    seen = {}

    def look(self, x):
        n = x.shape[1]
        seen.update(
            tensor=isinstance(x, Tensor) and torch.is_tensor(x) and isinstance(x.shape, tuple),
            parameter=isinstance(self.weight, nn.Parameter) and not isinstance(x, nn.Parameter),
            number=isinstance(n, int)
            and not hasattr(n, "__iter__")
            and list(range(n)) == [0, 1, 2],
            missing=not hasattr(x, "no_such_attribute"),
            length=len(x) == 2 and len(x.shape) == x.ndim == x.dim() == 4,
            device=x.device.type == "cpu" and not x.is_cuda and str(x.device) == "cpu",
            dtype=x.dtype == torch.float32 and x.dtype in (torch.float32, torch.half),
            limit=torch.finfo(x.dtype).max > 1,
            contains=8 in x.shape and 9 not in x.shape,
            key={3: "three"}[n] == "three",
            text=f"{n}" == "3",
        )
        return x * self.weight

    traced = check(forward(look, weight=nn.Parameter(torch.ones(1))), image())
    assert all(seen.values()), seen
    assert traced.guards


def test_factories_are_nodes():
    def build(self, x):
        rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
        ones = torch.ones((x.shape[0], 1, 1, 1), device=x.device) + torch.tensor(2.0)
        return x * rows[:, None] + torch.zeros(x.shape) + ones + torch.rand(1)

    traced = check(forward(build), image())
    assert {torch.arange, torch.ones, torch.zeros, torch.rand, torch.tensor} <= set(targets(traced))
    assert traced.matches((image(3, 3, 9, 9),))
    assert not traced.constants


def test_tensors_that_python_made_are_constants():
    table = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    traced = check(forward(lambda self, x: x + torch.from_numpy(table)[:, None, None]), image())
    (constant,) = traced.constants.values()
    assert constant.flatten().tolist() == [1, 2, 3]


# Inputs and outputs


def test_two_inputs_and_keywords():
    model = forward(lambda self, x, y=None, *, scale=1.0: x + y * scale)
    traced = check(model, image(), y=image(2, 1, 8, 8), scale=2.0)
    assert [node.target for node in traced.graph.find_nodes(op="placeholder")] == ["x", "y"]
    assert traced.inputs.key == Inputs.of(model, (image(), image(2, 1, 8, 8)), {"scale": 2.0}).key
    assert traced.inputs.key != Inputs.of(model, (image(), image(2, 1, 8, 8)), {}).key
    assert traced.inputs.key != Inputs.of(model, (image(), image()), {"scale": 2.0}).key
    assert traced.inputs.structure == Inputs.of(model, (image(), image()), {"scale": 2.0}).structure


def test_the_call_stays_as_it_was_written():
    def by_name(function):  # as transformers wraps its forwards
        @functools.wraps(function)
        def wrapper(self, *args, **kwargs):
            sign = -1 if kwargs.pop("negative", False) else 1
            kwargs["scale"] = sign * (kwargs.get("scale") or 2.0)
            return function(self, *args, **kwargs)

        return wrapper

    @by_name
    def scaled(self, x, negative=None, scale=None, y=image(), *rest):  # noqa: B008
        return scale * x + y

    model = forward(scaled)
    check(model, image())
    check(model, x=image(), negative=True)
    check(model, image(), scale=3.0, y=image())
    check(forward(lambda self, x, /, y=1, *rest: x * y + rest[0]), image(), 2, image())


def test_nested_inputs():
    model = forward(lambda self, x, *rest, **options: x["a"] + x["b"][0] + rest[0] + options["z"])
    traced = check(model, {"a": image(), "b": [image()]}, image(), z=image())
    names = [node.target for node in traced.graph.find_nodes(op="placeholder")]
    assert names == ["x_a", "x_b_0", "rest_0", "options_z"]


@pytest.mark.parametrize(
    "pack",
    [
        lambda a, b: (a, [b]),
        lambda a, b: {"a": a, "b": (b,)},
        lambda a, b: OrderedDict(b=b, a=a),
        lambda a, b: Pair(a, high=b),
    ],
)
def test_outputs(pack):
    check(forward(lambda self, x: pack(x + 1, x * 2)), image())


def test_dataclass_output():
    model = forward(lambda self, x: Output(x + 1, features=x * 2))
    traced = trace(model, (image(),))
    out = replay(model, traced, image())
    assert isinstance(out, Output)
    assert torch.equal(out.features, image() * 2)
    assert traced.graph.output_node().meta["val"].logits.shape == image().shape


def test_wrong_shape_is_an_input_error():
    with pytest.raises(InputError, match=r"input: \(2, 4, 8, 8\).*channel.*test_trace.py:\d+"):
        trace(nn.Sequential(OrderedDict(block=Block())), (image(2, 4, 8, 8),))

    def square(self, x):
        assert x.shape[2] == 8, "8x8 only"
        return x

    with pytest.raises(InputError, match=r"x: \(2, 3, 9, 9\).*8x8 only"):
        trace(forward(square), (image(2, 3, 9, 9),))


def test_wrong_arguments_are_an_input_error():
    with pytest.raises(InputError, match="missing a required argument: 'x'"):
        trace(Block(), ())
    with pytest.raises(InputError, match="no tensor"):
        trace(forward(lambda self, x: x), (3,))


# Tensor data


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y * 2 if y.sum() > 0 else y


def test_a_module_that_reads_data_is_opaque():
    model = nn.Sequential(OrderedDict(gate=Gate(), head=nn.Conv2d(4, 2, 1)))
    traced = check(model, image())
    assert list(traced.opaque) == ["gate"]
    assert "bool" in traced.opaque["gate"]
    assert "test_trace.py:" in traced.opaque["gate"]
    assert targets(traced) == ["gate", "head"]
    assert traced.graph.find_nodes(op="call_module", target="gate")[0].meta["val"].shape == (
        2,
        4,
        8,
        8,
    )


def test_an_opaque_module_called_twice_is_always_a_leaf():
    class Sometimes(nn.Module):
        def forward(self, x, look):
            return x + 1 if look and x.max() > 0 else x

    traced = check(forward(lambda self, x: self.a(self.a(x, False), True), a=Sometimes()), image())
    assert targets(traced) == ["a", "a"]


def test_root_that_reads_data_is_a_trace_error():
    with pytest.raises(TraceError, match=r"Gate.*reads tensor data.*test_trace.py:\d+.*submodule"):
        trace(Gate(), (image(),))


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda x: x[x > 0], r"reads tensor data \(nonzero\)"),
        (lambda x: x.repeat_interleave((x[:, 0, 0, 0] > 0).long(), 0), r"reads tensor data \(repeat_interleave\)"),
        (lambda x: torch.allclose(x, x), r"reads tensor data \(item\)"),
        (lambda x: nms(x[0, 0, :, :4], x[0, 0, :, 0], 0.5), r"reads tensor data \(nms\)"),
        (lambda x: x.unique(), "calls aten::_unique2, which PyTorch cannot run without data,"),
        (lambda x: torch.arange(x.max()), r"reads tensor data \(item\)"),
        (lambda x: f"{x.mean():.3f}", "reads tensor data"),  # on the meta device it has no such format
    ],
)  # fmt: skip
def test_what_reads_data_is_named_by_operator_and_line(read, reason):
    line = r"(test_trace|boxes).py:\d+\. Move these lines"
    with pytest.raises(
        TraceError, match=rf"Cannot trace Model: its own forward {reason} at {line}"
    ):
        trace(forward(lambda self, x: read(x)), (image(),))


def test_named_opaque_modules_and_own_leaves():
    model = nn.Sequential(OrderedDict(a=Block(), b=nn.Sequential(nn.Conv2d(4, 4, 1))))
    traced = trace(model, (image(),), opaque={"a": "as asked"}, is_leaf=lambda m, path: path == "b")
    assert targets(traced) == ["a", "b"]
    assert traced.opaque == {"a": "as asked"}


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


straight = Straight.apply


def swish(x):
    return x * torch.sigmoid(x)


def old(function, *args):
    """Call what torch no longer recommends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


scripted = old(torch.jit.script, swish)


def test_a_custom_backward_is_one_node():
    traced = check(forward(lambda self, x: Straight.apply(x) + 1), image())
    first, _ = targets(traced)
    assert first == Applied(Straight)
    assert not traced.opaque
    assert check(nn.Sequential(forward(lambda self, x: Straight.apply(x))), image()).opaque == {}


def test_results_of_a_custom_backward():
    class Two(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, numbers, scale=2):
            ctx.mark_non_differentiable(x)
            return x * numbers[0], None, x + scale

    def run(self, x):
        a, nothing, b = Two.apply(x, [3, 4], 5)
        assert nothing is None
        return a + b

    check(forward(run), image())


def test_a_kept_apply_is_followed():
    class Kept(nn.Module):
        act = Straight.apply

        def __init__(self):
            super().__init__()
            self.own = Straight.apply

        def forward(self, x):
            return self.act(self.own(straight(x)))

    model = Kept()
    assert targets(check(model, image())) == [Applied(Straight)] * 3
    assert model.own is vars(model)["own"] is not Applied(Straight)
    assert not isinstance(straight, Applied)
    assert not isinstance(Kept.act, Applied)


def test_an_apply_hidden_in_a_closure_names_itself():
    hidden = Straight.apply
    model = forward(lambda self, x: hidden(x))
    assert "Straight.apply under another name" in check(nn.Sequential(model), image()).opaque["0"]
    with pytest.raises(
        TraceError, match=r"calls Straight\.apply under another name at test_trace.py:\d+"
    ):
        trace(model, (image(),))


def test_what_a_function_is_given_that_no_graph_holds():
    class Calls(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, function):
            return function(x)

    traced = check(nn.Sequential(forward(lambda self, x: Calls.apply(x, torch.relu))), image())
    assert "what a graph cannot hold" in traced.opaque["0"]


def test_a_function_may_draw_in_python():
    class Drop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * (random.random() < 0.5)

    before = random.getstate()
    assert not trace(forward(lambda self, x: Drop.apply(x)), (image(),)).opaque
    assert random.getstate() == before


@pytest.mark.parametrize(
    "function",
    [
        torch.autograd.Variable,
        lambda x: torch.autograd.Variable(x, requires_grad=True) * 2,
        lambda x: x * torch.autograd.Variable(torch.ones(1)),
        lambda x: torch.Tensor(x),
        lambda x: torch.FloatTensor(x),
        lambda x: x + torch.Tensor(x.size(0), 1, 1, 1).fill_(1.0),
        lambda x: x + torch.FloatTensor(x.size()).fill_(1.0),
        lambda x: x * torch.Tensor([2.0]),
        lambda x: x * isinstance(x, torch.FloatTensor),
        scripted,
        nn.Parameter,
    ],
)
def test_ways_into_torch_that_are_followed(function):
    new, tensor = torch.Tensor.__new__, torch.FloatTensor
    assert not check(forward(lambda self, x: function(x)), image()).opaque
    assert torch.Tensor.__new__ is new or torch.Tensor.__new__ == new
    assert torch.FloatTensor is tensor
    assert type(torch.Tensor([1.0])) is Tensor


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (torch.vmap(lambda x: x * 2), "torch.vmap"),
        (torch.func.grad(lambda x: x.sum()), "torch.func"),
        (lambda x: old(torch.jit.fork, torch.relu, x).wait(), "torch.jit.fork"),
        (lambda x: old(torch.jit.trace, torch.relu, x)(x), "torch.jit.trace"),
        (lambda x: torch.Tensor([x.shape[0]]) * x, "torch.Tensor"),
        (lambda x: Tensor._make_subclass(Tensor, x), "_make_subclass"),
        (lambda x: torch.nested.nested_tensor([x[0]])[0], "torch.nested.nested_tensor"),
        (lambda x: torch.from_dlpack(torch.to_dlpack(x)), "to_dlpack"),
    ],
)
def test_ways_into_torch_that_are_not(function, reason):
    with pytest.raises(TraceError, match=rf"calls .*{reason}.*test_trace.py:\d+"):
        trace(forward(lambda self, x: function(x)), (image(),))


def test_torchscript_modules_are_refused():
    model = nn.Sequential(old(torch.jit.script, nn.Conv2d(3, 4, 1)))
    with pytest.raises(TraceError, match=r"'0'.*TorchScript"):
        trace(model, (image(),))


def test_writing_to_data_is_opaque():
    def run(self, x):
        y = x * 2
        y.data = x
        return y

    assert ".data" in check(nn.Sequential(forward(run)), image()).opaque["0"]


# State


def test_model_hooks_and_random_states_are_untouched():
    model = nn.Sequential(Block(), nn.Dropout(0.5)).train()
    calls = []
    model.register_forward_hook(lambda *a: calls.append(a))
    model[0].conv.register_forward_pre_hook(lambda *a: calls.append(a))
    torch.nn.modules.module.register_module_forward_hook(everywhere := lambda *a: calls.append(a))
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    try:
        traced = trace(model, (image(),))
    finally:
        torch.nn.modules.module._global_forward_hooks.clear()
    assert callable(everywhere)
    assert calls == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert attributes == {name: set(module.__dict__) for name, module in model.named_modules()}
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert all(p.device.type == "meta" for p in traced.root.parameters())
    assert nn.Module.__call__.__module__ == "torch.nn.modules.module"
    assert torch.zeros.__class__.__name__ == "builtin_function_or_method"


def test_train_and_eval_flags_stay():
    def drop(self, x):
        return F.dropout(self.norm(x), 0.5, self.training) if self.training else self.norm(x)

    model = forward(drop, norm=nn.BatchNorm2d(3))
    model.norm.eval()
    assert F.dropout in targets(check(model, image()))
    assert not trace(model, (image(),)).root.norm.training
    assert F.dropout not in targets(check(model.eval(), image()))


def test_parameters_and_buffers_are_attributes():
    weight = nn.Parameter(torch.rand(3, 1, 1))

    def scale(self, x):
        self.steps.add_(1)
        self.steps += 1
        return x * self.first.weight * self.second.weight + self.plain + self.steps

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

    model = forward(scale, first=Holder(), second=Holder(), steps=torch.zeros(()))
    model.plain = torch.ones(3, 1, 1)  # a registered buffer it is not
    object.__setattr__(model, "plain", model.__dict__.pop("plain"))
    traced = check(model, image())
    assert [n.target for n in traced.graph.find_nodes(op="get_attr")] == [
        "steps",
        "first.weight",
        "plain",
    ]
    assert model.steps == 0


def test_writing_a_buffer_out_of_place_is_opaque():
    class Count(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x):
            self.steps = self.steps + 1
            return x * 2

    traced = check(nn.Sequential(Count()), image())
    assert "assigns to parameter or buffer 'steps'" in traced.opaque["0"]


class Stores(nn.Module):
    """Leaves tensors of every kind on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.scale = torch.tensor(2.0)
        self.log = []
        self.seen, self.state = 0, {"inner": []}

    def forward(self, x):
        x = self.conv(x)
        self.feature, self.pair = x.mean((2, 3)), (x, [x * 2])
        self.log.append(x)
        self.state["inner"].append(x)
        self.seen += len(x)
        self.shape = x.shape
        return x * self.feature.mean() * self.scale


@pytest.mark.parametrize("ran", ["never", "with a gradient", "without"])
def test_tensors_that_a_forward_stores_stay_off_the_copy(ran):
    model = Stores()
    fresh = trace(nn.Sequential(model), (image(),))
    if ran != "never":
        with torch.set_grad_enabled(ran == "with a gradient"):
            model(image())
    traced = trace(nn.Sequential(model), (image(),))
    assert str(traced.graph) == str(fresh.graph)
    root = traced.root[0]
    assert (root.seen, root.scale.shape) == (model.seen, ())
    assert hasattr(root, "feature") == hasattr(root, "shape") == (ran != "never")
    assert len(root.log) == len(root.state["inner"]) == (ran != "never")
    held = [*root.log, *root.state["inner"], *vars(root).values()]
    assert not any(isinstance(value, fx.Proxy) for value in held)
    again = trace(copy.deepcopy(traced.root).train(not model.training), (image(),))
    assert str(again.graph) == str(fresh.graph)
    assert ("0", "seen") in traced.read
    assert {("0", "feature"), ("0", "seen"), ("0", "pair")} <= traced.written
    assert not {("0", "feature"), ("0", "pair")} & set(traced.read)
    assert "__getattribute__" not in vars(nn.Module)


def test_a_module_that_fails_after_it_stored_leaves_nothing():
    class Half(nn.Module):
        def forward(self, x):
            self.feature = x * 2
            return x * float(x.detach().mean())

    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 1), Half()), (image(),))
    assert list(traced.opaque) == ["1"]
    assert not hasattr(traced.root[1], "feature")


def test_what_an_opaque_module_stores_is_no_constant():
    class Half(nn.Module):
        def forward(self, x):
            self.feature = x * 2
            return x * float(x.detach().mean())

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Half()

        def forward(self, x):
            return self.inner(x) + self.inner.feature

    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 1), Reads()), (image(),))
    assert list(traced.opaque) == ["1"]
    assert "a module that is kept as it is has left behind" in traced.opaque["1"]


def test_functional_batch_norm_is_traced_through():
    def norm(self, x):
        bn = self.bn
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training)

    traced = check(forward(norm, bn=nn.BatchNorm2d(3)), image())
    assert targets(traced) == [F.batch_norm]
    assert traced.graph.find_nodes(op="get_attr")[0].target == "bn.running_mean"


def test_assignment_into_a_slice():
    def assign(self, x):
        x = x.clone()
        x[:, :1] = 0
        y = x[:, 1:]
        y += 1
        return x

    check(forward(assign), image())


def test_no_grad_stays():
    def half(self, x):
        with torch.no_grad():
            y = self.block(x)
        return self.block(x) + y

    model = forward(half, block=Block())
    traced = check(model, image())
    owner = fx.GraphModule(copy.deepcopy(model), traced.graph)
    owner(image()).sum().backward()
    model(image()).sum().backward()
    assert torch.equal(owner.block.conv.weight.grad, model.block.conv.weight.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_traced_through(reentrant):
    def run(self, x):
        x = checkpoint(self.a, x, use_reentrant=reentrant)
        x = checkpoint(functools.partial(self.b, scale=2), x, use_reentrant=reentrant)
        return checkpoint_sequential([self.c], 1, x, use_reentrant=reentrant)

    model = forward(
        run, a=Block(), b=forward(lambda self, x, scale: x * scale), c=nn.Conv2d(4, 3, 1)
    )
    x = image().requires_grad_()
    assert targets(check(model, x)) == ["a.conv", "a.norm", F.relu, operator.mul, "c"]


def test_python_random_is_left_to_python():
    class Drop(nn.Module):
        def forward(self, x):
            return x if random.random() < 0.5 else x * 2

    state = random.getstate()
    assert "draws" in trace(nn.Sequential(Drop()), (image(),)).opaque["0"]
    assert random.getstate() == state
    with pytest.raises(TraceError, match=r"own forward.*draws"):
        trace(forward(lambda self, x: x * np.random.rand()), (image(),))
    assert trace(nn.Sequential(Drop()), (image(),), opaque={"0": "draws"}).opaque


def test_what_needs_hooks_is_no_fault_of_the_inputs():
    seen = []
    model = forward(lambda self, x: self.conv(x) * seen.pop(), conv=nn.Conv2d(3, 3, 1))
    model.conv.register_forward_hook(lambda module, args, output: seen.append(output))
    model(image())
    with pytest.raises(TraceError, match="fails without hooks, which tracing does not run"):
        trace(model, (image(),))


def test_arguments_that_do_not_fit_are_the_callers_to_mend():
    def run(self, x):
        try:
            return self.block(x, lengths=None)
        except TypeError:
            return self.block(x)

    traced = check(forward(run, block=Block()), image())
    assert not traced.opaque


@pytest.mark.parametrize("power", [2, 0.5])
def test_a_power_of_a_map(power):
    model = forward(lambda self, x: self.block(torch.pow(x, power)), block=Block())
    assert torch.pow in targets(check(model, image()))


def test_who_draws_is_named_not_what_it_calls():
    class Depth(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1))

        def forward(self, x):
            return self.block(x) if random.random() < 0.5 else x

    random.seed(0)
    while True:  # the next draw calls the block
        state = random.getstate()
        if random.random() < 0.5:
            break
    random.setstate(state)
    assert list(trace(nn.Sequential(Depth()), (image(),)).opaque) == ["0"]


def test_models_that_cannot_be_copied():
    with pytest.raises(TraceError, match=r"module '0' .*lazy"):
        trace(nn.Sequential(nn.LazyConv2d(4, 1)), (image(),))
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)))
    assert targets(check(model, image())) == ["0"]


# Structure


def test_shared_sliced_and_fresh_modules():
    def run(self, x):
        for layer in self.layers[:2]:
            x = layer(x)
        x = self.layers[1:](self.again(x))
        return nn.ReLU()(x)

    layers = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3)))
    traced = check(forward(run, layers=layers, again=layers[0]), image())
    modules = [node.target for node in traced.graph.find_nodes(op="call_module")]
    assert modules == ["layers.0", "layers.1", "layers.0", "layers.1", "layers.2"]


def test_paths_and_sources():
    traced = trace(nn.Sequential(OrderedDict(body=nn.Sequential(Block()))), (image(),))
    conv, norm, relu = (node for node in traced.graph.nodes if node.op.startswith("call"))
    assert {node.meta["path"] for node in (conv, norm, relu)} == {"body.0"}
    assert all(node.meta["source"].startswith("test_trace.py:") for node in (conv, norm, relu))


def test_graphs_are_deterministic():
    model = nn.Sequential(Gate(), nn.Conv2d(4, 4, 1), nn.ReLU())
    first, second = trace(model, (image(),)), trace(model, (image(),))
    assert str(first.graph) == str(second.graph)


def test_caches_of_the_user_stay_usable():
    @functools.cache
    def grid(h, w):
        return torch.ones(h, w)

    model = forward(lambda self, x: x * grid(x.shape[2], x.shape[3]))
    trace(model, (image(),))
    assert torch.equal(model(image()), image())


def test_autocast_stays():
    def half(self, x):
        with torch.autocast(device_type=x.device.type, dtype=torch.bfloat16):
            y = self.conv(x)
        return y.float() + self.conv(x)

    check(forward(half, conv=nn.Conv2d(3, 3, 1)), image())


def test_draws_that_a_graph_cannot_hold():
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x):
            return x + torch.rand(1, generator=self.generator)

    traced = trace(nn.Sequential(Noise()), (image(),))
    assert "torch.rand" in traced.opaque["0"]
    constant = torch.ones(3, 1, 1).numpy()
    with pytest.raises(TraceError, match="constant"):
        trace(forward(lambda self, x: x + torch.from_numpy(constant).bernoulli()), (image(),))


def test_old_hooks_that_compute_weights_are_opaque():
    with pytest.warns(FutureWarning):
        hooked = nn.utils.weight_norm(nn.Conv2d(3, 4, 1))
    for layer, name in (
        (nn.utils.spectral_norm(nn.Conv2d(3, 4, 1)), "SpectralNorm"),
        (hooked, "WeightNorm"),
    ):
        traced = trace(nn.Sequential(layer, nn.ReLU()), (image(),))
        assert list(traced.opaque) == ["0"]
        assert name in traced.opaque["0"]


def test_a_leaf_may_read_data():
    traced = trace(nn.Sequential(Gate()), (image(),), is_leaf=lambda m, path: path == "0")
    assert targets(traced) == ["0"]
    assert not traced.opaque


def test_a_model_on_the_meta_device():
    model = nn.Sequential(Gate(), nn.Conv2d(4, 4, 1)).to("meta")
    traced = trace(model, (image().to("meta"),))
    assert list(traced.opaque) == ["0"]
    assert traced.graph.output_node().meta["val"].shape == (2, 4, 8, 8)


class Mixed(nn.Module):
    """In place and not, views, the same shapes again and again, constants, results that need no gradient."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

    def forward(self, x):
        for conv, norm in zip(self.layers, self.norms, strict=True):
            y = F.hardswish(norm(conv(x)), inplace=True)
            y = F.dropout(y, 0.5, self.training) + F.hardsigmoid(x.detach())
            a, b = y.chunk(2, 1)
            x = torch.cat([a.mul(3).mul_(2), b.reshape(b.shape).sigmoid()], 1).transpose(2, 3) / 2
            x = x.contiguous(memory_format=torch.channels_last)
        return x.flatten(1) @ torch.ones(x[0].numel(), 2), x.double().argmax(1)


def _described(traced: Traced):
    """What every value is like, and which values share memory with it."""
    first, found = {}, []
    for i, node in enumerate(traced.graph.nodes):
        for t in [v for v in [node.meta["val"]] if isinstance(v, Tensor)]:
            home = first.setdefault(t.untyped_storage()._cdata, i)
            found.append((i, home, t.shape, t.stride(), t.dtype, t.requires_grad, t.is_leaf))
    return found


@pytest.mark.parametrize("training", [False, True])
def test_remembered_shapes_are_those_that_would_be_worked_out(training, monkeypatch):
    model, x = Mixed().train(training), torch.randn(2, 4, 6, 6)
    remembered = Remembered()
    trace(model, (x,), remembered=remembered)
    found = _described(trace(model, (x,), remembered=remembered))
    assert len(remembered.known) > 10

    def plainly(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

    monkeypatch.setattr(Remembered, "__torch_function__", plainly)
    assert found == _described(trace(model, (x,)))


class Drops(nn.Module):
    """It leaves its convolution out by chance, which Python or numpy draws (FractalNet)."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.conv, self.draw = nn.Conv2d(6, 6, 1), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if not self.training or self.draw() < 0.5 else x


@pytest.mark.parametrize("draw", [lambda: random.random(), lambda: np.random.rand()])
def test_a_module_that_draws_outside_torch_stays_as_it_is(draw: Callable[[], float]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), Drops(draw), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 3, 4, 4)
    before = random.getstate(), np.random.get_state()[1].tolist()
    wide = netaugfx.widen(model, example_inputs=x)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert "draws random numbers" in wide.plan.opaque["2"]
    assert set(wide.widths) == {"0"}
    seen = {wide.at(wide.max_config)(x).sum().item() for _ in range(20)}
    assert len(seen) == 2, "it draws anew in every pass"


@pytest.mark.parametrize(
    "fill",
    [
        lambda x, n: x.new_full((3, 1, 1), n),
        lambda x, n: torch.full((3, 1, 1), n),
        lambda x, n: torch.full_like(x, n),
    ],
)
def test_filling_with_an_element_of_a_tensor_reads_no_data(fill):
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.strides = torch.tensor([8.0, 16.0])

        def forward(self, x):
            return x * fill(x, self.strides[1])

    x = image()
    wide = netaugfx.widen(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), Strided()), example_inputs=x
    )
    assert not wide.plan.opaque
    assert torch.equal(wide.at({"0": 8})(x), netaugfx.extract(wide, {"0": 8})(x))
    assert torch.equal(wide.base(x), wide.base[1](wide.base[0](x)) * 16)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, n: torch.add(x, x, alpha=n),
        lambda x, n: F.softplus(x, n),
        lambda x, n: torch.linalg.vector_norm(x, n),
        lambda x, n: torch.nan_to_num(x, nan=n),
        lambda x, n: torch.roll(x, n.long(), 1),
        lambda x, n: F.scaled_dot_product_attention(x, x, x, scale=n),
    ],
)
def test_a_tensor_that_is_given_as_a_number_reads_data(call):
    """C code would take a proxy for a tensor's memory, and crash."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("number", torch.tensor(2.0))

        def forward(self, x):
            return call(x, self.number)

    with pytest.raises(TraceError, match="reads tensor data"):
        trace(Scaled(), (image(),))
    assert trace(nn.Sequential(Scaled()), (image(),)).opaque["0"]


def wide_pair() -> netaugfx.WideModel:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return netaugfx.widen(model, example_inputs=torch.zeros(2, 3, 4, 4), verify=False)


def test_a_subnet_may_be_traced_under_activation_checkpointing():
    wide, x = wide_pair(), torch.randn(2, 3, 4, 4)
    subnet = wide.at(wide.max_config)
    checkpoint(subnet, x, use_reentrant=False).sum().backward()  # its first pass, which traces
    found = [p.grad.clone() for p in wide.parameters()]
    wide.zero_grad()
    subnet(x).sum().backward()
    assert all(torch.equal(g, p.grad) for g, p in zip(found, wide.parameters(), strict=True))


def test_a_subnet_may_be_traced_inside_transforms_of_functions():
    wide, x = wide_pair(), torch.randn(2, 3, 4, 4)
    subnet = wide.at(wide.max_config)

    def loss(parameters, image):
        with subnet:
            return torch.func.functional_call(wide, parameters, (image[None],)).sum()

    parameters = {name: p.detach() for name, p in wide.named_parameters()}
    found = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    subnet(x).sum().backward()
    for name, p in wide.named_parameters():
        torch.testing.assert_close(found[name].sum(0), p.grad)


@pytest.mark.parametrize(
    "holds",
    [
        lambda x: type(x) is Tensor,
        lambda x: type(x.shape) is torch.Size,
        lambda x: type(x.shape[0]) is int,
        lambda x: isinstance(type(x), type) and not isinstance(x, type) and issubclass(type, type),
        lambda x: type("Made", (), {"n": 2}).n == 2 and type[int] == __builtins__["type"][int],
        lambda x: x.is_cuda is False and x.is_sparse is False,
    ],
)
def test_types_and_flags_are_what_they_are_without_tracing(holds):
    model = forward(lambda self, x: x * 2 if holds(x) else x)
    assert holds(image())
    assert targets(check(model, image()))[-1] is operator.mul
    assert "type" not in globals()


@pytest.fixture
def threads_that_switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("threads_that_switch_often")
def test_traces_in_several_threads_wait_for_each_other():
    wide, x = wide_pair(), torch.randn(2, 3, 4, 4)
    call = nn.Module.__call__
    expected = copy.deepcopy(wide).at(wide.max_config)(x)
    for _ in range(3):
        fresh = copy.deepcopy(wide)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(fresh.at(wide.max_config), [x] * 4))
        assert all(torch.equal(y, expected) for y in found)
        assert nn.Module.__call__ is call
