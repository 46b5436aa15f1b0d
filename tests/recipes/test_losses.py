"""Each distillation loss against its formula, written out with loops and scalars in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recipes import losses
from recipes.errors import DistillError

MAPS = ("attention", "feature", "fitnet", "similarity", "variational")
ANY_WIDTH = ("correlation", "probabilistic", "rkd_angle", "rkd_distance", "similarity")
SAME_WIDTH = ("contrastive", "feature", "fitnet", "soft", "variational")


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def huber(a: float, b: float) -> float:
    d = abs(a - b)
    return d * d / 2 if d < 1 else d - 0.5


def distance(x: list[float], y: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit(x: list[float]) -> list[float]:
    length = math.sqrt(dot(x, x))
    return [a / length for a in x]


def softmax(x: list[float], t: float = 1.0) -> list[float]:
    exponentials = [math.exp(a / t) for a in x]
    return [a / sum(exponentials) for a in exponentials]


def close(found: Tensor, expected: float) -> None:
    assert found.shape == ()
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def kl_by_hand(student: Tensor, teacher: Tensor, t: float) -> float:
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    each = [
        sum(
            p * math.log(p / q)
            for p, q in zip(softmax(teacher_row, t), softmax(student_row, t), strict=True)
        )
        for student_row, teacher_row in rows
    ]
    return t * t * sum(each) / len(each)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(("t", "alpha"), [(4.0, 0.9), (1.0, 0.0), (2.5, 1.0)])
def test_kd(n: int, t: float, alpha: float) -> None:
    student, teacher = 3 * normal(n, 5), 3 * normal(n, 5, seed=1)
    labels = torch.tensor([0, 3, 4, 1][:n])
    rows = student.tolist()
    ce = sum(-math.log(softmax(row)[k]) for row, k in zip(rows, labels.tolist(), strict=True)) / n
    expected = (1 - alpha) * ce + alpha * kl_by_hand(student, teacher, t)
    close(losses.kd(student, teacher, labels, temperature=t, alpha=alpha), expected)
    one_hot = F.one_hot(labels, 5).double()
    close(losses.kd(student, teacher, one_hot, temperature=t, alpha=alpha), expected)
    close(losses.soft(student, teacher, temperature=t), kl_by_hand(student, teacher, t))


def test_kd_defaults_are_temperature_4_and_alpha_0_9() -> None:
    student, teacher, labels = normal(4, 5), normal(4, 5, seed=1), torch.tensor([0, 1, 2, 3])
    expected = losses.kd(student, teacher, labels, temperature=4.0, alpha=0.9)
    assert torch.equal(losses.kd(student, teacher, labels), expected)


def test_entropy() -> None:
    logits = 3 * normal(4, 5)
    for row, found in zip(logits.tolist(), losses.entropy(logits).tolist(), strict=True):
        assert found == pytest.approx(-sum(p * math.log(p) for p in softmax(row)), rel=1e-12)
    far = losses.entropy(torch.tensor([[60000.0, -60000.0]], dtype=torch.float16))
    assert far.tolist() == [0.0]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_rkd_distance(n: int) -> None:
    student, teacher = normal(n, 3), normal(n, 7, seed=1)

    def relation(x: list[list[float]]) -> list[list[float]]:
        pairs = [distance(x[i], x[j]) for i in range(n) for j in range(n) if i != j]
        mu = sum(pairs) / len(pairs) if pairs else 1.0
        return [[distance(x[i], x[j]) / mu for j in range(n)] for i in range(n)]

    s, t = relation(student.tolist()), relation(teacher.tolist())
    expected = sum(huber(s[i][j], t[i][j]) for i in range(n) for j in range(n)) / n**2
    close(losses.rkd_distance(student, teacher), expected)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_rkd_angle(n: int) -> None:
    student, teacher = normal(n, 3), normal(n, 7, seed=1)

    def angle(x: list[list[float]], i: int, j: int, k: int) -> float:
        if j in (i, k):
            return 0.0
        one = unit([a - b for a, b in zip(x[i], x[j], strict=True)])
        two = unit([a - b for a, b in zip(x[k], x[j], strict=True)])
        return dot(one, two)

    s, t, r = student.tolist(), teacher.tolist(), range(n)
    each = [huber(angle(s, i, j, k), angle(t, i, j, k)) for i in r for j in r for k in r]
    close(losses.rkd_angle(student, teacher), sum(each) / n**3)


def test_rkd_against_a_case_worked_out_on_paper() -> None:
    """A right angle with legs of 1, against three points on a line one apart."""
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.float64)
    # distances 1, 1, sqrt 2, mean (2 + sqrt 2) / 3; against 1, 1, 2, mean 4 / 3
    mu = (2 + math.sqrt(2)) / 3
    small, large = (1 / mu - 3 / 4) ** 2 / 2, (math.sqrt(2) / mu - 3 / 2) ** 2 / 2
    close(losses.rkd_distance(student, teacher), 2 * (2 * small + large) / 9)
    # angles at the corner 0 against -1, at the two ends 1 / sqrt 2 against 1; each counts twice
    corner, end = 0.5, (1 - 1 / math.sqrt(2)) ** 2 / 2
    close(losses.rkd_angle(student, teacher), 2 * (corner + 2 * end) / 27)


@pytest.mark.parametrize("n", [1, 3])
def test_feature(n: int) -> None:
    student, teacher = normal(n, 2, 3, 2), normal(n, 2, 3, 2, seed=1)
    rows = zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True)
    each = [sum(abs(a - b) for a, b in zip(unit(s), unit(t), strict=True)) for s, t in rows]
    close(losses.feature(student, teacher), sum(each) / n)


@pytest.mark.parametrize("n", [1, 3])
def test_fitnet(n: int) -> None:
    student, teacher = normal(n, 2, 3, 2), normal(n, 2, 3, 2, seed=1)
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    close(losses.fitnet(student, teacher), sum((a - b) ** 2 for a, b in pairs) / (12 * n))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("size", [2, 4])
def test_attention(n: int, size: int) -> None:
    student, teacher = normal(n, 3, size, size), normal(n, 5, 2, 2, seed=1)

    def q(maps: list[list[list[float]]]) -> list[float]:
        """Of a sample: the channels' mean square at each of 2 x 2 places, of length 1."""
        step = len(maps[0]) // 2
        means = [
            [
                sum(channel[a * step + i][b * step + j] for i in range(step) for j in range(step))
                / step**2
                for a in range(2)
                for b in range(2)
            ]
            for channel in maps
        ]
        return unit([sum(channel[place] ** 2 for channel in means) for place in range(4)])

    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    each = [distance(q(s), q(t)) ** 2 for s, t in rows]
    close(losses.attention(student, teacher), sum(each) / (4 * n))
    close(losses.attention(teacher, student), sum(each) / (4 * n))


