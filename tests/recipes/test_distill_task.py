"""DistillTask and SandwichTask against their equations, written out by hand in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.task import ClassificationTask
from torch import Tensor, nn
from torch.nn import functional as F

import netaugfx
from netaugfx.errors import InputError, PlanError
from recipes import losses
from recipes.adapters import Contrast
from recipes.distill import DistillTask
from recipes.errors import DistillError
from recipes.features import Watch
from recipes.netaug import NetAugTask
from recipes.objectives import KINDS, check_batch, expand
from recipes.sandwich import SandwichTask
from recipes.schemes import build_scheme
from recipes.teachers import FrozenTeacher, OnlineTeacher
from recipes.tiny import tiny_mobilenet

Batch = tuple[Tensor, Tensor]
EMBEDDING = "classifier:input"


def small(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"channels": (4, 4, 6), "strides": (1, 1, 2), "expand_ratio": 2, "head": 8} | options
    return tiny_mobilenet(4, 2, **sizes).double()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 2, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (6,), generator=generator)


@pytest.fixture(scope="module")
def widened() -> netaugfx.WideModel:
    example = torch.zeros(2, 2, 8, 8, dtype=torch.float64)
    return netaugfx.widen(small(), example_inputs=(example,), verify=False)


@pytest.fixture
def wide(widened: netaugfx.WideModel) -> netaugfx.WideModel:
    return copy.deepcopy(widened)


@pytest.fixture
def teacher() -> nn.Module:
    return small(5, head=12, channels=(6, 6, 8))


def plain_task(model: nn.Module) -> ClassificationTask:
    return ClassificationTask(
        model, F.cross_entropy, device=torch.device("cpu"), dtype=torch.float64, verbose=False
    )


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in module.named_parameters()
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    largest = max(each.abs().max().item() for each in expected.values())
    assert found.keys() == expected.keys()
    for name in expected:
        assert (found[name] - expected[name]).abs().max().item() <= 1e-11 * largest, name


def test_plain_kd_is_hintons(teacher: nn.Module, batch: Batch) -> None:
    images, labels = batch
    task = DistillTask(
        plain_task(small()),
        FrozenTeacher(teacher),
        ["kd"],
        images,
        labels=0.1,
        weights={"kd": 0.9},
    )
    result = task(images, labels)
    result["loss"].backward()
    model = small()
    output, taught = model(images), copy.deepcopy(teacher).eval()(images).detach()
    expected = losses.kd(output, taught, labels)
    expected.backward()
    assert result["loss"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.equal(result["output"], output)
    assert_close(gradients(task.trainable_module), gradients(model))
    assert result["base_loss"].item() == pytest.approx(F.cross_entropy(output, labels).item())
    assert result["kd_loss"].item() == pytest.approx(losses.soft(output, taught).item())


def test_netaug_with_kd_and_rkd_is_the_sum_of_its_terms(
    wide: netaugfx.WideModel, teacher: nn.Module, batch: Batch
) -> None:
    images, labels = batch
    inner = NetAugTask(copy.deepcopy(wide), F.cross_entropy, alpha=0.5, samples=2, seed=7)
    task = DistillTask(
        inner, FrozenTeacher(teacher), ["kd", "rkd"], images, weights={"kd": 0.7, "rkd": 0.1}
    )
    result = task(images, labels)
    result["loss"].backward()

    by_hand = NetAugTask(wide, F.cross_entropy, alpha=0.5, samples=2, seed=7)
    expected = by_hand(images, labels)
    with Watch(wide, [EMBEDDING]) as watch:
        output = wide(images)  # a second base pass, which train mode allows
    frozen = copy.deepcopy(teacher).eval()
    with Watch(frozen, [EMBEDDING]) as seen:
        taught = frozen(images)
    pair = watch.passes[0][EMBEDDING], seen.passes[0][EMBEDDING].detach()
    terms = {
        "kd_loss": (0.7, losses.soft(output, taught.detach())),
        "rkd_distance_loss": (2.5, losses.rkd_distance(*pair)),
        "rkd_angle_loss": (5.0, losses.rkd_angle(*pair)),
    }
    total = expected["loss"] + sum(weight * loss for weight, loss in terms.values())
    total.backward()
    assert result["loss"].item() == pytest.approx(total.item(), rel=1e-12)
    for name, (_, loss) in terms.items():
        assert result[name].item() == pytest.approx(loss.item(), rel=1e-10), name
    for name in ("base_loss", "augmented_loss"):
        assert torch.allclose(result[name], expected[name], rtol=1e-12)
    assert_close(gradients(inner.wide), gradients(wide))
    named = {name for name in result if name.endswith("_loss")}
    assert named == {*terms, "base_loss", "augmented_loss"}
    assert not any(result[name].requires_grad for name in named)


@pytest.mark.parametrize("detach", [True, False])
def test_the_widest_subnet_teaches_and_learns(
    wide: netaugfx.WideModel, batch: Batch, detach: bool
) -> None:
    images, labels = batch
    wide.eval()  # so that the passes by hand see the same statistics
    student = copy.deepcopy(wide)
    inner = NetAugTask(student, F.cross_entropy, alpha=0.5, seed=7)
    online = OnlineTeacher(student, "widest", detach=detach)
    task = DistillTask(inner, online, ["kd", "rkd_distance"], images)
    result = task(images, labels)
    result["loss"].backward()

    expected = NetAugTask(wide, F.cross_entropy, alpha=0.5, seed=7)(images, labels)["loss"]
    with Watch(wide, [EMBEDDING]) as watch:
        wide(images)
        wide.at(wide.max_config)(images)
    base, widest = watch.passes
    teacher_loss = F.cross_entropy(widest.output, labels)
    taught = [widest.output, widest[EMBEDDING]]
    if detach:
        taught = [each.detach() for each in taught]
    total = (
        expected
        + 0.5 * teacher_loss
        + losses.soft(base.output, taught[0])
        + 25 * losses.rkd_distance(base[EMBEDDING], taught[1])
    )
    total.backward()
    assert result["loss"].item() == pytest.approx(total.item(), rel=1e-12)
    assert result["teacher_loss"].item() == pytest.approx(teacher_loss.item(), rel=1e-12)
    assert_close(gradients(student), gradients(wide))


def test_the_sampled_subnet_teaches(wide: netaugfx.WideModel, batch: Batch) -> None:
    images, labels = batch
    wide.eval()
    inner = NetAugTask(wide, F.cross_entropy, seed=7)
    task = DistillTask(inner, OnlineTeacher(wide, "sampled"), ["kd"], images)
    generator = torch.Generator().manual_seed(7)
    while (config := wide.sample(generator, kinds=inner.kinds)) == wide.base_config:
        pass
    taught = wide.at(config)(images)
    result = task(images, labels)
    assert result["kd_loss"].item() == pytest.approx(losses.soft(wide(images), taught).item())
    assert "teacher_loss" not in result
    inner.kinds = ()  # the end of a schedule: nobody teaches
    result = task(images, labels)
    assert "kd_loss" not in result
    assert result["loss"].item() == pytest.approx(F.cross_entropy(wide(images), labels).item())


def test_a_teacher_without_weight_changes_nothing(
    wide: netaugfx.WideModel, teacher: nn.Module, batch: Batch
) -> None:
    """lambda = 0 is the inner task alone, bit for bit, with the same random numbers."""
    weights = {}
    for distils in (False, True):
        student = copy.deepcopy(wide)
        task: Any = NetAugTask(student, F.cross_entropy, seed=3)
        if distils:
            names = ["kd", "rkd", "fitnet", "contrastive"]
            task = DistillTask(
                task, FrozenTeacher(teacher), names, batch[0], weights=dict.fromkeys(names, 0.0)
            )
        optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
        torch.manual_seed(0)
        for _ in range(3):
            optimizer.zero_grad()
            task(*batch)["loss"].backward()
            optimizer.step()
        weights[distils] = student.state_dict(), torch.get_rng_state()
    assert torch.equal(weights[False][1], weights[True][1])
    for name, value in weights[False][0].items():
        assert torch.equal(value, weights[True][0][name]), name


@pytest.mark.parametrize("name", ["identity", "cutmix", "cutmixpick", "cutmixpick-student"])
def test_a_second_view_adds_the_teachers_own_output_on_it(
    teacher: nn.Module, batch: Batch, name: str
) -> None:
    images, labels = batch
    model = small().eval()
    scheme = build_scheme(name, (0.5, 0.5), (0.5, 0.5))
    task = DistillTask(
        plain_task(model),
        FrozenTeacher(teacher),
        ["kd"],
        images,
        weights={"kd": 2.0},
        temperature=3.0,
        scheme=scheme,
        seed=4,
    )
    frozen = copy.deepcopy(teacher).eval()
    view = scheme(
        images,
        torch.Generator().manual_seed(4),
        model if name.endswith("student") else frozen,
    )
    assert view.shape == images.shape
    result = task(images, labels)
    expected = losses.soft(model(view), frozen(view), temperature=3.0).item()
    assert result["view_loss"].item() == pytest.approx(expected, rel=1e-12)
    on_x = losses.soft(model(images), frozen(images), temperature=3.0)
    total = F.cross_entropy(model(images), labels) + 2 * on_x + 2 * expected
    assert result["loss"].item() == pytest.approx(total.item(), rel=1e-12)
    assert not model.training


def test_the_widest_teaches_on_the_second_view_too(wide: netaugfx.WideModel, batch: Batch) -> None:
    wide.eval()
    scheme = build_scheme("identity", (0.5, 0.5), (0.5, 0.5))
    inner = NetAugTask(wide, F.cross_entropy)
    task = DistillTask(inner, OnlineTeacher(wide), ["kd"], batch[0], scheme=scheme)
    result = task(*batch)
    assert torch.allclose(result["view_loss"], result["kd_loss"], rtol=1e-12)


def test_a_frozen_teacher_stays_as_it_is(teacher: nn.Module, batch: Batch) -> None:
    before = copy.deepcopy(teacher.state_dict())
    frozen = FrozenTeacher(teacher)
    task = DistillTask(plain_task(small()), frozen, ["kd", "fitnet"], batch[0]).train()
    task(*batch)["loss"].backward()
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in frozen.modules())
    assert all(parameter.grad is None for parameter in frozen.parameters())
    for held in (teacher, frozen.model):
        for name, value in held.state_dict().items():
            assert torch.equal(value, before[name]), name
    assert not any(name.startswith("teacher") for name in task.state_dict())
    assert not any(p is q for p in task.own_parameters() for q in frozen.parameters())


def test_a_cached_teacher_says_the_same(teacher: nn.Module, batch: Batch) -> None:
    images, _ = batch
    plain, cached = FrozenTeacher(teacher), FrozenTeacher(teacher, cache=4)
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    cached.model.register_forward_hook(count)
    names = [EMBEDDING]
    for rows in ([0, 1, 2], [2, 1, 0], [0, 0, 2]):
        found, expected = cached(images[rows], names), plain(images[rows], names)
        assert torch.allclose(found.output, expected.output, rtol=1e-12)
        assert torch.allclose(found[EMBEDDING], expected[EMBEDDING], rtol=1e-12)
    assert runs == 1
    cached(images, names)
    assert runs == 2
    assert len(cached.cache) == 4
    cached(images[-4:], names)
    assert runs == 2
    cached(images[-4:], ["head"])  # not asked for so far
    assert runs == 3


def test_a_teacher_of_another_normalisation_sees_its_own(teacher: nn.Module) -> None:
    pixels = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    other = FrozenTeacher(
        teacher, mean=(0.1, 0.2), std=(0.3, 0.4), student_mean=(0.5, 0.5), student_std=(0.5, 0.6)
    ).double()

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        m, s = (torch.tensor(each, dtype=torch.float64).view(1, 2, 1, 1) for each in (mean, std))
        return (pixels - m) / s

    found = other(normalised((0.5, 0.5), (0.5, 0.6))).output
    assert torch.allclose(
        found, FrozenTeacher(teacher)(normalised((0.1, 0.2), (0.3, 0.4))).output, rtol=1e-6
    )


LEARNT = ["feature", "fitnet", "variational", "contrastive"]


@pytest.mark.parametrize("name", [*KINDS])
@pytest.mark.parametrize("online", [False, True])
def test_every_objective_trains(
    name: str, online: bool, wide: netaugfx.WideModel, teacher: nn.Module, batch: Batch
) -> None:
    """Against a teacher of other channels, and of another size of the map."""
    wide = copy.deepcopy(wide)
    outside = small(5, head=12, channels=(6, 6, 8), strides=(1, 1, 1))
    by: Any = OnlineTeacher(wide) if online else FrozenTeacher(outside)
    task = DistillTask(
        NetAugTask(wide, F.cross_entropy, alpha=0.0), by, [name], batch[0], labels=0.0
    )
    assert bool(task.own_parameters()) == (name in LEARNT)
    student, own = task.trainable_module.parameters(), task.own_parameters()
    optimizer = torch.optim.Adam([*student, *own], 1e-3)
    first = None
    for _ in range(5):
        optimizer.zero_grad()
        result = task(*batch)
        result["loss"].backward()
        optimizer.step()
        first = result[f"{name}_loss"] if first is None else first
    for parameter in task.own_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert wide.stem[0].weight.grad.abs().sum() > 0
    last = task(*batch)[f"{name}_loss"]
    # the bank changes what contrastive is measured against
    assert last < first or name == "contrastive"


@pytest.mark.parametrize("given", ["to the same", "to another", "to none"])
def test_what_is_learnt_beside_needs_an_optimiser(
    given: str, wide: netaugfx.WideModel, teacher: nn.Module, batch: Batch
) -> None:
    wide = copy.deepcopy(wide)
    task = DistillTask(
        NetAugTask(wide, F.cross_entropy), FrozenTeacher(teacher), ["fitnet"], batch[0]
    )
    own = task.own_parameters()
    optimizers = [torch.optim.SGD([*wide.parameters(), *(own if given == "to the same" else [])])]
    if given == "to another":
        optimizers.append(torch.optim.SGD(own))

    def step() -> None:
        task(*batch)["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()

    step()
    if given == "to none":
        with pytest.raises(
            InputError, match=r"\[\*wide.parameters\(\), \*task.own_parameters\(\)\]"
        ):
            step()
    else:
        step()


def test_extraction_drops_what_was_learnt_beside(wide: netaugfx.WideModel, batch: Batch) -> None:
    task = DistillTask(NetAugTask(wide, F.cross_entropy), OnlineTeacher(wide), LEARNT, batch[0])
    task(*batch)["loss"].backward()
    assert netaugfx.extract_base(wide).state_dict().keys() == small().state_dict().keys()


def test_places_are_paired_by_name(teacher: nn.Module, batch: Batch) -> None:
    places = {"blocks.0": "stem", "blocks.1": "blocks.1"}
    task = DistillTask(
        plain_task(small().eval()), FrozenTeacher(teacher), ["attention"], batch[0], places=places
    )
    model, frozen = small().eval(), copy.deepcopy(teacher).eval()
    with Watch(model, [*places]) as one, Watch(frozen, [*places.values()]) as two:
        model(batch[0])
        frozen(batch[0])
    expected = [losses.attention(one.passes[0][s], two.passes[0][t]) for s, t in places.items()]
    found = task(*batch)
    assert found["attention_loss"].item() == pytest.approx(sum(expected).item(), rel=1e-12)
    parts = found["loss"] - found["base_loss"]
    assert parts.item() == pytest.approx(1000 * sum(expected).item(), rel=1e-9)


def test_features_that_a_subnet_has_elsewhere_are_refused(batch: Batch) -> None:
    """A module that computes more than it puts out: the graph's last value is another one."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(2, 4, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            self.act(x)
            return x

    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(216, 4)).double()
    wide = netaugfx.widen(model, example_inputs=(batch[0],), verify=False)
    inner, online = NetAugTask(wide, F.cross_entropy), OnlineTeacher(wide)
    with pytest.raises(
        DistillError, match=r"'0' cannot be read in a subnet: .* Name a module inside"
    ):
        DistillTask(inner, online, ["attention"], batch[0], places={"0": "0"})
    DistillTask(inner, online, ["attention"], batch[0], places={"0.conv": "0.conv"})


