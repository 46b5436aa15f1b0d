"""torch.compile: the base as the plain model, a subnet's graph as one graph."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import pytest
import timm
import torch

import netaugfx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch._dynamo


@pytest.mark.filterwarnings("ignore")
def test_no_graph_break_beyond_the_plain_models() -> None:
    model = timm.create_model("resnet18", num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    wide = netaugfx.widen(model, factor=1.5, verify=False, example_inputs=x)
    torch._dynamo.reset()
    plain = torch._dynamo.explain(model)(x)
    torch._dynamo.reset()
    assert torch._dynamo.explain(wide)(x).graph_break_count == plain.graph_break_count
    torch._dynamo.reset()
    assert torch.equal(torch.compile(wide, backend="eager")(x), model(x))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_subnet_runs_compiled() -> None:
    model = timm.create_model("resnet18", num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    wide = netaugfx.widen(model, factor=1.5, verify=False, example_inputs=x)
    ran: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        def run(*inputs: object) -> object:
            ran.append(sum(n.op.startswith("call") for n in graph.graph.nodes))
            return graph(*inputs)

        return run

    torch._dynamo.reset()
    subnet = torch.compile(wide.at(wide.max_config), backend=backend)
    expected = wide.at(wide.max_config)(x)
    for _ in range(3):
        assert torch.equal(subnet(x), expected)
    assert len(ran) == 3
    assert min(ran) > 60


class Counter:
    """A backend that counts the graphs that it compiled and the times that they ran."""

    def __init__(self) -> None:
        self.compiled = 0
        self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        self.compiled += 1

        def run(*inputs: object) -> object:
            self.ran += 1
            return graph(*inputs)

        return run


@pytest.mark.filterwarnings("ignore")
def test_sampling_from_a_pool_never_recompiles() -> None:
    """Ten configs: more than torch.compile's limit of eight per function, after which it runs eager."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Conv2d(4, 5, 3), torch.nn.ReLU(), torch.nn.Conv2d(5, 2, 3),
    )  # fmt: skip
    x = torch.randn(2, 3, 12, 12)
    wide = netaugfx.widen(model, verify=False, example_inputs=x, diversity=4)
    generator = torch.Generator().manual_seed(0)
    counter = Counter()
    torch._dynamo.reset()

    @functools.cache
    def compiled(config: netaugfx.Config) -> Callable[..., torch.Tensor]:
        return torch.compile(wide.at(config), backend=counter)

    def step() -> None:
        config = wide.sample(generator, pool=10)
        x = torch.randn(2, 3, 12, 12)
        for p in wide.parameters():
            p.grad = None
        compiled(config)(x).square().sum().backward()
        found = {name: p.grad for name, p in wide.named_parameters()}
        for p in wide.parameters():
            p.grad = None
        wide.at(config)(x).square().sum().backward()
        for name, p in wide.named_parameters():
            assert (p.grad is None) == (found[name] is None)
            if p.grad is not None:
                torch.testing.assert_close(found[name], p.grad)

    for _ in range(60):
        step()
    assert compiled.cache_info().currsize == 10
    assert counter.compiled == 10
    assert counter.ran == 60  # one graph a pass: no graph break inside
    for _ in range(70):  # more configs than keep their layouts
        wide.at(wide.sample(generator))(x)
    for _ in range(20):
        step()
    assert counter.compiled == 10
    assert counter.ran == 80
