"""What a law is tested on: a network of some source, widened in some way, at some config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import hypothesis
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

import netaugfx
from tests import measure, modules
from tests.networks import CASES


class Source(Protocol):
    """A `NetworkSpec` or a `Case`."""

    @property
    def core(self) -> bool: ...

    @property
    def mixes(self) -> bool: ...

    @property
    def large(self) -> bool: ...

    @property
    def fused(self) -> bool: ...

    def build(self, seed: int = 0) -> nn.Module: ...

    def inputs(
        self, seed: int = 0, batch: int = 2, size: int | None = None
    ) -> tuple[Tensor, ...]: ...

    def other_size(self) -> int | None: ...


@dataclass(frozen=True)
class Growth:
    """How a network is widened, and at which config it is looked at.

    Args:
        factor, diversity: as in `netaugfx.widen`.
        seed: of the weights.
        config: which config: 0 the largest, 1 one width alone, else a random one.
        eval: whether the network is in eval mode.
    """

    factor: float = 3.0
    diversity: int = 2
    seed: int = 0
    config: int = 0
    eval: bool = False


growths = st.builds(
    Growth,
    factor=st.sampled_from([3.0, 2.0, 1.5]),
    diversity=st.sampled_from([2, 1, 3]),
    seed=st.integers(0, 3),
    config=st.integers(0, 50),
    eval=st.booleans(),
)
BY_HAND = tuple(
    Growth(3.0, 2, 0, config, evaluate) for config in (0, 1, 2) for evaluate in (False, True)
)
REAL_MODELS = (Growth(1.5, 1, 0, 0, eval=False), Growth(1.5, 1, 0, 2, eval=True))
LARGE_MODELS = tuple(replace(growth, factor=1.05) for growth in REAL_MODELS)  # for their memory


def growths_of(case: Source) -> tuple[Growth, ...]:
    """How a real model is widened."""
    return LARGE_MODELS if case.large else REAL_MODELS


# Under the deep and sweep profiles test_all_laws.py holds all laws against each random network.
few = settings(max_examples=min(settings.default.max_examples, 50))

# One law after the other, and one config after the other, meets the same network. Those by hand are told by name; of
# random ones the last is kept.
plans: dict[str, netaugfx.Plan] = {}
of_random: dict[str, netaugfx.Plan] = {}


def widen_double(source: Source, growth: Growth, dropout: bool = True) -> tuple[Any, nn.Module]:
    """A wide float64 model, and the model that it was made of."""
    model = modules.randomise(source.build(growth.seed).double(), growth.seed)
    if not dropout:
        model = measure.without_dropout(model)
    inputs = measure.as_double(source.inputs())
    return widen(source, growth, model, example_inputs=inputs), model


def widen(source: Source, growth: Growth, model: nn.Module | None = None, **arguments: Any) -> Any:
    """The wide model of a source, its blocks as random as its base.

    Nothing is verified, but for networks outside the core: the laws hold for what inference says, not
    for what is left of it. A network is planned, and verified, for the first law that asks; where verify found fault,
    for each. A random one without any width is passed over.
    """
    model = source.build(growth.seed) if model is None else model
    if growth.eval:
        model.eval()
    random = hypothesis.currently_in_test_context()
    usual = arguments.keys() <= {"example_inputs"} and (random or any(source is c for c in CASES))
    kept = of_random if random else plans
    subject = repr((source, replace(growth, config=0)))
    known = kept.get(subject) if usual else None
    how: dict[str, Any] = {"factor": growth.factor, "diversity": growth.diversity}
    how |= {"verify": not source.core, "example_inputs": source.inputs(), **arguments}
    if known is not None:
        how = {"plan": known, "verify": False, "example_inputs": how["example_inputs"]}
    try:
        wide = netaugfx.widen(model, seed=growth.seed, **how)
    except netaugfx.PlanError as error:
        if str(error).startswith("Nothing can grow"):
            if hypothesis.currently_in_test_context():
                hypothesis.reject()
            if not source.core:
                pytest.skip(str(error))
        raise
    if usual and not any("verification" in why for why in wide.pinned.values()):
        of_random.clear()
        kept[subject] = wide.plan
    augmented = nn.ParameterDict(
        {name.replace(".", "/"): p for name, p in wide.named_augmented_parameters()}
    )
    modules.randomise(augmented, growth.seed + 1)
    return wide


def config_of(wide: Any, growth: Growth) -> dict[str, int]:
    return measure.some_config(wide, growth.config)