def test_state_resumes_banks_generators_and_learnt_parts(
    wide: netaugfx.WideModel, teacher: nn.Module, batch: Batch
) -> None:
    def task_of(seed: int) -> DistillTask:
        scheme = build_scheme("cutmix", (0.5, 0.5), (0.5, 0.5))
        inner = NetAugTask(copy.deepcopy(wide), F.cross_entropy, seed=seed)
        names = ["kd", "contrastive", "variational"]
        return DistillTask(inner, FrozenTeacher(teacher), names, batch[0], scheme=scheme, seed=seed)

    one = task_of(0)
    one(*batch)
    state = {name: value.clone() for name, value in one.get_task_state().items()}
    weights = copy.deepcopy(one.trainable_module.state_dict())
    assert all(isinstance(value, Tensor) for value in state.values())
    expected = [one(*batch) for _ in range(2)]
    two = task_of(1)
    two.load_task_state(state)
    two.trainable_module.load_state_dict(weights)
    for each in expected:
        found = two(*batch)
        for name in each:
            assert torch.equal(found[name], each[name]), name
    with pytest.raises(InputError, match="not one of DistillTask"):
        two.load_task_state({})


def test_the_memory_bank_is_bounded_and_first_in_first_out() -> None:
    torch.manual_seed(0)
    contrast = Contrast((2, 3), (2, 5), width=4, length=5)
    rows = []
    for _ in range(4):
        student, teacher = torch.randn(2, 3), torch.randn(2, 5)
        before = contrast.student_bank.clone()
        contrast(student, teacher)
        assert torch.equal(contrast.student_bank, before)  # a forward leaves it alone
        contrast.remember(student, teacher)
        rows += list(contrast.project(student, teacher)[0].detach())
    assert contrast.student_bank.shape == contrast.teacher_bank.shape == (5, 4)
    newest = torch.stack(rows[-5:])
    assert torch.equal(contrast.student_bank.sort(0).values, newest.sort(0).values)
    assert int(contrast.next) == 8 % 5
    scale = contrast.log_scale.clone()
    contrast.remember(torch.randn(9, 3), torch.randn(9, 5))  # more than it holds
    assert torch.equal(contrast.log_scale, scale)


