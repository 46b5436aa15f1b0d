"""The traps of tracing, each in a network of a few layers."""

import copy
import functools
import operator
import random
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from netaugfx.errors import InputError, TraceError
from netaugfx.trace import Inputs, Remembered, Traced, trace

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


def test_named_opaque_modules_and_own_leaves():
    model = nn.Sequential(OrderedDict(a=Block(), b=nn.Sequential(nn.Conv2d(4, 4, 1))))
    traced = trace(model, (image(),), opaque={"a": "as asked"}, is_leaf=lambda m, path: path == "b")
    assert targets(traced) == ["a", "b"]
    assert traced.opaque == {"a": "as asked"}


def test_custom_backward_is_opaque():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Round(nn.Module):
        def forward(self, x):
            return Straight.apply(x)

    traced = check(nn.Sequential(Round()), image())
    assert "backward of its own" in traced.opaque["0"]


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


def test_python_random_is_an_error():
    class Drop(nn.Module):
        def forward(self, x):
            return x if random.random() < 0.5 else x * 2

    state = random.getstate()
    with pytest.raises(TraceError, match=r"'0' \(Drop\) draws.*frozen"):
        trace(nn.Sequential(Drop()), (image(),))
    assert random.getstate() == state
    with pytest.raises(TraceError, match=r"own forward.*draws"):
        trace(forward(lambda self, x: x * np.random.rand()), (image(),))
    assert trace(nn.Sequential(Drop()), (image(),), opaque={"0": "draws"}).opaque


def test_models_that_cannot_be_copied():
    with pytest.warns(FutureWarning):
        model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 1)))
    with pytest.raises(TraceError, match=r"module '0' .*parametrizations.weight_norm"):
        trace(model, (image(),))
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
    model = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 1)), nn.ReLU())
    traced = trace(model, (image(),))
    assert list(traced.opaque) == ["0"]
    assert "SpectralNorm" in traced.opaque["0"]


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
