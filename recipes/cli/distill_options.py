"""The options of distillation, for `netaugfx train` and `netaugfx distill`."""

from __future__ import annotations

import argparse
from typing import Any

from recipes.cli.common import at_least
from recipes.errors import DistillError
from recipes.teachers import ONLINE
from recipes.training.distillation import PRESETS, Distillation


def add_distill_options(group: Any) -> None:
    """Who teaches, what, and on which images."""
    add_teacher_options(group, "widest or sampled (a subnet of the student), ")
    group.add_argument(
        "--objective",
        metavar="LIST",
        help="kd, rkd, feature, fitnet, attention, similarity, ..., separated by commas",
    )
    group.add_argument(
        "--objective-weight",
        action="append",
        default=[],
        metavar="NAME=W",
        help="weight of an objective instead of its authors'; may be repeated",
    )
    group.add_argument(
        "--label-weight",
        type=float,
        metavar="W",
        help="weight of the student's own loss (default: 1; with kd alone 0.1, and kd 0.9)",
    )
    group.add_argument("--temperature", type=float, default=4.0, help="of kd")
    group.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="STUDENT=TEACHER",
        help="module paths or graph nodes to compare; may be repeated",
    )
    group.add_argument(
        "--no-detach",
        dest="detach",
        action="store_false",
        help="let the student's losses reach a subnet that teaches",
    )
    group.add_argument(
        "--distill-augment",
        dest="scheme",
        metavar="SCHEME",
        help="learn the teacher's output on a second view too, e.g. cutmixpick",
    )
    group.add_argument(
        "--teacher-cache",
        type=at_least(0),
        default=0,
        metavar="N",
        help="images whose teacher outputs are kept, if they come back unchanged",
    )


def add_teacher_options(group: Any, others: str = "", *, required: bool = False) -> None:
    """Which network teaches, and its weights."""
    group.add_argument(
        "--teacher",
        required=required,
        metavar="WHO",
        help=f"{others}the directory of a finished run, or a model's name",
    )
    group.add_argument("--teacher-weights", metavar="FILE", help="its safetensors file, for a name")
    group.add_argument(
        "--teacher-pretrained", action="store_true", help="the library's trained weights for it"
    )
    group.add_argument(
        "--teacher-arg",
        dest="teacher_args",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of its constructor; may be repeated",
    )


def method_and_distillation(options: argparse.Namespace) -> tuple[str, Distillation | None]:
    """What the student learns by itself, and what it is taught.

    Raises:
        DistillError: a preset without a teacher, options of distillation without one, or pairs
            that do not read as NAME=VALUE.
    """
    from recipes.models import parse_model_args

    method, given = PRESETS.get(options.method, (options.method, {}))
    teacher = options.teacher or given.get("teacher")
    objectives = given.get("objectives", ("kd",))
    if options.objective is not None:
        objectives = tuple(each.strip() for each in options.objective.split(","))
    if teacher is None:
        taught = [
            name
            for name, asked in {
                f"--method {options.method}": bool(given),
                "--objective": options.objective is not None,
                "--objective-weight": bool(options.objective_weight),
                "--label-weight": options.label_weight is not None,
                "--features": bool(options.features),
                "--distill-augment": options.scheme is not None,
                "--teacher-weights": options.teacher_weights is not None,
                "--teacher-pretrained": options.teacher_pretrained,
                "--teacher-arg": bool(options.teacher_args),
                "--temperature": options.temperature != 4.0,
                "--no-detach": not options.detach,
                "--teacher-cache": options.teacher_cache != 0,
            }.items()
            if asked
        ]
        if taught:
            raise DistillError(f"{taught[0]} needs a teacher: give --teacher RUN, MODEL or widest.")
        return method, None
    online = teacher in ONLINE
    for option, idle in {
        "--no-detach": not options.detach and not online,
        "--teacher-cache": options.teacher_cache != 0 and online,
    }.items():
        if idle:
            raise DistillError(f"{option} would have no effect with the teacher {teacher!r}.")
    pairs = dict(_pair(each, "--objective-weight", "NAME=W") for each in options.objective_weight)
    try:
        weights = {name: float(weight) for name, weight in pairs.items()}
    except ValueError as error:
        raise DistillError(f"--objective-weight expects a number, as kd=2 ({error}).") from error
    return method, Distillation(
        teacher=teacher,
        objectives=objectives,
        teacher_weights=options.teacher_weights,
        teacher_pretrained=options.teacher_pretrained,
        teacher_args=parse_model_args(options.teacher_args),
        weights=weights,
        labels=options.label_weight,
        temperature=options.temperature,
        places=dict(_pair(each, "--features", "STUDENT=TEACHER") for each in options.features),
        detach=options.detach,
        scheme=options.scheme,
        cache=options.teacher_cache,
    )


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise DistillError(f"{option} expects {form}, got {text!r}.")
    return name, value