@pytest.fixture
def one_process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("scheme", [None, build_scheme("cutmix", (0.5, 0.5), (0.5, 0.5))])
def test_distributed_data_parallel(
    online: bool, scheme: Any, wide: netaugfx.WideModel, teacher: nn.Module, batch: Batch
) -> None:
    def task_of(student: netaugfx.WideModel) -> DistillTask:
        by: Any = OnlineTeacher(student) if online else FrozenTeacher(teacher)
        inner = NetAugTask(student, F.cross_entropy)
        return DistillTask(inner, by, ["kd", "rkd"], batch[0], scheme=scheme)

    alone, spread = task_of(copy.deepcopy(wide)), task_of(wide).prepare_distributed()
    for _ in range(3):
        one, two = alone(*batch), spread(*batch)
        one["loss"].backward()
        two["loss"].backward()
        for name in one:
            assert torch.allclose(one[name], two[name], rtol=1e-10), name
        assert_close(gradients(wide), gradients(alone.inner.wide))


@pytest.mark.usefixtures("one_process_group")
def test_the_sandwich_rule_in_ranks(wide: netaugfx.WideModel, batch: Batch) -> None:
    alone = SandwichTask(copy.deepcopy(wide), F.cross_entropy, samples=3)
    options = {"find_unused_parameters": True, "forward_sync_buffers": False}
    spread = SandwichTask(
        nn.parallel.DistributedDataParallel(wide, **options), F.cross_entropy, samples=3
    )
    for _ in range(3):
        alone(*batch)["loss"].backward()
        spread(*batch)["loss"].backward()
        assert_close(gradients(wide), gradients(alone.teacher.wide))


