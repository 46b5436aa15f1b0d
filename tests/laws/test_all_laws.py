"""Every law on every network: what the deep and sweep profiles run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.laws import test_law_1_round_trip as law_1
from tests.laws import test_law_2_base_inside as law_2
from tests.laws import test_law_3_subnet_is_a_plain_network as law_3
from tests.laws import test_law_4_base_is_contained as law_4
from tests.laws import test_law_5_nothing_else_moves as law_5
from tests.laws import test_law_7_state as law_7
from tests.laws.subject import Growth, growths
from tests.real import EVERY_MODEL
from tests.strategies import NetworkSpec, networks


@pytest.mark.skipif(not EVERY_MODEL, reason="the profiles deep and sweep run all laws at once")
@settings(max_examples=settings.default.max_examples)
@given(networks(), growths)
def test_random_networks(spec: NetworkSpec, growth: Growth) -> None:
    law_1.check(spec, growth)
    law_1.check_after_training(spec, growth)
    law_1.check_graph(spec, growth)
    law_2.check(spec, growth)
    law_3.check(spec, growth)
    law_3.check_plain(spec, growth)
    law_4.check(spec, growth)
    law_5.check(spec, growth)
    law_7.check(spec, growth)
    law_7.check_moves(spec, growth)
