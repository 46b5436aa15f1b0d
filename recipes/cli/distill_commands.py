"""`netaugfx distill`, `netaugfx rank-augmentations` and `netaugfx evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recipes.cli.common import WithDefaults, add_machine_options, at_least, device_of
from recipes.cli.distill_options import add_teacher_options


def add_distill_command(commands: Any) -> argparse.ArgumentParser:
    """`netaugfx distill`: `train` with a teacher; the caller says what runs it."""
    from recipes.cli.options import add_train_options

    parser = commands.add_parser(
        "distill",
        help="train a model with a teacher",
        formatter_class=WithDefaults,
        conflict_handler="resolve",  # what is said anew below replaces what `train` has
    )
    add_train_options(parser)
    parser.add_argument(
        "--student",
        "--model",
        dest="model",
        required=True,
        metavar="MODEL",
        help="timm NAME, torchvision:NAME, netaugfx:NAME or file.py:function",
    )
    parser.add_argument(
        "--method",
        choices=("baseline", "netaug"),
        default="baseline",
        help="what the student learns beside the teacher's lessons",
    )
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="WHO",
        help="widest or sampled (a subnet of the student), the directory of a finished run, or a "
        "model's name",
    )
    parser.add_argument(
        "--objective",
        default="kd",
        metavar="LIST",
        help="kd, rkd, feature, fitnet, attention, similarity, ..., separated by commas",
    )
    parser.add_argument(
        "--augment",
        dest="scheme",
        metavar="SCHEME",
        help="learn the teacher's output on a second view too, e.g. cutmixpick",
    )
    parser.add_argument(
        "--image-augment",
        dest="augment",
        choices=("standard", "none", "autoaugment", "randaugment"),
        default="standard",
        help="of the training images themselves",
    )
    return parser


def add_rank_command(commands: Any) -> None:
    """`netaugfx rank-augmentations`."""
    parser = commands.add_parser(
        "rank-augmentations",
        help="rank augmentations for a teacher by T. stddev, without training a student",
        formatter_class=WithDefaults,
    )
    parser.set_defaults(run=_rank)
    add_teacher_options(parser, required=True)
    parser.add_argument("--data", metavar="SPEC", help="as for train (default: the teacher run's)")
    parser.add_argument("--schemes", metavar="LIST", help="separated by commas (default: all)")
    parser.add_argument(
        "--student", metavar="RUN", help="a finished run that judges for cutmixpick-student"
    )
    parser.add_argument(
        "--samples", type=at_least(2), default=640, metavar="K", help="of a repeat, x and x'"
    )
    parser.add_argument("--repeats", type=at_least(2), default=100, help="means to take")
    parser.add_argument("--batch-size", type=at_least(2), default=64, help="images of a batch")
    parser.add_argument("--seed", type=int, default=0, help="of order and augmentation")
    parser.add_argument("--out", metavar="DIR", default="runs/augmentations", help="for the files")
    add_machine_options(parser)


def add_evaluate_command(commands: Any) -> None:
    """`netaugfx evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="metrics by class of a finished run, for its base or a subnet",
        formatter_class=WithDefaults,
    )
    parser.set_defaults(run=_evaluate)
    parser.add_argument("run_directory", metavar="RUN", help="the directory of a finished run")
    parser.add_argument(
        "--config",
        default="base",
        metavar="WHICH",
        help="base, widest, or a JSON file that maps widths to sizes",
    )
    parser.add_argument("--data", metavar="SPEC", help="other images (default: the run's)")
    parser.add_argument(
        "--k", nargs="+", type=at_least(1), help="classes that count as a hit (default: 1 and 5)"
    )
    parser.add_argument(
        "--recalibrate",
        type=at_least(0),
        default=32,
        metavar="N",
        help="training batches that a subnet's norms take their statistics from",
    )
    parser.add_argument("--batch-size", type=at_least(2), default=256, help="images of a batch")
    parser.add_argument("--out", metavar="DIR", help="for the files (default: RUN)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_machine_options(parser)


def _rank(options: argparse.Namespace) -> None:
    from recipes.studies.ranking import rank

    schemes = options.schemes and [each.strip() for each in options.schemes.split(",")]
    rank(
        options.teacher,
        data=options.data,
        weights=options.teacher_weights,
        pretrained=options.teacher_pretrained,
        teacher_args=options.teacher_args,
        schemes=schemes,
        student=options.student,
        samples=options.samples,
        repeats=options.repeats,
        batch_size=options.batch_size,
        seed=options.seed,
        out=Path(options.out),
        device=device_of(options),
        workers=options.workers,
        download=options.download,
    )


def _evaluate(options: argparse.Namespace) -> None:
    from recipes.studies.reevaluation import evaluate_run

    evaluate_run(
        Path(options.run_directory),
        options.config,
        data=options.data,
        ks=options.k,
        recalibrate=options.recalibrate,
        batch_size=options.batch_size,
        out=Path(options.out) if options.out else None,
        as_json=options.json,
        device=device_of(options),
        workers=options.workers,
        download=options.download,
    )
