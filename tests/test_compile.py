"""torch.compile: the base as the plain model, a subnet's graph as one graph."""

from __future__ import annotations

import warnings

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
