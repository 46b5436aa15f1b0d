"""Question: on how many networks do the laws hold?

    OMP_NUM_THREADS=1 python benchmarks/laws.py --networks 1000 --seed 1              # random ones
    OMP_NUM_THREADS=1 python benchmarks/laws.py --networks 1000 --seed 1 --family wide
    OMP_NUM_THREADS=1 python benchmarks/laws.py --named                               # the real models of tests/real.py

Every law is checked as the tests check it (--laws: some of them). Random networks come from
the strategy of the tests; `core` are those that must be widened whole, `wide` has every operator. What fails is printed
with its specification, to become an `@example`. Exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests`

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import UnsatisfiedAssumption

from tests.laws import test_law_1_round_trip as law_1
from tests.laws import test_law_2_base_inside as law_2
from tests.laws import test_law_3_subnet_is_a_plain_network as law_3
from tests.laws import test_law_4_base_is_contained as law_4
from tests.laws import test_law_5_nothing_else_moves as law_5
from tests.laws import test_law_6_alpha_zero as law_6
from tests.laws import test_law_7_state as law_7
from tests.laws import test_law_8_never_silently_wrong as law_8
from tests.laws.subject import Growth, growths, growths_of
from tests.real import REAL
from tests.strategies import NetworkSpec, networks


def law_6_at(source: Any, growth: Growth) -> None:
    """Plain training, and NetAug with alpha = 0."""
    batches = [source.inputs(seed) for seed in range(law_6.STEPS)]
    how = {"factor": growth.factor, "diversity": growth.diversity, "verify": False}
    law_6.check(source.build(growth.seed), batches, **how)


CHECKS: dict[str, Callable[[Any, Growth], None]] = {
    "1": law_1.check,
    "1 after training": law_1.check_after_training,
    "1 graph": law_1.check_graph,
    "2": law_2.check,
    "3 float32": law_3.check_float32,
    "3 float64": law_3.check_float64,
    "3 plain": law_3.check_plain,
    "4": law_4.check,
    "5": law_5.check,
    "6": law_6_at,
    "7": law_7.check,
    "7 moves": law_7.check_moves,
    "8": law_8.check_never_wrong,
}


class Tally:
    """What came of each check."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    def check(self, source: Any, growth: Growth) -> bool:
        """Check every law; return whether all hold."""
        broken = False
        for law, check in CHECKS.items():
            start = time.process_time()
            try:
                check(source, growth)
            except UnsatisfiedAssumption:
                raise
            except Exception as error:
                broken = True
                where = traceback.extract_tb(error.__traceback__)[-1]
                said = (str(error).splitlines() or [""])[0][:300]
                print(
                    f"law {law}: {type(error).__name__} {said} ({where.name}, line {where.lineno})"
                )
                print(f"    {source!r}, {growth!r}", flush=True)
            self.seconds[law] += time.process_time() - start
        self.outcomes["broken" if broken else "held"] += 1
        return not broken


def random_networks(count: int, start: int, family: str) -> Tally:
    """Check networks that the strategy draws from one seed."""
    tally = Tally()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(networks(wide_family=family == "wide"), growths)
    def go(spec: NetworkSpec, growth: Growth) -> None:
        done = sum(tally.outcomes.values())
        if done % 50 == 0:
            print(f"{done} networks: {dict(tally.outcomes)}", flush=True)
        try:
            tally.check(spec, growth)
        except UnsatisfiedAssumption:
            tally.outcomes["nothing to grow"] += 1

    go()
    return tally


def named_models(only: list[str]) -> Tally:
    """Check the real models, built in train and in eval mode."""
    tally = Tally()
    for case in REAL:
        if only and case.name not in only:
            continue
        start = time.process_time()
        outcomes = [tally.check(case, growth) for growth in growths_of(case)]
        took = time.process_time() - start
        print(f"{case.name}: {'held' if all(outcomes) else 'BROKEN'} ({took:.0f} s)", flush=True)
    return tally


def main() -> None:
    """Check, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=1000, help="random networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--laws", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument("--family", choices=("core", "wide"), default="core")
    parser.add_argument(
        "--named", nargs="*", metavar="NAME", help="real models instead; all if none is named"
    )
    options = parser.parse_args()
    for law in CHECKS.keys() - set(options.laws):
        del CHECKS[law]
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)  # as the tests do
    warnings.simplefilter("error")
    if options.named is None:
        tally = random_networks(options.networks, options.seed, options.family)
    else:
        tally = named_models(options.named)
    print(", ".join(f"{n} {what}" for what, n in tally.outcomes.most_common()))
    print(", ".join(f"law {law}: {spent:.0f} s" for law, spent in tally.seconds.items()))
    raise SystemExit(bool(tally.outcomes["broken"]))


if __name__ == "__main__":
    main()
