"""The options of `netaugfx train`, and those that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from recipes.cli.common import above_zero, at_least
from recipes.cli.distill_options import add_distill_options
from recipes.training.distillation import PRESETS


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """What a run is, what is compared, and where it runs."""
    parser.add_argument(
        "--model",
        required=True,
        help="timm NAME, torchvision:NAME, netaugfx:NAME or file.py:function",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="SPEC",
        help="digits, folder:PATH, torchvision:NAME@ROOT, or NAME@ROOT for timm",
    )
    parser.add_argument(
        "--method",
        choices=("baseline", "netaug", "sandwich", "spos", *PRESETS),
        default="baseline",
        help="how to train",
    )
    parser.add_argument(
        "--epochs", type=at_least(1), default=10, help="passes over the training images"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, order, augmentation and sampling"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="directory of the run (default: runs/MODEL-METHOD-SEED)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    add_model_options(parser)
    parser.add_argument("--pretrained", action="store_true", help="start from trained weights")
    parser.add_argument("--init", metavar="FILE", help="start from the weights in FILE")
    parser.add_argument(
        "--tune", choices=("all", "bias", "lite"), default="all", help="what learns (TinyTL)"
    )
    parser.add_argument("--download", action="store_true", help="fetch the data if it is missing")
    parser.add_argument(
        "--hold-out",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the training images that is kept from training, for netaugfx search",
    )
    _add_netaug_options(parser.add_argument_group("NetAug"))
    _add_optimisation_options(parser.add_argument_group("optimisation"))
    _add_regulariser_options(parser.add_argument_group("regularisers"))
    add_distill_options(parser.add_argument_group("distillation"))
    comparison = parser.add_argument_group("comparison")
    comparison.add_argument(
        "--compare",
        metavar="ARMS",
        help="train several ways, e.g. baseline,netaug,mixup,dropout, and compare them",
    )
    comparison.add_argument("--seeds", default="0", metavar="LIST", help="seeds of --compare")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute"
    )
    machine.add_argument(
        "--precision", choices=("no", "bf16", "fp16"), default="no", help="mixed precision"
    )
    machine.add_argument("--threads", type=at_least(1), help="threads of torch on a CPU")
    machine.add_argument(
        "--workers", type=at_least(0), help="processes that load images (default: by the data)"
    )
    machine.add_argument(
        "--tracker",
        metavar="NAME",
        help="one that Accelerate knows, or none (default: tensorboard where it is installed)",
    )
    machine.add_argument(
        "--checkpoint-steps", type=at_least(1), metavar="N", help="a checkpoint every N steps"
    )
    machine.add_argument(
        "--checkpoint-minutes",
        type=above_zero,
        default=10.0,
        metavar="M",
        help="a checkpoint every M minutes, beside that at the end of each epoch",
    )


def _add_netaug_options(group: Any) -> None:
    add_width_options(group)
    group.add_argument(
        "--ratios",
        nargs="+",
        type=_ratios,
        metavar="KIND=R,R,...",
        help="ratios to the base, instead of factor and diversity, e.g. stream=1,2,3",
    )
    group.add_argument(
        "--max-config",
        metavar="FILE",
        help="grow each width to its size in this JSON, as netaugfx search writes it, and no further",
    )
    group.add_argument(
        "--coupling",
        choices=("independent", "expand"),
        default="independent",
        help="expand: an inner width is its ratio times the stream width before it",
    )
    group.add_argument(
        "--kinds",
        nargs="+",
        choices=("stream", "inner"),
        help="which widths grow (default: inner ones with netaug, unless other options speak of streams; else both)",
    )
    group.add_argument("--alpha", type=float, default=1.0, help="weight of the augmented loss")
    group.add_argument(
        "--alpha-end", type=float, metavar="A", help="alpha goes to it linearly over the epochs"
    )
    group.add_argument("--samples", type=at_least(1), default=1, help="augmented networks per step")
    group.add_argument(
        "--stop-stream",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the epochs after which streams no longer grow",
    )
    group.add_argument(
        "--stop-inner",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the epochs after which inner widths no longer grow",
    )
    group.add_argument(
        "--sort",
        action="store_true",
        help="before each epoch, move the channels of largest L1 norm into the base",
    )
    group.add_argument(
        "--ceiling",
        metavar="BUDGET",
        help="spos: the costliest subnet that is trained, as 3.0x (times the base's MACs)",
    )
    group.add_argument(
        "--path-dropout",
        type=float,
        default=0.0,
        metavar="P",
        help="spos: probability that a width stays at its base size in a step",
    )


def _add_optimisation_options(group: Any) -> None:
    group.add_argument(
        "--batch-size", type=at_least(2), default=128, help="images of a batch, in each process"
    )
    group.add_argument(
        "--accumulate", type=at_least(1), default=1, metavar="N", help="batches per optimiser step"
    )
    group.add_argument("--opt", default="sgd", help="timm's name of an optimiser")
    group.add_argument("--lr", type=above_zero, default=0.1, help="peak learning rate")
    group.add_argument("--momentum", type=float, default=0.9, help="Nesterov's for sgd")
    group.add_argument("--weight-decay", type=float, default=4e-5, help="weight decay")
    group.add_argument(
        "--no-decay-norms",
        dest="decay_norms",
        action="store_false",
        help="no weight decay on norms and biases",
    )
    group.add_argument(
        "--clip-grad", type=above_zero, metavar="NORM", help="largest norm of the gradient"
    )
    group.add_argument(
        "--sched",
        default="cosine",
        choices=("cosine", "tanh", "poly", "constant", "none"),
        help="timm's name of a schedule",
    )
    group.add_argument(
        "--warmup-epochs", type=at_least(0), default=0, help="epochs of linear warm-up"
    )
    group.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")
    group.add_argument(
        "--ema", type=float, metavar="DECAY", help="average the base's weights, e.g. 0.999"
    )
    group.add_argument(
        "--channels-last",
        action="store_true",
        help="features and weights in memory as (N, H, W, C): often faster, of other rounding",
    )


def _add_regulariser_options(group: Any) -> None:
    group.add_argument("--dropout", type=float, default=0.0, help="before the classifier")
    group.add_argument("--dropblock", type=float, default=0.0, help="of each block's output")
    group.add_argument("--mixup", type=float, default=0.0, metavar="ALPHA", help="MixUp")
    group.add_argument("--cutmix", type=float, default=0.0, metavar="ALPHA", help="CutMix")
    group.add_argument(
        "--augment",
        choices=("standard", "none", "autoaugment", "randaugment"),
        default="standard",
        help="of the training images",
    )


def add_model_options(parser: Any) -> None:
    """Arguments of a model's constructor."""
    parser.add_argument(
        "--model-arg",
        dest="model_args",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the model's constructor; may be repeated",
    )
    parser.add_argument("--num-classes", type=at_least(1), help="classes")
    parser.add_argument("--channels", type=at_least(1), help="channels of an image")
    parser.add_argument("--image-size", type=at_least(1), help="pixels")


