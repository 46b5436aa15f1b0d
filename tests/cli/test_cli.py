"""The command line: what works, and every bad input as one clear line with exit code 2."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from recipes import cli
from recipes.studies.compare import print_comparison
from recipes.training import loop
from tests.recipes.images import make_folder

NET = """
from torch import nn

def net(num_classes, in_chans=3):
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes),
    )

def linear(num_classes, in_chans=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_chans, num_classes))

def maps(num_classes, in_chans=3):
    return nn.Conv2d(in_chans, num_classes, 1)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a directory of its own that holds images and networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    make_folder(tmp_path / "images")
    Path("net.py").write_text(NET)


def train(*more: str, model: str = "net.py:net", data: str = "folder:images") -> int:
    """`netaugfx train` as short as it gets; later options win."""
    return cli.main(
        [
            *("train", "--model", model, "--data", data, "--epochs", "1", "--batch-size", "6"),
            *("--device", "cpu", "--workers", "0", "--tracker", "none", "--out", "run", *more),
        ]
    )


def fails(capsys: pytest.CaptureFixture[str], code: int, message: str) -> None:
    """One line of error that matches, exit code 2, no traceback."""
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.count("\n") == 1
    assert re.fullmatch(f"netaugfx: error: {message}", error.strip()), error


@pytest.mark.parametrize("method", ["baseline", "netaug"])
def test_train(capsys: pytest.CaptureFixture[str], method: str) -> None:
    assert train("--method", method, "--epochs", "2", "--lr", "0.01") == 0
    said, *lines = capsys.readouterr().out.splitlines()
    if method == "baseline":
        lines = [said, *lines]
    else:
        grow = "2 of 2 widths grow (stream), elastic share 1.000"
        assert said == f"{grow}, 1 pinned (netaugfx inspect says why)"
    assert re.match(r"epoch   1/2  lr 0\.0100  train loss \d\.\d+.* top-1 .* val loss", lines[0])
    assert re.match(r"run/base\.safetensors: top-1 \d+\.\d\d %, top-5 100\.00 %", lines[-1])
    assert (Path("run") / "base.safetensors").exists()
    assert json.loads((Path("run") / "config.json").read_text())["config"]["method"] == method
    assert train("--method", method, "--epochs", "2", "--lr", "0.01", "--resume") == 0
    assert "resuming after epoch 2 of 2" in capsys.readouterr().out


def test_widths_by_kind_and_other_options(capsys: pytest.CaptureFixture[str]) -> None:
    code = train(
        *("--method", "netaug", "--factor", "stream=2,inner=2.5", "--diversity", "1"),
        *("--kinds", "stream", "--samples", "2", "--alpha", "0.5", "--keep", "7"),
        *("--opt", "adamw", "--lr", "1e-3", "--warmup-epochs", "1", "--no-decay-norms"),
        *("--image-size", "12", "--channels", "1", "--num-classes", "5"),
    )
    assert code == 0, capsys.readouterr().err
    held = json.loads((Path("run") / "config.json").read_text())
    assert held["config"]["factor"] == {"stream": 2.0, "inner": 2.5}
    assert (held["data"]["channels"], held["data"]["image_size"]) == (1, 12)
    assert held["data"]["num_classes"] == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"data": "folder:none"},
            r"There is no folder none\. Expected class folders in none/train.*",
        ),
        ({"data": "digit"}, r"Unknown data 'digit'\. Give digits, folder:PATH, .*"),
        ({"model": "mobilnetv3_small_050"}, r"timm has no model .*Near: mobilenetv3_small_050.*"),
        ({"model": "torchvision:resnet19"}, r"torchvision has no model 'resnet19'\. Near: .*"),
        (
            {"model": "none.py:net"},
            r"There is no file none\.py\. Expected path/to/file\.py:function\.",
        ),
        ({"model": "net.py:nett"}, r"net\.py has no function 'nett'\. Near: net\."),
        (
            {"model": "net.py:maps"},
            r"net\.py:maps gives \(2, 3, 8, 8\); expected logits \(2, 3\)\.",
        ),
        (
            {"model": "torchvision:alexnet"},
            r"torchvision:alexnet does not take images of shape \(2, 3, 8, 8\): RuntimeError: .*",
        ),
        (
            ["--method", "netaug", "--factor", "0.5"],
            r"factor must be a number from 1 on; 0\.5 came.*",
        ),
        (["--method", "netaug", "--diversity", "0"], r"diversity must be .* from 1 on; 0 came.*"),
        (
            ["--method", "netaug", "--factor", "1"],
            r"Nothing to augment: no width of kind .* can grow.*",
        ),
        (["--method", "netaug", "--keep", "*"], r"Nothing can grow in Sequential: .*"),
        (
            ["--method", "netaug", "--keep", "no*"],
            r"keep: no module matches 'no\*'; modules are .*",
        ),
        (
            ["--factor", "4", "--ceiling", "2x"],
            r"--factor, --ceiling would have no effect with --method baseline: leave it out, or .*",
        ),
        (
            ["--method", "netaug", "--path-dropout", "0.1"],
            r"--path-dropout would have no effect with --method netaug: .*",
        ),
        (["--model-arg", "width=3"], r"net\.py:net cannot be built with .*TypeError: .*'width'"),
        (["--model-arg", "width"], r"--model-arg expects key=value, got 'width'\."),
        (["--opt", "sgdd"], r"timm has no optimiser 'sgdd'\. Near: .*sgd.*"),
        (["--num-classes", "2"], r"folder:images has 3 classes, more than the 2 asked for\."),
        (
            ["--out", "images"],
            r"images holds no run but other files \(.*\)\. Choose another --out\.",
        ),
        (["--out", "net.py"], r"net\.py is not a directory\. Choose another --out\."),
        (
            ["--out", "net.py/run"],
            r"Cannot write in net\.py/run: Not a directory\. Choose another --out\.",
        ),
        (
            ["--lr", "1e30", "--epochs", "3"],
            r"The (validation )?loss is (nan|inf) at step \d+\. Try.*",
        ),
    ],
    ids=str,
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str], more: dict | list, message: str, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code = train(**more) if isinstance(more, dict) else train(*more)
    fails(capsys, code, message)
    if "--lr" not in more:
        assert [each for each in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(each)] == [
            each for each in before if "__pycache__" not in str(each)
        ]