@pytest.mark.parametrize("n", [1, 3])
def test_variational(n: int) -> None:
    student, teacher = normal(n, 2, 3, 3), normal(n, 2, 3, 3, seed=1)
    variance = [0.5, 3.0]
    s, t = student.tolist(), teacher.tolist()
    each = [
        ((t[i][c][y][x] - s[i][c][y][x]) ** 2 / variance[c] + math.log(variance[c])) / 2
        for i in range(n)
        for c in range(2)
        for y in range(3)
        for x in range(3)
    ]
    found = losses.variational(student, teacher, torch.tensor(variance, dtype=torch.float64))
    close(found, sum(each) / len(each))
    flat = losses.variational(student[:, :, 0, 0], teacher[:, :, 0, 0], 2.0)
    expected = [
        ((t[i][c][0][0] - s[i][c][0][0]) ** 2 / 2 + math.log(2)) / 2
        for i in range(n)
        for c in (0, 1)
    ]
    close(flat, sum(expected) / len(expected))


@pytest.mark.parametrize("n", [1, 4])
def test_similarity(n: int) -> None:
    student, teacher = normal(n, 3, 2, 2), normal(n, 7, seed=1)

    def rows(x: list[list[float]]) -> list[list[float]]:
        return [unit([dot(a, b) for b in x]) for a in x]

    s, t = rows(student.flatten(1).tolist()), rows(teacher.tolist())
    expected = sum((s[i][j] - t[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2
    close(losses.similarity(student, teacher), expected)


@pytest.mark.parametrize("n", [1, 4])
def test_correlation(n: int) -> None:
    student, teacher = normal(n, 3), normal(n, 7, seed=1)

    def kernel(x: list[float], y: list[float]) -> float:
        c = dot(unit(x), unit(y))
        return math.exp(-0.8) * (1 + 0.8 * c + 0.8**2 / 2 * c * c)

    s, t = student.tolist(), teacher.tolist()
    each = [(kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i in range(n) for j in range(n)]
    close(losses.correlation(student, teacher), sum(each) / n**2)
    # the series is that of the Gaussian: with many terms, samples of length 1 give exp(-g |x - y|^2)
    x, y = (
        torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64),
        torch.eye(2, dtype=torch.float64),
    )
    gaussian = (math.exp(-0.4 * 0.8) - math.exp(-0.4 * 2)) ** 2 * 2 / 4
    close(losses.correlation(x, y, order=30), gaussian)


@pytest.mark.parametrize("n", [1, 4])
def test_probabilistic(n: int) -> None:
    student, teacher = normal(n, 3), normal(n, 7, seed=1)

    def p(x: list[list[float]]) -> list[list[float]]:
        kernel = [[(dot(unit(a), unit(b)) + 1) / 2 for b in x] for a in x]
        return [[each / sum(row) for each in row] for row in kernel]

    q_rows, p_rows = p(student.tolist()), p(teacher.tolist())
    each = [
        p_rows[i][j] * math.log((p_rows[i][j] + 1e-7) / (q_rows[i][j] + 1e-7))
        for i in range(n)
        for j in range(n)
    ]
    close(losses.probabilistic(student, teacher), sum(each) / n**2)


@pytest.mark.parametrize("n", [1, 3])
def test_contrastive(n: int) -> None:
    student, teacher = normal(n, 4), normal(n, 4, seed=1)
    student_bank, teacher_bank = (F.normalize(normal(6, 4, seed=seed), dim=1) for seed in (2, 3))
    z = (1.5, 0.7)

    def h(anchor: list[float], other: list[float], scale: float) -> float:
        score = math.exp(dot(unit(anchor), unit(other)) / 0.07)
        return score / (score + 6 * scale)

    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total -= math.log(h(s, t, z[0])) + math.log(h(t, s, z[1]))
        total -= sum(math.log(1 - h(s, each, z[0])) for each in teacher_bank.tolist())
        total -= sum(math.log(1 - h(t, each, z[1])) for each in student_bank.tolist())
    found = losses.contrastive(
        student, teacher, student_bank, teacher_bank, log_scale=tuple(map(math.log, z))
    )
    close(found, total / n)


def test_contrastive_without_a_bank_uses_the_batch() -> None:
    student, teacher = normal(3, 4), normal(3, 4, seed=1)
    s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    each = [
        losses.contrastive(s[i : i + 1], t[i : i + 1], s[others], t[others])
        for i in range(3)
        for others in [[j for j in range(3) if j != i]]
    ]
    close(losses.contrastive(student, teacher), float(sum(each)) / 3)
    close(losses.contrastive(student[:1], teacher[:1]), 0.0)


def arguments(name: str, n: int) -> tuple[Tensor, Tensor]:
    if name in MAPS:
        return normal(n, 3, 4, 4), normal(n, 3, 4, 4, seed=1)
    return normal(n, 6), normal(n, 6, seed=1)


EVERY = sorted({*MAPS, *ANY_WIDTH, *SAME_WIDTH})


def test_every_loss_is_here() -> None:
    assert {*EVERY, "kd", "entropy"} == set(losses.__all__)


def loss_of(name: str) -> Callable[..., Tensor]:
    return getattr(losses, name)


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    student, teacher = arguments(name, 4)
    for each in (student, teacher):
        each.requires_grad_()
    assert torch.autograd.gradcheck(loss_of(name), (student, teacher))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n", [1, 2])
def test_a_batch_of_one_or_two_gives_a_finite_scalar(name: str, n: int) -> None:
    student, teacher = arguments(name, n)
    student.requires_grad_()
    loss = loss_of(name)(student, teacher)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted({*EVERY} - {"contrastive", "variational"}))
def test_a_student_that_equals_its_teacher_has_no_loss(name: str) -> None:
    student, _ = arguments(name, 5)
    student.requires_grad_()
    loss = loss_of(name)(student, student.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-14)
    assert student.grad.abs().max() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 2e4])
