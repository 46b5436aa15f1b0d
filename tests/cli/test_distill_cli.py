"""Distillation, ranking and evaluation from the command line: what works, and every bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recipes import cli
from recipes.models import build_model
from recipes.studies.reevaluation import evaluate_run
from recipes.training import loop, run
from tests.recipes.images import make_folder

NET = """
from torch import nn

def net(num_classes, in_chans=3, width=4):
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(6, num_classes),
    )

def linear(num_classes, in_chans=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_chans, num_classes))
"""
SHORT = (
    *("--data", "folder:images", "--epochs", "1", "--batch-size", "6"),
    *("--device", "cpu", "--workers", "0"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, networks and a trained teacher, in a directory that tests only read."""
    folder = tmp_path_factory.mktemp("place")
    make_folder(folder / "images")
    make_folder(folder / "other", classes=("cat", "dog", "emu", "fox"))
    make_folder(folder / "renamed", classes=("ant", "cat", "dog"))
    (folder / "net.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, data in (("teacher", "images"), ("four", "other")):
            command = ["train", "--model", "net.py:net", "--model-arg", "width=8", *SHORT]
            assert cli.main([*command, "--data", f"folder:{data}", "--out", name]) == 0
        command = ["train", "--model", "net.py:net", "--method", "netaug", *SHORT]
        assert cli.main([*command, "--out", "wide"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")


def train(out: Path, *more: str, model: str = "net.py:net") -> int:
    return cli.main(["train", "--model", model, *SHORT, "--out", str(out), *more])


def distill(out: Path, *more: str, student: str = "net.py:net", teacher: str = "teacher") -> int:
    command = ["distill", "--student", student, "--teacher", teacher, *SHORT, "--out", str(out)]
    return cli.main([*command, *more])


def fails(capsys: pytest.CaptureFixture[str], code: int, message: str) -> None:
    """One line of error that matches, exit code 2, no traceback."""
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.count("\n") == 1
    assert re.fullmatch(f"netaugfx: error: {message}", error.strip()), error


def losses_of(out: Path) -> set[str]:
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {name.removeprefix("train_") for name in line if re.match(r"train_.*_loss", name)}


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_distill(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--objective", "kd,rkd,variational", "--augment", "cutmixpick")
    assert distill(out, *options) == 0
    said = capsys.readouterr().out
    terms = {"kd_loss", "rkd_distance_loss", "rkd_angle_loss", "variational_loss", "view_loss"}
    assert losses_of(out) == {*terms, "base_loss"}
    for term in terms:  # a line each
        assert re.search(rf"^    {term.replace('_', ' ')} \d+\.\d{{4}}$", said, re.MULTILINE), said
    untouched = build_model("net.py:net", num_classes=3)
    untouched.load_state_dict(load_file(out / "base.safetensors"), strict=True)
    held = tensors_of(out)
    learnt = {name for name in held if name.startswith("task/terms/")}
    assert "task/terms/3.adapter.log_scale" in learnt
    assert {name.split("/")[0] for name in held} == {"weights", "optimizer", "random", "task"}
    weights = {name.removeprefix("weights/") for name in held if name.startswith("weights/")}
    assert weights == set(untouched.state_dict())
    kept = json.loads((out / "config.json").read_text())
    assert kept["config"]["distill"]["scheme"] == "cutmixpick"
    assert len(kept["teacher_sha256"]) == 64
    assert distill(out, *options, "--resume") == 0
    assert "resuming after epoch 1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ("kd", {"kd_loss"}),
        ("rkd", {"rkd_distance_loss", "rkd_angle_loss"}),
        ("netaug+kd", {"augmented_loss", "kd_loss"}),
        ("netaug+rkd", {"augmented_loss", "teacher_loss", "rkd_distance_loss", "rkd_angle_loss"}),
        ("sandwich", {"augmented_loss", "teacher_loss"}),
    ],
)
def test_presets_of_train(method: str, terms: set[str], tmp_path: Path) -> None:
    teacher = () if method in ("netaug+rkd", "sandwich") else ("--teacher", "teacher")
    assert train(tmp_path / "run", "--method", method, *teacher) == 0
    assert losses_of(tmp_path / "run") - {"base_loss"} == terms
    untouched = build_model("net.py:net", num_classes=3)
    untouched.load_state_dict(load_file(tmp_path / "run/base.safetensors"), strict=True)


def test_other_options(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = distill(
        out,
        *("--method", "netaug", "--objective", "attention,kd", "--features", "0=0"),
        *("--features", "3=1", "--objective-weight", "attention=2", "--temperature", "2"),
        *("--label-weight", "0.5", "--no-detach", "--image-augment", "none", "--cutmix", "1"),
        teacher="widest",
    )
    assert code == 0
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["method"], config["augment"], config["cutmix"]) == ("netaug", "none", 1.0)
    expected = {
        "teacher": "widest",
        "objectives": ["attention", "kd"],
        "labels": 0.5,
        "places": {"0": "0", "3": "1"},
        "weights": {"attention": 2.0},
        "temperature": 2.0,
        "detach": False,
        "scheme": None,
    }
    assert {name: config["distill"][name] for name in expected} == expected


def test_what_objectives_learn_is_clipped_with_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    clip = Accelerator.clip_grad_norm_

    def clipped(accelerator: Accelerator, *arguments: Any) -> None:
        clip(accelerator, *arguments)
        (optimizer,) = accelerator._optimizers
        held = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(p.grad for p in held if p.grad is not None))

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", clipped)
    assert distill(tmp_path / "run", "--objective", "fitnet", "--clip-grad", "0.001") == 0
    assert norms
    assert max(norms) <= 0.00101


def test_a_teacher_by_name_and_file(tmp_path: Path) -> None:
    weights = ("--teacher-weights", "teacher/base.safetensors", "--teacher-arg", "width=8")
    options = ("--image-augment", "none", "--teacher-cache", "100", "--epochs", "2")
    assert distill(tmp_path / "one", *options) == 0
    assert distill(tmp_path / "two", *options, *weights, teacher="net.py:net") == 0
    one, two = (load_file(tmp_path / each / "base.safetensors") for each in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_without_weight_a_teacher_changes_nothing(tmp_path: Path) -> None:
    nothing = ("--objective-weight", "kd=0", "--objective-weight", "contrastive=0")
    assert train(tmp_path / "plain") == 0
    assert distill(tmp_path / "taught", "--objective", "kd,contrastive", *nothing) == 0
    one, two = (load_file(tmp_path / each / "base.safetensors") for each in ("plain", "taught"))
    assert all(torch.equal(one[name], two[name]) for name in one)


NAMED = ("--teacher", "net.py:net", "--teacher-weights")


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("teacher", ["teacher", "widest"])
def test_a_stopped_run_resumes_exactly(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Banks, generators, learnt parts and their momentum included; stopped within an epoch."""
    options = (
        *("--objective", "kd,contrastive,fitnet", "--augment", "cutmix", "--lr", "0.01"),
        *("--method", "netaug", "--epochs", "2", "--checkpoint-steps", "1"),
    )
    assert distill(tmp_path / "whole", *options, teacher=teacher) == 0
    keep, kept = run.keep, 0

    def keep_and_die(*arguments: object) -> None:
        nonlocal kept
        keep(*arguments)
        kept += 1
        if kept == 4:  # of three steps an epoch
            raise Killed

    monkeypatch.setattr(loop, "keep", keep_and_die)
    with pytest.raises(Killed):
        distill(tmp_path / "stopped", *options, teacher=teacher)
    monkeypatch.setattr(loop, "keep", keep)
    torch.manual_seed(5)
    assert distill(tmp_path / "stopped", *options, "--resume", teacher=teacher) == 0
    one, two = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "stopped")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_a_teacher_that_changed_is_another_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = load_file("teacher/base.safetensors")
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    options = ("--teacher-weights", str(file), "--teacher-arg", "width=8")
    assert distill(tmp_path / "run", *options, teacher="net.py:net") == 0
    save_file({name: value + 1 for name, value in weights.items()}, file)
    capsys.readouterr()
    code = distill(tmp_path / "run", *options, "--resume", teacher="net.py:net")
    fails(capsys, code, r".* holds another run: teacher_sha256 is '\w+' there and .* Choose .*")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--teacher", "four"), "The teacher four has 4 classes, the data 3.*"),
        (("--objective", "rdk"), r"There is no objective 'rdk'\. Near: rkd.*"),
        (("--objective", "rkd", "--features", "s=8"), r"Student: .* named 's'\. .*"),
        (("--objective", "rkd", "--features", "0=88"), r"Teacher: .* named '88'\. .*"),
        (("--objective", "rkd", "--batch-size", "2"), "rkd_angle compares angles .* at least 3, got 2.*"),
        (("--augment", "cutmx"), r"There is no augmentation 'cutmx'\. Near: cutmix.*"),
        (("--objective", "rkd", "--augment", "cutmix"), "Images of cutmix .* add kd .*"),
        (("--teacher", "images"), "images holds no run: there is no images/config.json.*"),
        (("--teacher", "resnet18"), "The teacher 'resnet18' is no directory of a run here.* untrained.*"),
        ((*NAMED, "teacher/base.safetensors"), ".* is a checkpoint of another model: .*"),
        ((*NAMED, "nowhere"), "nowhere is no safetensors file.*"),
        (("--teacher", "sampled"), "A sampled subnet teaches within NetAug.*"),
        (("--teacher", "sampled", "--method", "netaug", "--objective", "fitnet"), "fitnet learns .*"),
        (("--method", "netaug", "--objective", "fitnet", "--sort"), "Sorting channels would .*"),
        (("--features", "0"), "--features expects STUDENT=TEACHER, got '0'.*"),
        (("--objective-weight", "kd=x"), "--objective-weight expects a number.*"),
        (("--objective-weight", "rkd=1"), "A weight came for 'rkd'.*"),
        (("--data", "folder:renamed"), "The teacher teacher learnt other classes .* label 0 is 'cat', there 'ant'.*"),
        (("--features", "0=0"), r"Features came \(0=0\), and kd compares none.*"),
        (("--objective", "attention", "--features", "0=5"), "attention compares where .* one pixel .*"),
        (("--no-detach",), "--no-detach would have no effect with the teacher 'teacher'.*"),
        (("--teacher", "widest", "--method", "netaug", "--teacher-cache", "3"), "--teacher-cache would .*"),
        (("--teacher-arg", "width=8"), "The teacher teacher is a run, .*leave out --teacher-arg.*"),
        (("--temperature", "0"), "The temperature must be above 0.*"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)  # fmt: skip
def test_bad_input_of_distill(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fails(capsys, distill(tmp_path / "run", *options), message)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_the_lesson(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--objective", "kd,fitnet", "--objective-weight", "fitnet=1e38", "--lr", "1e10")
    code = distill(tmp_path / "run", *options, "--epochs", "3")
    fails(capsys, code, r"The loss is .* --lr, or a lower --objective-weight of .*(kd|fitnet).*")


def test_bad_input_of_train(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    fails(capsys, train(out, "--method", "kd"), "--method kd needs a teacher: give --teacher .*")
    fails(capsys, train(out, "--objective", "kd"), "--objective needs a teacher.*")
    fails(capsys, train(out, "--temperature", "7"), "--temperature needs a teacher.*")
    taught = ("--method", "sandwich", "--teacher", "teacher")
    fails(capsys, train(out, *taught), "In the sandwich rule the widest subnet teaches.*")
    code = train(out, "--teacher", "teacher", "--objective", "attention", model="net.py:linear")
    fails(capsys, code, "attention compares a feature map, and the student has none.*")
    assert not out.exists()


def rank(out: Path, *more: str) -> int:
    command = ["rank-augmentations", "--teacher", "teacher", "--out", str(out), "--device", "cpu"]
    return cli.main([*command, "--repeats", "4", "--samples", "20", "--batch-size", "6", *more])


def test_runs_of_different_objectives_have_directories_of_their_own() -> None:
    for objective in ("kd", "rkd,kd"):
        command = ["distill", "--student", "net.py:net", "--teacher", "teacher", *SHORT]
        assert cli.main([*command, "--objective", objective]) == 0
    assert cli.main([*command, "--method", "netaug", "--objective", "attention"]) == 0
    names = {path.name for path in Path("runs").iterdir()}
    assert names >= {"net.py-net-kd-0", "net.py-net-rkd+kd-0", "net.py-net-netaug+attention-0"}


def test_rank_augmentations(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert rank(tmp_path / "all", "--student", "wide") == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "all/augmentations.json").read_text())
    rows = found["schemes"]
    assert len(rows) == 9
    assert [row["stddev"] for row in rows] == sorted(row["stddev"] for row in rows)
    assert all(row["interval"][0] <= row["interval"][1] for row in rows)
    assert all(row["scheme"] in said for row in rows)
    assert (found["K"], found["repeats"]) == (20, 4)
    assert (tmp_path / "all/augmentations.png").read_bytes().startswith(b"\x89PNG")
    assert rank(tmp_path / "again", "--student", "wide") == 0
    assert (tmp_path / "again/augmentations.json").read_text() == (
        tmp_path / "all/augmentations.json"
    ).read_text()
    assert rank(tmp_path / "some", "--schemes", "cutmix,flip") == 0
    two = json.loads((tmp_path / "some/augmentations.json").read_text())["schemes"]
    assert {row["scheme"]: row for row in two}.items() <= {r["scheme"]: r for r in rows}.items()


def test_bad_input_of_rank(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fails(capsys, rank(out, "--schemes", "flop"), r"There is no augmentation 'flop'\. Near: flip.*")
    fails(capsys, rank(out, "--schemes", "cutmixpick-student"), ".* give --student RUN.*")
    fails(
        capsys, rank(out, "--samples", "7"), "K counts x and x' alike and must be even .* got 7.*"
    )
    fails(capsys, rank(out, "--teacher", "resnet18"), "Which images.* give --data SPEC.*")
    assert not out.exists()


def evaluate(*more: str) -> int:
    return cli.main(["evaluate", *more, "--device", "cpu"])


def test_evaluate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert evaluate("wide", "--out", str(tmp_path), "--k", "1", "2") == 0
    shown = capsys.readouterr().out
    assert "predicted classes" in shown
    assert re.search(r"on validation images +.* value", shown)
    base = json.loads((tmp_path / "evaluation-base.json").read_text())
    result = json.loads((Path("wide") / "result.json").read_text())
    assert base["top1"] == pytest.approx(result["top1"], rel=1e-6)
    assert {"precision@2", "recall@2", "f1@2", "top2", "calibration_error"} <= base.keys()
    assert base["config"] is None
    assert (tmp_path / "confusion-base.png").read_bytes().startswith(b"\x89PNG")

    assert evaluate("wide", "--out", str(tmp_path), "--config", "widest", "--json") == 0
    widest = json.loads(capsys.readouterr().out)
    plan = json.loads((Path("wide") / "plan.json").read_text())
    assert set(widest["config"]) == {width["name"] for width in plan["widths"]}
    assert widest["recalibrated"] == 1
    assert widest["images"] == 18
    half = tmp_path / "half.json"
    half.write_text(json.dumps({"0": 8}))
    assert evaluate("wide", "--out", str(tmp_path), "--config", str(half)) == 0
    sizes = json.loads((tmp_path / "evaluation-half.json").read_text())["config"]
    assert (sizes["0"], sizes["3"]) == (8, 6)
    assert evaluate("teacher", "--out", str(tmp_path)) == 0
    same = evaluate_run(Path("wide"), "widest", recalibrate=1, out=tmp_path, as_json=True)
    assert same["loss"] == pytest.approx(widest["loss"], rel=1e-6)


def test_bad_input_of_evaluate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    fails(capsys, evaluate("images", *out), "images holds no run: there is no images/config.json.*")
    fails(capsys, evaluate("teacher", "--config", "widest", *out), "teacher grew no widths.*")
    fails(capsys, evaluate("wide", "--config", "none.json", *out), ".*there is no file.*")
    fails(
        capsys, evaluate("wide", "--out", "net.py/x"), "Cannot write in net.py/x: Not a directory.*"
    )
    message = r"k counts classes, from 1 to the 3 there are; got \[20\]\."
    fails(capsys, evaluate("wide", "--k", "20", *out), message)
    file = tmp_path / "sizes.json"
    for content, message in {
        "{": ".* does not read as JSON .*",
        "[1]": '.*expected {"WIDTH": SIZE, ...}.*',
        '{"0": 5}': ".*5.*",
        '{"nowhere": 8}': ".*nowhere.*",
    }.items():
        file.write_text(content)
        fails(capsys, evaluate("wide", "--config", str(file), *out), message)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text(Path("wide/config.json").read_text())
    fails(capsys, evaluate(str(unfinished), *out), ".*unfinished is not finished: .*")
    (unfinished / "config.json").write_text('{"config": {"models": 1}, "data": {}}')
    fails(capsys, evaluate(str(unfinished), *out), ".* is of another version: it has models.*")
    assert not (tmp_path / "out").exists()