def test_a_model_without_widths(capsys: pytest.CaptureFixture[str]) -> None:
    fails(
        capsys,
        train("--method", "netaug", model="net.py:linear"),
        r"Nothing can grow in Sequential: .*",
    )
    assert train(model="net.py:linear") == 0


def test_broken_images(capsys: pytest.CaptureFixture[str]) -> None:
    Path("images/train/dog/0001.png").write_bytes(b"no image")
    fails(
        capsys, train(), r"Cannot decode images/train/dog/0001\.png: cannot identify image file .*"
    )
    Path("images/train/emu/0002.png").unlink()
    for each in Path("images/val/emu").iterdir():
        each.unlink()
    fails(capsys, train("--out", "new"), r"images/val: .*no valid file for the classes emu.*")
    assert not Path("new").exists()


def test_a_directory_with_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    capsys.readouterr()
    before = {each.name: each.read_bytes() for each in Path("run").iterdir()}
    fails(capsys, train(), r"run holds this run already\. Add --resume to go on with it, .*")
    other = (
        r"run holds another run: config\.model is 'net.py:net' there and 'net.py:linear' here\..*"
    )
    fails(capsys, train("--resume", model="net.py:linear"), other)
    assert {each.name: each.read_bytes() for each in Path("run").iterdir()} == before
    checkpoint = Path("run/checkpoint.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    fails(
        capsys, train("--resume"), r"run/checkpoint\.safetensors is truncated or no checkpoint .*"
    )
    assert checkpoint.stat().st_size == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--data", "digits"], "the following arguments are required: --model"),
        (["train", "--model", "a", "--data", "b", "--epochs", "0"], "must be at least 1, got 0"),
        (
            ["train", "--model", "a", "--data", "b", "--factor", "x"],
            "invalid number, or NAME=NUMBER",
        ),
    ],
)
def test_bad_arguments(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_inspect_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["inspect", "net.py:net", "--image-size", "16", "--num-classes", "7", "--json"])
        == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["input_shape"] == [1, 3, 16, 16]
    assert shown["elastic_share"] == 1.0
    assert [(each["name"], each["base"], each["choices"]) for each in shown["widths"]] == [
        ("0", 4, [4, 8, 12]),
        ("3", 6, [6, 12, 18]),
    ]
    assert shown["widths"][1]["layers"] == ["3", "7"]
    for end, (a, b) in {"base": (4, 6), "largest": (12, 18)}.items():
        weights = 27 * a + 9 * a * b + 7 * b
        assert shown[end]["parameters"] == weights + 3 * a + b + 7
        assert shown[end]["macs"] == 27 * a * 64 + 9 * a * b * 36 + 7 * b


def test_inspect_as_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "net.py:net", "--keep", "7", "--factor", "2"]) == 0
    shown = capsys.readouterr().out
    assert "net.py:net: 1 widths" in shown
    assert re.search(r"0 +│ \w+ +│ +4 │ 4 6 8", shown)
    assert "2 pinned" in shown
    assert "it is kept by keep='7'" in shown
    assert "largest subnet" in shown


