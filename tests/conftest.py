"""What every test stands on: one thread, and how many random networks each law meets."""

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from netaugfx.rules import registry

# One thread for each test process, so that results do not depend on how a sum was split.
torch.set_num_threads(1)

# torch's fused inference kernel of nn.MultiheadAttention and nn.Transformer* rounds otherwise than the
# operators that it stands for, and the flop counter counts nothing in it. test_extract.py has it on.
torch.backends.mha.set_fastpath_enabled(False)

# The number of random networks for each law. "ci" always draws the same ones, so that a change
# is judged by the change; the others look for new ones.
_PROFILES = {"dev": 20, "ci": 50, "deep": 2_000, "sweep": 10_000}

for _name, _networks in _PROFILES.items():
    hypothesis.settings.register_profile(
        _name,
        max_examples=_networks,
        deadline=None,  # a network's size, not a slow test, decides how long an example takes
        derandomize=_name == "ci",
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )

_chosen = os.environ.get("HYPOTHESIS_PROFILE", "dev")
if _chosen not in _PROFILES:
    raise SystemExit(
        f"HYPOTHESIS_PROFILE={_chosen!r} is no profile: choose one of {', '.join(_PROFILES)}."
    )
hypothesis.settings.load_profile(_chosen)


@pytest.fixture(autouse=True)
def rules_put_back() -> Iterator[None]:
    """No test leaves a rule behind: those that it registers are gone after it."""
    kept = dict(registry._rules)
    yield
    registry._rules.clear()
    registry._rules.update(kept)


def pytest_report_header() -> str:
    return f"laws: profile {_chosen}, {_PROFILES[_chosen]} random networks each"
