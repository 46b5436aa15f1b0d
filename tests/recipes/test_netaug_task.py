"""NetAugTask against its equations, written out by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import netaugfx
from netaugfx.errors import InputError, PlanError
from netaugfx.plan import KINDS
from recipes.netaug import NetAugTask, netaug_loss
from recipes.tiny import tiny_mobilenet


def small() -> nn.Module:
    torch.manual_seed(0)
    return tiny_mobilenet(
        4, 2, channels=(4, 4, 6), strides=(1, 1, 2), expand_ratio=2, head=8
    ).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 2, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (6,), generator=generator)


@pytest.fixture
def wide(batch: tuple[Tensor, Tensor]) -> netaugfx.WideModel:
    return netaugfx.widen(small(), example_inputs=(batch[0],))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in module.named_parameters()
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    largest = max(each.abs().max().item() for each in expected.values())
    assert found.keys() == expected.keys()
    for name in expected:
        assert (found[name] - expected[name]).abs().max().item() <= 1e-12 * largest, name


def test_equation_1_and_2_by_hand() -> None:
    base, one, two = torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0)
    assert netaug_loss(base, [one], 1.0).item() == 5.0
    assert netaug_loss(base, [one, two], 0.5).item() == 6.0
    assert netaug_loss(base, [], 1.0).item() == 2.0


@pytest.mark.parametrize(("samples", "alpha"), [(1, 1.0), (1, 0.25), (3, 0.5)])
def test_loss_and_gradients_are_those_of_the_equation(
    wide: netaugfx.WideModel, batch: tuple[Tensor, Tensor], samples: int, alpha: float
) -> None:
    images, labels = batch
    task = NetAugTask(
        copy.deepcopy(wide), F.cross_entropy, alpha=alpha, samples=samples, kinds=KINDS, seed=7
    )
    result = task(images, labels)
    result["loss"].backward()

    # The configs that a task with this seed samples: those other than the base's, in order.
    generator = torch.Generator().manual_seed(7)
    configs = []
    while len(configs) < samples:
        config = wide.sample(generator)
        if config != wide.base_config:
            configs.append(config)
            torch.randint(2**62, (), generator=generator)  # the seed of the pass
    base_loss = F.cross_entropy(wide(images), labels)
    augmented = [F.cross_entropy(wide.at(config)(images), labels) for config in configs]
    (base_loss + alpha * sum(augmented)).backward()

    assert torch.equal(result["base_loss"], base_loss.detach())
    assert torch.equal(result["augmented_loss"], torch.stack(augmented).mean().detach())
    assert torch.equal(result["loss"], base_loss + alpha * sum(augmented))
    assert_close(gradients(task.wide), gradients(wide))


@pytest.mark.parametrize(("samples", "alpha"), [(1, 1.0), (2, 0.3), (1, 0.0)])
def test_separate_backward_passes_give_the_same_gradients(
    wide: netaugfx.WideModel, batch: tuple[Tensor, Tensor], samples: int, alpha: float
) -> None:
    one = NetAugTask(copy.deepcopy(wide), F.cross_entropy, alpha=alpha, samples=samples)
    two = NetAugTask(copy.deepcopy(wide), F.cross_entropy, alpha=alpha, samples=samples)
    for _ in range(2):
        joint, separate = one(*batch), two.backward(*batch)
        joint["loss"].backward()
        assert joint.keys() == separate.keys()
        for name in joint:
            assert torch.equal(joint[name], separate[name]), name
            assert not separate[name].requires_grad
        assert_close(gradients(two), gradients(one))


def test_the_augmented_pass_draws_from_its_own_generator(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 1), nn.Flatten()
    ).double()
    wide = netaugfx.widen(model, example_inputs=(images,))
    torch.manual_seed(5)
    wide(images)
    after_base_alone = torch.get_rng_state()
    for alpha in (0.0, 1.0):
        losses = []
        for global_seed in (5, 6):
            torch.manual_seed(global_seed)
            task = NetAugTask(wide, lambda output, _: output.square().mean(), alpha=alpha, seed=1)
            losses.append(task(images, labels)["augmented_loss"])
            if global_seed == 5:
                assert torch.equal(torch.get_rng_state(), after_base_alone)
        assert torch.equal(*losses)


def test_sampling_resumes_from_the_task_state(
    wide: netaugfx.WideModel, batch: tuple[Tensor, Tensor]
) -> None:
    task = NetAugTask(wide, F.cross_entropy, seed=1)
    task(*batch)
    state = task.get_task_state()
    expected = [task(*batch)["augmented_loss"] for _ in range(3)]
    other = NetAugTask(wide, F.cross_entropy, seed=2)
    other.load_task_state(state)
    for each in expected:
        assert torch.allclose(other(*batch)["augmented_loss"], each, rtol=1e-12)
    with pytest.raises(InputError, match="holds no 'generator'"):
        other.load_task_state({})
    other.load_task_state(None, strict=False)


def test_only_the_given_kinds_grow(
    wide: netaugfx.WideModel, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    at = netaugfx.WideModel.at
    monkeypatch.setattr(
        netaugfx.WideModel, "at", lambda self, config: seen.append(config) or at(self, config)
    )
    task = NetAugTask(wide, F.cross_entropy, kinds=("inner",))
    for _ in range(5):
        task(*batch)
    grown = {name for config in seen for name in config if config[name] != wide.base_config[name]}
    assert grown
    assert {wide.widths[name].kind for name in grown} == {"inner"}
    assert all(config != wide.base_config for config in seen)
    task.kinds = ()  # the end of a schedule: the base alone
    assert "augmented_loss" not in task(*batch)


def test_kinds_are_checked_whenever_they_are_set(
    wide: netaugfx.WideModel, batch: tuple[Tensor, Tensor]
) -> None:
    task = NetAugTask(wide, F.cross_entropy, kinds="stream")
    assert task.kinds == ("stream",)
    task.kinds = "inner"
    assert task.kinds == ("inner",)
    assert "augmented_loss" in task(*batch)
    unknown = r"No width has the kind 'steam'; kinds are stream and inner\."
    with pytest.raises(PlanError, match=unknown):
        task.kinds = ("stream", "steam")
    with pytest.raises(PlanError, match=r"kinds must be among stream and inner; None came\."):
        task.kinds = None
    assert task.kinds == ("inner",)
    with pytest.raises(PlanError, match=unknown):
        NetAugTask(wide, F.cross_entropy, kinds=("steam",))


def test_a_sampler_that_gives_the_base_alone_is_refused(
    wide: netaugfx.WideModel, batch: tuple[Tensor, Tensor]
) -> None:
    task = NetAugTask(wide, sampler=lambda w, g, kinds: w.sample(g, kinds=kinds, budget=1.0))
    message = r"The sampler gave the base's own config 1,000 times in a row.* or set kinds=\(\)"
    with pytest.raises(InputError, match=message):
        task(*batch)


def test_evaluation_sees_the_base(wide: netaugfx.WideModel, batch: tuple[Tensor, Tensor]) -> None:
    task = NetAugTask(wide, F.cross_entropy)
    task(*batch)["loss"].backward()
    model = task.get_eval_model().eval()
    assert torch.equal(model(batch[0]), netaugfx.extract_base(wide).eval()(batch[0]))


@pytest.fixture
def one_process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_distributed_data_parallel(wide: netaugfx.WideModel, batch: tuple[Tensor, Tensor]) -> None:
    alone = NetAugTask(copy.deepcopy(wide), F.cross_entropy)
    spread = NetAugTask(copy.deepcopy(wide), F.cross_entropy).prepare_distributed()
    for _ in range(3):
        alone(*batch)["loss"].backward()
        spread(*batch)["loss"].backward()
        assert_close(gradients(spread.wide), gradients(alone.wide))
        alone.backward(*batch)
        spread.backward(*batch)
        assert_close(gradients(spread.wide), gradients(alone.wide))


def test_errors(wide: netaugfx.WideModel, batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match=r"expects a widened model, got TinyMobileNet\. Make one"):
        NetAugTask(small(), F.cross_entropy)
    several = nn.Sequential(wide, nn.Identity(), copy.deepcopy(wide))
    with pytest.raises(InputError, match=r"Sequential holds several: 0, 2\. Widen the model"):
        NetAugTask(several, F.cross_entropy)
    NetAugTask(several[:2], F.cross_entropy)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        NetAugTask(wide, F.cross_entropy, samples=0)
    stiff = netaugfx.widen(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)), factor=2)
    with pytest.raises(PlanError, match=r"no width of kind inner can grow .kinds that can: stream"):
        NetAugTask(stiff, F.cross_entropy, kinds=("inner",))
    still = netaugfx.widen(small(), factor=1.0, example_inputs=(batch[0],))
    with pytest.raises(PlanError, match=r"no width of kind stream or inner can grow .* none"):
        NetAugTask(still, F.cross_entropy)
