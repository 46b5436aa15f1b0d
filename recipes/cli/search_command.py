"""`netaugfx search`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recipes.cli.common import WithDefaults, above_zero, add_machine_options, at_least, device_of

IDLE = {"epochs": 1, "lr": 0.01}  # option of the score base alone -> its default


def add_search_command(commands: Any) -> None:
    """`netaugfx search`: which widths of a run's network should grow, and how far."""
    parser = commands.add_parser(
        "search",
        help="search which widths should grow, and how far",
        formatter_class=WithDefaults,
    )
    parser.set_defaults(run=_search)
    parser.add_argument(
        "--run",
        dest="run_directory",
        required=True,
        metavar="RUN",
        help="directory of a run that grew widths",
    )
    parser.add_argument(
        "--score",
        choices=("subnet", "base", "alignment"),
        default="base",
        help="accuracy of the subnet itself; of the base after a short NetAug with it as the "
        "widest; agreement of their gradients",
    )
    parser.add_argument(
        "--budget", metavar="BUDGET", help="the costliest config: 3.0x (times the base), or 2.5M"
    )
    parser.add_argument(
        "--measure",
        choices=("macs", "parameters"),
        default="macs",
        help="what costs are counted in",
    )
    parser.add_argument(
        "--method",
        choices=("evolution", "nsga2", "random"),
        default="evolution",
        help="by score alone; by score and cost; uniformly, to compare with",
    )
    parser.add_argument("--trials", type=at_least(1), default=1000, help="candidates to evaluate")
    parser.add_argument("--population", type=at_least(2), default=50, help="of a generation")
    parser.add_argument("--top", type=at_least(1), default=10, help="parents of a generation")
    parser.add_argument("--mutation", type=float, default=0.1, help="probability for each width")
    parser.add_argument(
        "--kinds", nargs="+", choices=("stream", "inner"),
        help="which widths are searched (default: those that the run has trained)",
    )  # fmt: skip
    parser.add_argument(
        "--batches", type=at_least(1), default=32, metavar="N",
        help="training batches to keep, for batch norms, short training and gradients",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=at_least(2), default=128, help="images of a batch")
    parser.add_argument(
        "--hold-out", type=float, metavar="SHARE",
        help="share of the training images to judge by (default: what the run kept from training)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs",
        type=at_least(1),
        default=IDLE["epochs"],
        help="base: passes over the kept batches",
    )
    parser.add_argument("--lr", type=above_zero, default=IDLE["lr"], help="base: learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the proposals")
    parser.add_argument("--storage", metavar="URL", help="of the studies (default: OUT/studies.db)")
    parser.add_argument("--out", metavar="DIR", help="for the files (default: RUN/search)")
    add_machine_options(parser)


def _search(options: argparse.Namespace) -> None:
    from recipes.errors import SearchError
    from recipes.studies.searching import search_run

    idle = [f"--{name}" for name, usual in IDLE.items() if getattr(options, name) != usual]
    if idle and options.score != "base":
        raise SearchError(f"{', '.join(idle)} would have no effect with --score {options.score}.")
    search_run(
        Path(options.run_directory),
        options.score,
        budget=options.budget,
        measure=options.measure,
        method=options.method,
        trials=options.trials,
        population=options.population,
        top=options.top,
        mutation=options.mutation,
        kinds=tuple(options.kinds) if options.kinds else None,
        batches=options.batches,
        batch_size=options.batch_size,
        hold_out=options.hold_out,
        epochs=options.epochs,
        lr=options.lr,
        seed=options.seed,
        storage=options.storage,
        out=Path(options.out) if options.out else None,
        device=device_of(options),
        workers=options.workers,
        download=options.download,
    )