def test_what_ranks_cannot_train(
    wide: netaugfx.WideModel, teacher: nn.Module, batch: Batch
) -> None:
    learns = DistillTask(NetAugTask(wide), OnlineTeacher(wide), ["fitnet"], batch[0])
    with pytest.raises(DistillError, match="learnt parts train in one process"):
        learns.prepare_distributed()
    three = DistillTask(NetAugTask(wide, samples=3), FrozenTeacher(teacher), ["kd"], batch[0])
    with pytest.raises(DistillError, match="Several sampled networks per step"):
        three.prepare_distributed()


def test_sandwich(wide: netaugfx.WideModel, batch: Batch) -> None:
    images, labels = batch
    wide.eval()
    task = SandwichTask(copy.deepcopy(wide), F.cross_entropy, samples=2, seed=7)
    result = task(images, labels)
    result["loss"].backward()
    generator = torch.Generator().manual_seed(7)
    sampled = []
    for _ in range(2):
        sampled.append(wide.sample(generator))
        torch.randint(2**62, (), generator=generator)  # the seed of the pass
    widest = wide.at(wide.max_config)(images)
    soft = widest.detach().softmax(1)
    others = [wide(images), *(wide.at(config)(images) for config in sampled)]
    each = [(soft * (soft.log() - out.log_softmax(1))).sum(1).mean() for out in others]
    total = F.cross_entropy(widest, labels) + sum(each)
    total.backward()
    assert result["loss"].item() == pytest.approx(total.item(), rel=1e-12)
    assert result["augmented_loss"].item() == pytest.approx(sum(each[1:]).item() / 2, rel=1e-12)
    assert torch.equal(result["output"], others[0])
    assert_close(gradients(task.trainable_module), gradients(wide))
    other = SandwichTask(copy.deepcopy(wide), F.cross_entropy, seed=1)
    other.load_task_state(task.get_task_state())
    assert torch.equal(other.generator.get_state(), task.generator.get_state())


