"""The command line: `netaugfx train` and `netaugfx inspect`.

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

EXTRA = ("timm", "accelerate", "torchvision", "safetensors", "rich", "sklearn", "PIL", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        return _fail(
            f"the command line needs {', '.join(missing)}: pip install 'netaugfx[recipes]'"
        )
    try:
        options.run(options)
    except NetAugFXError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, an unwritable directory
        return _fail(str(error))
    except KeyboardInterrupt:
        print(
            "netaugfx: stopped. A run goes on from its last checkpoint with --resume.",
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

    from recipes.errors import RunError
    from recipes.models import parse_model_args
    from recipes.training import TrainConfig, train

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch sees no CUDA device here. Use --device cpu or auto.")
    out = Path(
        options.out
        or f"runs/{re.sub(r'[^A-Za-z0-9_.]+', '-', options.model)}-{options.method}-{options.seed}"
    )
    fields = {
        name: value
        for name, value in vars(options).items()
        if name in TrainConfig.__dataclass_fields__
    }
    fields["model_args"] = parse_model_args(options.model_args)
    fields["kinds"], fields["keep"] = tuple(options.kinds), tuple(options.keep)
    workers = options.workers
    if workers is None:  # digits lie in memory; photographs are decoded beside the training
        workers = 0 if options.data == "digits" else max(0, min(4, (os.cpu_count() or 1) - 1))
    train(
        TrainConfig(**fields),
        out,
        resume=options.resume,
        device=options.device,
        workers=workers,
        download=options.download,
        console=Console(),
    )


def _inspect(options: argparse.Namespace) -> None:
    from recipes.inspection import inspect_model, print_inspection
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netaugfx", description="Train tiny CNNs inside wider ones (NetAug)."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model, plainly or with NetAug",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.set_defaults(run=_train)
    train.add_argument(
        "--model",
        required=True,
        help="timm NAME, torchvision:NAME, netaugfx:NAME or file.py:function",
    )
    train.add_argument(
        "--data",
        required=True,
        metavar="SPEC",
        help="digits, folder:PATH, torchvision:NAME@ROOT, or NAME@ROOT for timm",
    )
    train.add_argument(
        "--method", choices=("baseline", "netaug"), default="baseline", help="how to train"
    )
    train.add_argument(
        "--epochs", type=_at_least(1), default=10, help="passes over the training images"
    )
    train.add_argument(
        "--seed", type=int, default=0, help="of weights, order, augmentation and sampling"
    )
    train.add_argument(
        "--out", metavar="DIR", help="directory of the run (default: runs/MODEL-METHOD-SEED)"
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    _add_model_options(train)
    train.add_argument("--pretrained", action="store_true", help="start from trained weights")
    train.add_argument("--download", action="store_true", help="fetch the data if it is missing")
    netaug = train.add_argument_group("NetAug")
    _add_width_options(netaug)
    netaug.add_argument("--alpha", type=float, default=1.0, help="weight of the augmented loss")
    netaug.add_argument(
        "--samples", type=_at_least(1), default=1, help="augmented networks per step"
    )
    netaug.add_argument(
        "--kinds",
        nargs="+",
        choices=("stream", "inner"),
        default=["stream", "inner"],
        help="which widths grow",
    )
    optimiser = train.add_argument_group("optimisation")
    optimiser.add_argument("--batch-size", type=_at_least(2), default=128, help="images per step")
    optimiser.add_argument("--opt", default="sgd", help="timm's name of an optimiser")
    optimiser.add_argument("--lr", type=_above_zero, default=0.1, help="peak learning rate")
    optimiser.add_argument("--momentum", type=float, default=0.9, help="Nesterov's for sgd")
    optimiser.add_argument("--weight-decay", type=float, default=4e-5, help="weight decay")
    optimiser.add_argument(
        "--no-decay-norms",
        dest="decay_norms",
        action="store_false",
        help="no weight decay on norms and biases",
    )
    optimiser.add_argument(
        "--sched",
        default="cosine",
        choices=("cosine", "tanh", "poly", "constant", "none"),
        help="timm's name of a schedule",
    )
    optimiser.add_argument(
        "--warmup-epochs", type=_at_least(0), default=0, help="epochs of linear warm-up"
    )
    optimiser.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")
    machine = train.add_argument_group("machine")
    machine.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute"
    )
    machine.add_argument("--threads", type=_at_least(1), help="threads of torch on a CPU")
    machine.add_argument(
        "--workers", type=_at_least(0), help="processes that load images (default: by the data)"
    )

    inspect = commands.add_parser(
        "inspect",
        help="show the widths of a model, what is pinned, and the cost",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    inspect.set_defaults(run=_inspect)
    inspect.add_argument(
        "model",
        metavar="MODEL",
        help="timm NAME, torchvision:NAME, netaugfx:NAME or file.py:function",
    )
    _add_model_options(inspect)
    _add_width_options(inspect)
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.svg",
        help="draw the network: layers that grow together in one colour",
    )
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-arg",
        dest="model_args",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the model's constructor; may be repeated",
    )
    parser.add_argument("--num-classes", type=_at_least(1), help="classes")
    parser.add_argument("--channels", type=_at_least(1), help="channels of an image")
    parser.add_argument("--image-size", type=_at_least(1), help="pixels")


def _add_width_options(parser: Any) -> None:
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


def _at_least(least: int) -> Any:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    whole_number.__name__ = "whole number"
    return whole_number


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


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


if __name__ == "__main__":
    sys.exit(main())
