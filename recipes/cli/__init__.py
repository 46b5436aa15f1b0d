"""The command line: `netaugfx` train, search, distill, evaluate, inspect, diagnose, report and more.

Exit codes: 0 done; 2 bad input, told in one line; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from netaugfx.errors import NetAugFXError
from recipes.cli.common import WithDefaults, refuse_missing
from recipes.cli.distill_commands import (
    add_distill_command,
    add_evaluate_command,
    add_rank_command,
)
from recipes.cli.options import add_model_options, add_train_options, add_width_options
from recipes.cli.search_command import add_search_command

EXTRA = (
    "timm",
    "filelock",
    "accelerate",
    "torchvision",
    "safetensors",
    "torchmetrics",
    "rich",
    "sklearn",
    "PIL",
    "numpy",
    "optuna",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        return _fail(
            f"the command line needs {', '.join(missing)}: pip install '.[recipes]' in a clone of netaugfx"
        )
    try:
        options.run(options)
    except NetAugFXError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, an unwritable directory
        return _fail(str(error))
    except KeyboardInterrupt:
        print(
            "netaugfx: stopped. A run goes on from its last checkpoint with --resume, a search by itself.",
            file=sys.stderr,
        )
        return 130
    return 0


def _fail(message: str) -> int:
    print(f"netaugfx: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _train(options: argparse.Namespace) -> None:
    import torch
    from rich.console import Console

    from recipes.cli.distill_options import method_and_distillation
    from recipes.errors import RunError
    from recipes.memory import keep_memory
    from recipes.models import parse_model_args
    from recipes.spos.result import read_sizes
    from recipes.studies.compare import compare, parse_arms, parse_seeds
    from recipes.training.config import TrainConfig
    from recipes.training.loop import Cadence, train

    keep_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    refuse_missing(options.device)
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", options.model)
    fields = {
        name: value
        for name, value in vars(options).items()
        if name in TrainConfig.__dataclass_fields__
    }
    fields["model_args"] = parse_model_args(options.model_args)
    fields["kinds"] = tuple(options.kinds) if options.kinds else None
    fields["keep"] = tuple(options.keep)
    fields["ratios"] = dict(options.ratios) if options.ratios else None
    if options.max_config is not None:
        fields["max_config"] = read_sizes(Path(options.max_config))
    fields["method"], fields["distill"] = method_and_distillation(options)
    workers = options.workers
    if workers is None:  # digits lie in memory; photographs are decoded beside the training
        workers = 0 if options.data == "digits" else max(0, min(4, (os.cpu_count() or 1) - 1))
    tracker = options.tracker or ("tensorboard" if find_spec("tensorboard") else "none")
    config = TrainConfig(**fields)
    how = {
        "device": options.device,
        "workers": workers,
        "download": options.download,
        "cadence": Cadence(options.checkpoint_steps, options.checkpoint_minutes),
        "tracker": None if tracker == "none" else tracker,
        "console": Console(),
    }
    idle = [f"--{each.replace('_', '-')}" for each in config.without_effect()]
    if idle and options.compare is None:
        raise RunError(
            f"{', '.join(idle)} would have no effect with --method {options.method}"
            + (" --max-config" if options.max_config else "")
            + ": leave it out, or choose another method."
        )
    if options.compare is not None:
        arms, seeds = parse_arms(options.compare), parse_seeds(options.seeds)
        compare(config, arms, seeds, Path(options.out or f"runs/{name}-compare"), **how)
        return
    out = Path(options.out or f"runs/{name}-{_way(options.method, config)}-{options.seed}")
    train(config, out, resume=options.resume, **how)


def _way(method: str, config: Any) -> str:
    """Return what a run's directory is named after: its --method, or what it is taught where that says otherwise."""
    from recipes.training.distillation import PRESETS

    taught = config.distill
    if taught is None or PRESETS.get(method, ("", {}))[1].get("objectives") == taught.objectives:
        return method
    own = ("netaug",) if config.method == "netaug" else ()
    return "+".join((*own, *taught.objectives))


def _inspect(options: argparse.Namespace) -> None:
    from recipes.cli.inspection import inspect_model, print_inspection
    from recipes.models import parse_model_args

    inspection = inspect_model(
        options.model,
        num_classes=options.num_classes or 1000,
        channels=options.channels or 3,
        image_size=options.image_size,
        model_args=parse_model_args(options.model_args),
        factor=options.factor,
        diversity=options.diversity,
        keep=tuple(options.keep),
        picture=options.picture,
    )
    print_inspection(inspection, as_json=options.json)


def _diagnose(options: argparse.Namespace) -> None:
    from rich.console import Console

    from recipes.studies.diagnose import diagnose, print_diagnosis

    print_diagnosis(diagnose(options.run_directory), Console(), as_json=options.json)


def _report(options: argparse.Namespace) -> None:
    from recipes.studies.report import report, runs_in
    from recipes.training.checkpoint import write_atomically

    page = report([run for path in options.runs for run in runs_in(path)])
    write_atomically(options.out, page.encode())
    print(f"{options.out}: {len(page.encode()):,} bytes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netaugfx", description="Train tiny CNNs inside wider ones (NetAug)."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model, plainly or with NetAug",
        formatter_class=WithDefaults,
    )
    train.set_defaults(run=_train)
    add_train_options(train)

    add_distill_command(commands).set_defaults(run=_train)
    add_rank_command(commands)
    add_evaluate_command(commands)
    add_search_command(commands)

    inspect = commands.add_parser(
        "inspect",
        help="show the widths of a model, what is pinned, and the cost",
        formatter_class=WithDefaults,
    )
    inspect.set_defaults(run=_inspect)
    inspect.add_argument(
        "model",
        metavar="MODEL",
        help="timm NAME, torchvision:NAME, netaugfx:NAME or file.py:function",
    )
    add_model_options(inspect)
    add_width_options(inspect)
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.svg",
        help="draw the network: layers that grow together in one colour",
    )

    diagnose = commands.add_parser(
        "diagnose", help="say whether a baseline underfits, and whether NetAug can help it"
    )
    diagnose.set_defaults(run=_diagnose)
    diagnose.add_argument(
        "run_directory", type=Path, metavar="RUN", help="directory of a baseline's run"
    )
    diagnose.add_argument("--json", action="store_true", help="print JSON")

    report = commands.add_parser(
        "report",
        help="write runs as one HTML page",
        formatter_class=WithDefaults,
    )
    report.set_defaults(run=_report)
    report.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="directories of runs or of comparisons"
    )
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page to write"
    )
    return parser