@pytest.mark.parametrize("name", EVERY)
def test_half_precision_neither_overflows_nor_differs(
    name: str, scale: float, dtype: torch.dtype
) -> None:
    """Features as large as float16 holds have squares far beyond it; values are float32's."""
    student, teacher = ((scale * each).clamp(-6e4, 6e4).to(dtype) for each in arguments(name, 4))
    student.requires_grad_()
    loss = loss_of(name)(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    exact = loss_of(name)(student.double(), teacher.double()).item()
    assert loss.item() == pytest.approx(exact, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_autocast_does_not_reach_the_losses(name: str) -> None:
    student, teacher = (each.float() for each in arguments(name, 4))
    expected = loss_of(name)(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(name)(student, teacher), expected)


@pytest.mark.parametrize("name", EVERY)
def test_dead_features_have_finite_gradients(name: str) -> None:
    """All zero, as after a ReLU that never fires; two samples alike."""
    student, teacher = arguments(name, 4)
    student[0], student[2] = 0, student[1]
    student.requires_grad_()
    loss = loss_of(name)(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.abs().max() < 1e4


@pytest.mark.parametrize("name", ANY_WIDTH)
def test_widths_may_differ(name: str) -> None:
    loss_of(name)(normal(4, 3), normal(4, 9))
    with pytest.raises(DistillError, match=f"{name} .* same samples: 4 came .* 3 from the teacher"):
        loss_of(name)(normal(4, 3), normal(3, 3))


@pytest.mark.parametrize("name", SAME_WIDTH)
def test_shapes_must_agree(name: str) -> None:
    with pytest.raises(DistillError, match=rf"{name} .* \(4, 3\), the teacher's \(4, 9\)"):
        loss_of(name)(normal(4, 3), normal(4, 9))


def test_attention_needs_maps() -> None:
    with pytest.raises(DistillError, match=r"attention needs .* the student's .* \(4, 3\)"):
        losses.attention(normal(4, 3), normal(4, 3, 2, 2))