def test_inspect_with_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "net.py:net", "--picture", "net.svg"]) == 0
    drawn = Path("net.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert ">net.py:net<" in drawn
    assert "largest subnet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("net.png", r"--picture net\.png: the picture is SVG; give a name that ends in \.svg\."),
        ("none/net.svg", r"--picture none/net\.svg: there is no directory none\."),
    ],
)
def test_inspect_with_a_bad_picture(
    path: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, cli.main(["inspect", "net.py:net", "--picture", path]), message)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    message = rf"--device {device}: torch sees no such device here\. Use --device cpu or auto\."
    fails(capsys, train("--device", device), message)


def test_help_says_a_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "distill", "rank-augmentations", "evaluate", "search", "inspect"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert not re.search(
            r"\(default: [^)]*\) \(default|default: (None|True|False|\[\])\)", said
        )
        assert command == "inspect" or "(default: " in said


def test_inspect_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["inspect", "mobilenetv3_smal_050"])
    fails(capsys, code, r"timm has no model 'mobilenetv3_smal_050'\. Near: mobilenetv3_small_050.*")
    code = cli.main(["inspect", "net.py:net", "--factor", "0.9"])
    fails(capsys, code, r"factor must be a number from 1 on; 0\.9 came.*")


def test_without_the_extra_it_says_what_to_install() -> None:
    blocked = "import sys; sys.modules.update(timm=None, rich=None, accelerate=None); "
    code = "from recipes.cli import main; sys.exit(main(['inspect', 'resnet18']))"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("pip install '.[recipes]' in a clone of netaugfx\n")
    assert "timm" in done.stderr


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    arms = [
        *("--compare", "baseline,netaug+mixup:kinds=stream:alpha=0.5,no-augmentation"),
        *("--seeds", "0,1"),
    ]
    assert train(*arms) == 0
    shown = capsys.readouterr().out
    assert "2 seeds, mean and 95% interval" in shown
    found = json.loads(Path("run/comparison.json").read_text())
    mixed = "netaug+mixup-kinds=stream-alpha=0.5"
    assert list(found) == ["baseline", mixed.replace("-", ":"), "no-augmentation"]
    assert found["baseline"]["gain"]["each"] == [0.0, 0.0]
    for arm, of in found.items():
        assert of["seeds"] == [0, 1]
        for seed, top1 in zip(of["seeds"], of["top1"], strict=True):
            result = Path(f"run/{arm.replace(':', '-')}-{seed}/result.json")
            assert json.loads(result.read_text())["top1"] == top1
    held = json.loads(Path(f"run/{mixed}-1/config.json").read_text())["config"]
    assert (held["method"], held["mixup"], held["seed"]) == ("netaug", 0.2, 1)
    assert (held["kinds"], held["alpha"]) == (["stream"], 0.5)
    assert Path("run/comparison.png").stat().st_size > 1000
    before = Path("run/baseline-0/checkpoint.safetensors").stat().st_mtime_ns
    Path(f"run/{mixed}-1/result.json").unlink()  # as if it had been stopped there
    assert train(*arms) == 0
    assert "resuming after epoch 1 of 1" in capsys.readouterr().out
    assert Path("run/baseline-0/checkpoint.safetensors").stat().st_mtime_ns == before
    assert json.loads(Path("run/comparison.json").read_text()) == found


def test_a_comparison_of_changed_weights_or_data_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("--out", "one") == train("--out", "two", "--seed", "1") == 0
    first, second = (Path(each, "base.safetensors").read_bytes() for each in ("one", "two"))
    Path("start.safetensors").write_bytes(first)
    arms = ("--compare", "baseline,mixup", "--init", "start.safetensors")
    assert train(*arms) == 0
    begun: list[Path] = []
    monkeypatch.setattr(loop, "train_epoch", lambda run, _: begun.append(run.directory.path))
    assert train(*arms) == 0  # all is done
    Path("start.safetensors").write_bytes(second)
    capsys.readouterr()
    message = r"run/baseline-0 holds another run: init_sha256 is '\w+' there and '\w+' here\. .*"
    fails(capsys, train(*arms), message)
    Path("start.safetensors").write_bytes(first)
    Path("images/train/dog/0001.png").unlink()
    message = r"run/baseline-0 holds another run: data\.train is 18 there and 17 here\. .*"
    fails(capsys, train(*arms), message)
    assert not begun


