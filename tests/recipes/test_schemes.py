"""The nine schemes by what they may do to an image, and T. stddev against its definition."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor, nn

from recipes import augment
from recipes.errors import DistillError
from recipes.losses import entropy
from recipes.schemes import (
    SCHEMES,
    Scheme,
    build_scheme,
    interval_of,
    pick,
    stddev_of,
    teacher_means,
    teacher_stddev,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def scheme(name: str) -> Scheme:
    return build_scheme(name, MEAN, STD)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int, size: int = 8) -> Tensor:
    """Normalised images of 8-bit pixels."""
    values = torch.randint(256, (n, 3, size, size), generator=seeded(9)) / 255
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    return (values - mean) / std


def judge(images: Tensor) -> Tensor:
    """Logits that depend on the image."""
    return 5 * images.flatten(2).mean(2)


def test_there_are_the_papers_nine() -> None:
    assert len(SCHEMES) == 9
    with pytest.raises(DistillError, match=r"no augmentation 'cutmx'\. Near: cutmix"):
        scheme("cutmx")


@pytest.mark.parametrize("name", [*SCHEMES])
def test_a_scheme_follows_its_generator_alone(name: str) -> None:
    images = pixels(6)
    kept = images.clone()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = scheme(name)(images, seeded(1), judge)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(scheme(name)(images, seeded(1), judge), one)
    assert torch.equal(images, kept)
    assert one.shape == images.shape
    assert one.dtype == images.dtype
    assert one.isfinite().all()
    if name == "identity":
        assert torch.equal(one, images)
        one[0] = 0
        assert torch.equal(images, kept)
    else:
        assert not torch.equal(one, images)
        assert not torch.equal(scheme(name)(images, seeded(2), judge), one)


def test_flip_mirrors_each_image_by_itself() -> None:
    images = pixels(32)
    found = scheme("flip")(images, seeded())
    mirrored = [torch.equal(one, two.flip(-1)) for one, two in zip(found, images, strict=True)]
    same = [torch.equal(one, two) for one, two in zip(found, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 8 < sum(mirrored) < 24


def test_crop_flip_is_a_window_of_the_padded_image() -> None:
    images = pixels(16)
    found = scheme("crop-flip")(images, seeded())
    seen = set()
    for one, image in zip(found, images, strict=True):
        padded = nn.functional.pad(image, (1, 1, 1, 1))  # an eighth of 8 pixels
        windows = {
            (y, x, flipped): (padded.flip(-1) if flipped else padded)[:, y : y + 8, x : x + 8]
            for y in range(3)
            for x in range(3)
            for flipped in (False, True)
        }
        places = [place for place, window in windows.items() if torch.equal(one, window)]
        assert places
        seen.add(places[0])
    assert len(seen) > 5


def test_cutout_sets_a_square_of_half_the_side_to_the_mean_colour() -> None:
    images = pixels(16)
    found = scheme("cutout")(images, seeded())
    corners = set()
    for one, image in zip(found, images, strict=True):
        changed = (one != image).any(0)
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        assert (len(rows), len(columns)) == (4, 4)
        box = one[:, rows[0] : rows[0] + 4, columns[0] : columns[0] + 4]
        assert torch.equal(box, torch.zeros(3, 4, 4))
        assert torch.equal(one[:, ~changed], image[:, ~changed])
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 5


@pytest.mark.parametrize("channels", [1, 3])
def test_autoaugment_stays_among_the_pixels(channels: int) -> None:
    chosen = Scheme("autoaugment", MEAN[:channels], STD[:channels])
    images = pixels(24)[:, :channels]
    found = chosen(images, seeded())
    mean, std = (torch.tensor(each[:channels]).view(1, -1, 1, 1) for each in (MEAN, STD))
    values = (found * std + mean) * 255
    assert torch.allclose(values, values.round(), atol=1e-2)
    assert values.min() > -0.1
    assert values.max() < 255.1
    changed = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(found, images, strict=True)]
    assert sum(changed) > 8
    with pytest.raises(DistillError, match="takes 1 or 3 channels, the images have 2"):
        Scheme("autoaugment", (0.5, 0.5), (0.5, 0.5))(images[:, [0, 0]], seeded())


def test_mixup_is_a_weighted_mean_of_two_images() -> None:
    """Each image is 1 at a place of its own, so the weights can be read off."""
    images = torch.eye(9).view(9, 1, 3, 3)
    shares = []
    for seed in range(20):
        found = scheme("mixup")(images, seeded(seed)).flatten(1)
        weights = found.sort(1, descending=True).values
        assert torch.allclose(weights[:, :2].sum(1), torch.ones(9))
        assert torch.equal(weights[:, 2:], torch.zeros(9, 7))
        assert torch.allclose(weights[:, 0], weights[:1, 0].expand(9))  # one draw for the batch
        assert torch.allclose(found.sum(0), torch.ones(9))  # every image is used twice
        shares.append(weights[0, 0].item())
    assert max(shares) - min(shares) > 0.3


def test_cutmix_is_a_box_of_another_image() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    areas = []
    for seed in range(20):
        found = scheme("cutmix")(images, seeded(seed))[:, 0]
        for one in found:
            values, counts = one.unique(return_counts=True)
            assert len(values) <= 2
            if len(values) == 2:
                corner = one != one[0, 0]
                inside = corner if corner.sum() == counts[values != one[0, 0]][0] else ~corner
                boxes = [inside, ~inside]
                assert any(
                    int(b.any(0).sum() * b.any(1).sum()) == int(b.sum()) for b in boxes
                )  # a rectangle
                areas.append(min(counts).item() / 64)
    assert len(set(areas)) > 5


def test_cutmixpick_keeps_the_half_of_highest_entropy() -> None:
    images = pixels(8)
    generator = seeded(3)
    pool = torch.cat([scheme("cutmix")(images, generator) for _ in range(2)])
    found = scheme("cutmixpick")(images, seeded(3), judge)
    order = sorted(range(16), key=lambda i: -entropy(judge(pool))[i].item())[:8]
    assert torch.equal(found, pool[sorted(order)])
    assert entropy(judge(found)).min() >= entropy(judge(pool)).median()
    assert torch.equal(pick(pool, 8, judge), found)
    with pytest.raises(DistillError, match="picks by the student's entropy: give predict"):
        scheme("cutmixpick-student")(images, seeded())


@pytest.mark.parametrize("name", ["mixup", "cutmix", "cutmixpick"])
def test_one_image_cannot_be_mixed(name: str) -> None:
    with pytest.raises(DistillError, match="at least 2, got 1"):
        scheme(name)(pixels(1), seeded(), judge)


class Teacher(nn.Module):
    """With dropout, so that its mode is seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Sequential(nn.Dropout(0.9), nn.Flatten(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.head(x)


def test_teacher_stddev_by_hand() -> None:
    """Batches of 4 and K = 12: a repeat takes 6 images, and their copies."""
    teacher = Teacher().train()
    loader = [(pixels(8, 2)[i : i + 4], torch.zeros(4)) for i in (0, 4)]
    chosen = scheme("identity")
    means = teacher_means(teacher, loader, chosen, K=12, repeats=3)
    assert all(module.training for module in teacher.modules())
    teacher.eval()
    # the rest of a batch that is not needed is dropped; the loader starts again where it ends
    used = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    probabilities = teacher(pixels(8, 2)).softmax(1).double()
    for row, indices in zip(means, used, strict=True):
        assert torch.allclose(row, probabilities[indices].mean(0), atol=1e-6)
    assert stddev_of(means) == pytest.approx(0.0, abs=1e-7)

    cutmix = scheme("cutmix")
    found = teacher_stddev(teacher, loader, cutmix, K=8, repeats=4, generator=seeded(2))
    generator, rows = seeded(2), []
    for i in (0, 4, 0, 4):
        x = pixels(8, 2)[i : i + 4]
        both = torch.cat([x, cutmix(x, generator)])
        rows.append(teacher(both).softmax(1).tolist())
    u = [[statistics.mean(sample[c] for sample in each) for c in range(3)] for each in rows]
    per_class = [statistics.stdev(each[c] for each in u) for c in range(3)]
    assert found == pytest.approx(statistics.mean(per_class), rel=1e-5)
    named = augment.teacher_stddev(teacher, loader, "cutmix", K=8, repeats=4, generator=seeded(2))
    assert named == found


def test_teacher_stddev_shrinks_with_the_samples() -> None:
    """Of independent samples it is that of a mean: half for four times as many."""
    generator = seeded(0)

    class Stream:
        def __iter__(self):
            for _ in range(10):
                yield torch.randn(64, 3, 2, 2, generator=generator), None

    teacher, chosen = Teacher().eval(), scheme("identity")
    small, large = (teacher_stddev(teacher, Stream(), chosen, K=k, repeats=200) for k in (32, 128))
    assert small / large == pytest.approx(2.0, rel=0.15)


def test_the_interval_holds_the_truth() -> None:
    """Of 60 draws of 40 repeats with a known deviation of 2, about 57 intervals hold it."""
    held = 0
    for seed in range(60):
        means = 2 * torch.randn(40, 4, generator=seeded(seed), dtype=torch.float64)
        low, high = interval_of(means, draws=300, seed=seed)
        assert low < stddev_of(means) < high
        held += low < 2 < high
    assert held >= 50


def test_bad_input() -> None:
    teacher, loader = Teacher(), [(pixels(4, 2), None)]
    for k in (0, 7):
        with pytest.raises(DistillError, match=f"must be even and at least 2, got {k}"):
            teacher_means(teacher, loader, scheme("flip"), K=k)
    with pytest.raises(DistillError, match="at least 2 repeats, got 1"):
        teacher_means(teacher, loader, scheme("flip"), repeats=1)
    with pytest.raises(DistillError, match="picks by the student's entropy: give a student"):
        teacher_means(teacher, loader, scheme("cutmixpick-student"))
    for empty in ([], [(pixels(1, 2), None)] * 3):
        with pytest.raises(DistillError, match="no batch that cutmix can work on"):
            teacher_means(teacher, empty, scheme("cutmix"))
    odd = [(pixels(4, 2), None), (pixels(1, 2), None)]  # one image is left to take after a batch
    assert teacher_means(teacher, odd, scheme("mixup"), K=10, repeats=2).shape == (2, 3)
    assert math.isfinite(
        teacher_stddev(teacher, loader, scheme("cutmixpick-student"), 4, 2, student=Teacher())
    )