def add_width_options(parser: Any) -> None:
    """How far widths grow."""
    parser.add_argument(
        "--factor",
        type=_number_or_mapping(float),
        default=3.0,
        metavar="R",
        help="the widest, times the base; or by kind or width, e.g. stream=3,inner=2.8",
    )
    parser.add_argument(
        "--diversity",
        type=_number_or_mapping(int),
        default=2,
        metavar="S",
        help="steps from the base to the widest; or by kind or width, e.g. stream=2,inner=3",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="GLOB",
        help="module names whose widths stay; may be repeated",
    )


def _ratios(text: str) -> tuple[str, tuple[float, ...]]:
    kind, _, numbers = text.partition("=")
    ratios = tuple(float(each) for each in numbers.split(","))
    if kind not in ("stream", "inner") or not all(1 <= each < float("inf") for each in ratios):
        raise argparse.ArgumentTypeError(f"expected stream= or inner= and ratios, got {text!r}")
    return kind, ratios


_ratios.__name__ = "KIND=R,R,..."


def _number_or_mapping(number: type) -> Any:
    def number_or_mapping(text: str) -> Any:
        if "=" not in text:
            return number(text)
        return {
            name: number(value)
            for name, _, value in (pair.partition("=") for pair in text.split(","))
        }

    number_or_mapping.__name__ = "number, or NAME=NUMBER,..."
    return number_or_mapping
