"""Regularisers, mixed precision, and starting from trained weights."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from recipes.augment import AugmentedImages, build_transforms
from recipes.data import load_data
from recipes.errors import ModelError, RunError
from recipes.tiny import tiny_mobilenet
from recipes.training.config import TrainConfig
from recipes.training.ingredients import load_weights
from recipes.training.loop import train
from recipes.training.regularise import add_dropblock, mix
from tests.recipes.images import make_folder
from tests.recipes.test_training import NET, outcome, quiet, small_config

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.recipes.test_training"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_folder(folder / "images", per_class=8)
    make_folder(folder / "two", per_class=8, classes=("cat", "dog"))
    (folder / "net.py").write_text(NET)
    return folder


def test_mixing_follows_from_its_seed_alone(files: Path) -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    config = small_config(files, "baseline")
    assert mix(images, labels, config, 3, 0)[1] is labels
    for fields in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        mixing = replace(config, **fields)
        state = torch.get_rng_state()
        first = [mix(images, labels, mixing, 3, seed) for seed in range(6)]
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        for seed, (mixed, targets) in enumerate(first):
            again = mix(images, labels, mixing, 3, seed)
            assert torch.equal(again[0], mixed)
            assert torch.equal(again[1], targets)
            assert torch.allclose(targets.sum(1), torch.ones(6))
            # by hand: each image with its neighbour, by the share that the labels tell
            if "cutmix" not in fields:
                share = targets[0].max() if targets[0, 0] >= 0.5 else targets[0, 0]
                expected = share * images + (1 - share) * images.roll(1, 0)
                assert torch.allclose(mixed, expected, atol=1e-6)
        assert len({float(targets[0, 0]) for _, targets in first}) > 1


def test_dropblock_drops_regions_while_training_alone() -> None:
    torch.manual_seed(0)
    model = tiny_mobilenet(channels=(8, 8, 8), strides=(1, 1, 1))
    add_dropblock(model, 0.3)
    seen: list[torch.Tensor] = []
    model.blocks[1].register_forward_hook(lambda *given: seen.append(given[2].detach()))
    x = torch.rand(4, 3, 16, 16)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    model(x)
    dropped = (seen[-1] == 0).all(1, keepdim=True).float()  # the same region in every channel
    assert 0.1 < dropped.mean() < 0.6
    beyond = nn.functional.pad(dropped, (3, 3, 3, 3), value=1.0)  # squares may reach over the edge
    centres = -nn.functional.max_pool2d(-beyond, 7, 1)
    assert torch.equal(nn.functional.max_pool2d(centres, 7, 1, 3), dropped)  # squares of 7 by 7
    with pytest.raises(ModelError, match="Linear has no blocks to drop from"):
        add_dropblock(nn.Linear(2, 2), 0.1)


def test_policies_are_keyed_and_none_is_none(files: Path) -> None:
    data = load_data(f"folder:{files}/images")
    plain = build_transforms(data)[1](data.train[0][0])
    for augment in ("autoaugment", "randaugment"):
        images = AugmentedImages(data.train, build_transforms(data, augment)[0], seed=0)
        first = [images[epoch, 0][0] for epoch in range(8)]
        assert all(torch.equal(images[epoch, 0][0], first[epoch]) for epoch in range(8))
        standard = AugmentedImages(data.train, build_transforms(data)[0], seed=0)
        assert any(not torch.equal(standard[e, 0][0], first[e]) for e in range(8))
    none = AugmentedImages(data.train, build_transforms(data, "none")[0], seed=0)
    assert torch.equal(none[3, 0][0], plain)


def in_bfloat16(files: Path, out: Path) -> None:
    torch.set_num_threads(1)
    quiet(replace(small_config(files, "netaug"), precision="bf16", ema=0.5), out)


def test_mixed_precision(files: Path, tmp_path: Path) -> None:
    """In a process of its own: Accelerate keeps one precision for each."""
    process = FORKSERVER.Process(target=in_bfloat16, args=(files, tmp_path / "half"))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    quiet(replace(small_config(files, "netaug"), ema=0.5), tmp_path / "whole")
    half, whole = (load_file(tmp_path / each / "base.safetensors") for each in ("half", "whole"))
    assert {value.dtype for value in half.values()} == {torch.float32, torch.int64}
    assert any(not torch.equal(half[name], whole[name]) for name in whole)
    for name, value in whole.items():
        assert (half[name].float() - value.float()).abs().max() < 0.1, name


@pytest.mark.parametrize("method", ["baseline", "netaug"])
def test_training_starts_from_given_weights(method: str, files: Path, tmp_path: Path) -> None:
    quiet(small_config(files, "baseline"), tmp_path / "source")
    weights = tmp_path / "source" / "base.safetensors"
    other = replace(
        small_config(files, method),
        data=f"folder:{files}/two",
        init=str(weights),
        lr=1e-9,
        epochs=1,
        weight_decay=0.0,
        sort=True,
    )
    said = StringIO()
    train(other, tmp_path / "run", device="cpu", console=Console(file=said, width=200))
    assert "fresh: head.weight, head.bias" in said.getvalue()
    source = load_file(weights)
    found = load_file(tmp_path / "run" / "base.safetensors")
    assert found["head.weight"].shape == (2, 4)
    for name in ("stem.0.weight", "inner.0.weight", "inner.2.bias"):
        assert torch.allclose(found[name], source[name], atol=1e-6), name  # not sorted either
    save_file({name: value + 1 for name, value in source.items()}, weights)
    with pytest.raises(RunError, match=r"holds another run: init_sha256 is '[0-9a-f]{64}' there"):
        quiet(other, tmp_path / "run", resume=True)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(RunError, match=r"another model: 0 of the \d+ entries fit.*'a'; expected"):
        load_weights(tiny_mobilenet(), tmp_path / "a.safetensors")


def test_dropout_reaches_the_model(files: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        model="netaugfx:tiny_mobilenet",
        data=f"folder:{files}/images",
        epochs=1,
        batch_size=8,
        model_args={"channels": (4, 4), "strides": (1, 2), "head": 8},
    )
    quiet(config, tmp_path / "without")
    quiet(replace(config, dropout=0.5), tmp_path / "with")
    one, two = (outcome(tmp_path / each) for each in ("without", "with"))
    assert one["base"] != two["base"]
    assert one["tensors"].keys() == two["tensors"].keys()
