"""Several threads that plan, widen and run at once, and others that draw random numbers meanwhile."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netaugfx
from netaugfx.trace.surroundings import random_states, random_states_differ

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Repeats(nn.Module):
    """Calls its body six times, and reads data in between, so that the body is a part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for _ in range(6):
            x = x + self.body(x)
            if x.sum() == 12345:
                break
        return x


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_through_parts_has_its_own_config(training: bool) -> None:
    wide = netaugfx.widen(Repeats(), factor=4, diversity=3, example_inputs=X).train(training)
    assert wide.plan.parts == ("body",)
    configs = [{"body.0": n} for n in wide.widths["body.0"].choices]
    wide.at(configs[-1])(X)
    buffers = {name: b.clone() for name, b in wide.base.named_buffers()}
    expected = [wide.at(config)(X) for config in configs[1:]]

    def same(i: int) -> bool:
        k = i % len(expected)
        return torch.equal(wide.at(configs[1 + k])(X), expected[k])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(60)))
    assert all(torch.equal(b, buffers[name]) for name, b in wide.base.named_buffers())


@contextmanager
def drawing(draw: Callable[[], Any]) -> Iterator[list[Any]]:
    """Another thread that draws all the time; what it drew."""
    found: list[Any] = []
    done = threading.Event()

    def loop() -> None:
        while not done.wait(1e-4):
            found.append(draw())

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


DRAWS = [
    random.random,
    lambda: float(np.random.rand()),
    lambda: float(torch.rand((), dtype=torch.float64)),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_what_other_threads_draw_is_theirs(draw: Callable[[], float]) -> None:
    """A model is not taken for one that draws, and the generators are not put back under their hands."""
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(8)))
    with drawing(draw) as drawn:
        shares = [netaugfx.plan(model, example_inputs=X).elastic_share for _ in range(5)]
    assert shares == [1.0] * 5
    assert len(drawn) > 20
    assert len(set(drawn)) == len(drawn)


class Draws(nn.Module):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.conv, self.draw = nn.Conv2d(3, 4, 1), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.draw()


CONSTANT = torch.zeros(())


@pytest.mark.parametrize("beside_others", [False, True])
@pytest.mark.parametrize(
    "draw",
    [
        lambda: random.random(),
        lambda: random.choice([1.0, 2.0]),
        lambda: float(np.random.rand()),
        lambda: nn.init.normal_(CONSTANT),
    ],
)
def test_what_a_forward_draws_is_seen(draw: Callable[[], float], beside_others: bool) -> None:
    """It is refused, and the generators are put back."""
    model = Draws(draw)
    before = random_states()
    others = drawing(lambda: None) if beside_others else nullcontext()
    with others, pytest.raises(netaugfx.TraceError, match="draws random numbers"):
        netaugfx.plan(model, example_inputs=X)
    assert not random_states_differ(random_states(), before)