@pytest.mark.parametrize("width", [80, 60])
def test_a_comparison_tells_its_arms_apart_and_one_seed_from_several(width: int) -> None:
    arms = (
        "baseline:weight_decay=1e-05:epochs=40",
        "netaug+mixup+cutmix+dropout:kinds=stream:alpha=0.5",
    )
    one = {
        arm: {"seeds": [0], "top1": [50.0 + i], "train_top1": [60.0], "seconds": [3.0], "gain": {"each": [i]}}
        for i, arm in enumerate(arms)
    }  # fmt: skip
    shown = printed(one, width)
    assert shown.splitlines()[0].strip() == "1 seed"
    assert "interval" not in shown
    assert "±" not in shown
    cells = [row.split("│")[1].strip() for row in shown.splitlines() if row.startswith("│")]
    assert "".join(cells) == "".join(arms)
    assert f"gain: top-1 less that of {arms[0]}, seed by seed" in shown
    two = {
        arm: {name: 2 * of[name] for name in ("seeds", "top1", "train_top1", "seconds")}
        | {"gain": {"each": [0.0, 1.0]}}
        for arm, of in one.items()
    }
    assert "2 seeds, mean and 95% interval" in printed(two, width)


def printed(outcome: dict[str, Any], width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    print_comparison(outcome, console)
    return console.file.getvalue()


def test_tensorboard() -> None:
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train("--epochs", "2", "--tracker", "tensorboard") == 0
    log = event.EventAccumulator("run/tensorboard")
    log.Reload()
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for name in ("val_top1", "train_loss", "lr"):
        found = [(each.step, each.value) for each in log.Scalars(name)]
        assert found == [(line["epoch"], pytest.approx(line[name])) for line in metrics]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--compare", "baseline,mixxup"], r"--compare: there is no arm 'mixxup'\. Near: mixup.*"),
        (["--compare", "netaug:alhpa=1"], r"--compare: .* sets no field 'alhpa'\. Near: alpha.*"),
        (["--compare", "netaug:lr=x"], r"--compare: lr is a number, as 0\.1; got 'x'\."),
        (["--compare", "baseline", "--seeds", "0,b"], r"--seeds expects whole numbers, .*'0,b'\."),
        (["--ema", "1"], r"ema is a decay between 0 and 1, e\.g\. 0\.999; 1\.0 came\."),
        (["--stop-stream", "1.5"], r"stop_stream is a share from 0 to 1; 1\.5 came\."),
        (["--tracker", "diary"], r"There is no tracker 'diary' here: installed are .*\."),
        (["--init", "none"], r"--init none: there is no such file\."),
        (["--init", "net.py"], r"--init net\.py is no safetensors file .*"),
        (
            ["--dropblock", "0.1"],
            r"Sequential has no blocks to drop from: .* Leave out dropblock\.",
        ),
        (["--dropout", "0.1"], r"net\.py:net cannot be built with .*'drop_rate'.*"),
        (["--seed", "-1"], r"seed is a whole number from 0 to 4294967295; -1 came\."),
        (["--seed", "99999999999"], r"seed is a whole number from 0 to .*; 99999999999 came\."),
        (["--compare", "baseline", "--seeds", "0,-1"], r"seed is a whole number .*; -1 came\."),
        (["--mixup", "-1"], r"mixup is a finite number from 0 on; -1\.0 came\."),
        (["--cutmix", "nan"], r"cutmix is a finite number from 0 on; nan came\."),
        (["--compare", "baseline,baseline:cutmix=-1"], r"cutmix is .* from 0 on; -1 came\."),
        (["--smoothing", "1"], r"smoothing is a number from 0 to below 1; 1\.0 came\."),
        (["--smoothing", "nan"], r"smoothing is a number from 0 to below 1; nan came\."),
        (["--smoothing", "-0.1"], r"smoothing is a number from 0 to below 1; -0\.1 came\."),
        (["--momentum", "1"], r"momentum is a number from 0 to below 1; 1\.0 came\."),
        (["--momentum", "-0.5"], r"momentum is a number from 0 to below 1; -0\.5 came\."),
        (["--weight-decay", "-1"], r"weight_decay is a finite number from 0 on; -1\.0 came\."),
        (["--weight-decay", "nan"], r"weight_decay is a finite number from 0 on; nan came\."),
        (["--method", "netaug", "--alpha", "-1"], r"alpha is .* from 0 on; -1\.0 came\."),
        (["--method", "netaug", "--alpha", "nan"], r"alpha is .* from 0 on; nan came\."),
        (["--method", "netaug", "--alpha-end", "-1"], r"alpha_end is .* from 0 on; -1\.0 came\."),
        (["--method", "netaug", "--alpha-end", "nan"], r"alpha_end is .* from 0 on; nan came\."),
        (["--channels", "2"], r"Images have 1 channel \(grey\) or 3 \(colour\); channels=2 came\."),
        (["--compare", ""], r"--compare: no arm was given\. Known are baseline, netaug, .*\."),
        (["--opt", "adahessian"], r"--opt adahessian needs second derivatives, .*"),
    ],
    ids=str,
)
def test_bad_knobs(capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    fails(capsys, train(*more), message)
    assert not Path("run").exists()