def test_the_sandwich_rule_with_one_kind(wide: netaugfx.WideModel, batch: Batch) -> None:
    task = SandwichTask(wide, F.cross_entropy, kinds="stream")
    assert task.kinds == ("stream",)
    assert torch.isfinite(task(*batch)["loss"])
    with pytest.raises(
        PlanError, match=r"No width has the kind 'steam'; kinds are stream and inner"
    ):
        SandwichTask(wide, F.cross_entropy, kinds=("steam",))


def test_bad_input(wide: netaugfx.WideModel, teacher: nn.Module, batch: Batch) -> None:
    images, labels = batch
    frozen, inner = FrozenTeacher(teacher), plain_task(small())

    def refused(match: str, objectives: Any = ("kd",), by: Any = frozen, **options: Any) -> None:
        task = options.pop("inner", inner)
        with pytest.raises(DistillError, match=match):
            DistillTask(task, by, objectives, images, **options)

    torch.manual_seed(0)
    seven = tiny_mobilenet(7, 2, channels=(4, 4), strides=(1, 1), head=8).double()
    refused("The teacher has 7 classes, the student 4", by=FrozenTeacher(seven))
    refused(r"no objective 'rdk'\. Near: rkd", ["rdk"])
    refused("No objective came", [])
    refused(
        r"Student: .* no features named 'block.1'\. Near: blocks.1",
        ["rkd"],
        places={"block.1": "head"},
    )
    refused(
        r"Teacher: .* no features named 'heads'\. Near: head", ["rkd"], places={"head": "heads"}
    )
    refused(
        r"attention needs feature maps .* 'flatten' of the teacher is \(6, 12\)",
        ["attention"],
        places={"head": "flatten"},
    )
    refused("A weight came for 'rkd'", weights={"rkd": 1.0})
    refused("weight of kd must be .* got -1", weights={"kd": -1.0})
    refused("temperature must be above 0, got 0", temperature=0.0)
    cutmix = build_scheme("cutmix", (0.5, 0.5), (0.5, 0.5))
    refused("add kd to the objectives", ["rkd"], scheme=cutmix)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).double()
    refused(
        "attention compares a feature map, and the student has none",
        ["attention"],
        inner=plain_task(flat),
    )
    netaug = NetAugTask(wide, F.cross_entropy)
    sampled = OnlineTeacher(wide, "sampled")
    refused("fitnet learns the teacher's channels", ["fitnet"], sampled, inner=netaug)
    refused("On a second view the widest teaches", by=sampled, inner=netaug, scheme=cutmix)
    refused("A sampled subnet teaches within NetAug", by=sampled, inner=plain_task(wide))
    with pytest.raises(InputError, match="belongs to another WideModel"):
        DistillTask(NetAugTask(copy.deepcopy(wide)), sampled, ["kd"], images)
    with pytest.raises(InputError, match="needs a widened student, got TinyMobileNet"):
        OnlineTeacher(small())
    with pytest.raises(DistillError, match="widest or sampled, not 'wide'"):
        OnlineTeacher(wide, "wide")
    still = netaugfx.widen(small(), factor=1.0, example_inputs=(images,))
    with pytest.raises(DistillError, match="no wider subnet to teach"):
        OnlineTeacher(still)
    with pytest.raises(DistillError, match=r"rkd_angle compares angles .* at least 3, got 2"):
        check_batch(["kd", "rkd"], 2)
    task = DistillTask(inner, frozen, ["rkd"], images)
    with pytest.raises(DistillError, match="rkd_angle needs a batch of at least 3, got 2"):
        task(images[:2], labels[:2])
    assert expand(["rkd", "kd", "rkd_angle"]) == ("rkd_distance", "rkd_angle", "kd")
