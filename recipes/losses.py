"""Distillation losses: pure functions, the student first, the teacher second, a scalar out.

Each works in float32 at least, also under autocast: squares of half-precision features overflow.
None detaches the teacher: whether it learns is the caller's choice. The parts of a loss that are
learnt (regressors, variances, projections) lie in recipes/adapters.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.errors import DistillError

__all__ = [
    "attention",
    "contrastive",
    "correlation",
    "entropy",
    "feature",
    "fitnet",
    "kd",
    "probabilistic",
    "rkd_angle",
    "rkd_distance",
    "similarity",
    "soft",
    "variational",
]


def _in_full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give `loss` float32 for float16 and bfloat16, and keep autocast out of it."""

    def raised(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @functools.wraps(loss)
    def in_full_precision(student: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            kwargs = {name: raised(value) for name, value in kwargs.items()}
            return loss(raised(student), *map(raised, args), **kwargs)

    return in_full_precision


def _unit(vectors: Tensor, dim: int = 1) -> Tensor:
    """Vectors of length 1; one of length 0 stays so and, having no direction, gets no gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    none = norm == 0
    return torch.where(none, 0, vectors / torch.where(none, 1, norm))


def _same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise DistillError(
            f"{name} compares entry with entry: the student's features are "
            f"{tuple(student.shape)}, the teacher's {tuple(teacher.shape)}. "
            "Adapt one to the other first (recipes/adapters.py)."
        )


def _same_batch(name: str, student: Tensor, teacher: Tensor) -> None:
    if len(student) != len(teacher):
        raise DistillError(
            f"{name} compares the same samples: {len(student)} came from the student, "
            f"{len(teacher)} from the teacher."
        )


# ------------------------------------------------------------------------------------------- logits


@_in_full_precision
def soft(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """t^2 KL(p_t / t, p_s / t): how far the student's softened output is from the teacher's.

    Args:
        student_logits: (N, classes).
        teacher_logits: likewise.
        temperature: t, above 0; t^2 keeps the gradient's size.

    Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015,
    section 2.
    """
    _same_shape("soft", student_logits, teacher_logits)
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@_in_full_precision
def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
) -> Tensor:
    """(1 - a) CE(y, p_s) + a t^2 KL(p_t / t, p_s / t), a mean over the batch.

    Args:
        student_logits: (N, classes).
        teacher_logits: likewise.
        target: labels (N,), or probabilities (N, classes).
        temperature: t.
        alpha: a, between 0 and 1.

    Source: as `soft`; a = 0.9 and t = 4 as in Y. Tian, D. Krishnan, P. Isola, "Contrastive
    Representation Distillation", ICLR 2020, section 4.
    """
    labels = F.cross_entropy(student_logits, target)
    return (1 - alpha) * labels + alpha * soft(
        student_logits, teacher_logits, temperature=temperature
    )


def entropy(logits: Tensor) -> Tensor:
    """The entropy in nats of each softmax output: (N, classes) -> (N,)."""
    log_p = F.log_softmax(logits.float() if logits.dtype.itemsize < 4 else logits, dim=1)
    return -(log_p.exp() * log_p).sum(1)


# ------------------------------------------------------------------------------------- feature maps


@_in_full_precision
def feature(student: Tensor, teacher: Tensor) -> Tensor:
    """|| T / |T|_2 - r(S) / |r(S)|_2 ||_1 of each sample's whole map, a mean over the batch.

    Args:
        student: r(S), after the regressor, of the teacher's shape.
        teacher: (N, C, H, W) or (N, D).

    Source: S. Park, K. Yoo, N. Kwak, "On the Orthogonality of Knowledge Distillation with Other
    Techniques", 2020, equation 2.
    """
    _same_shape("feature", student, teacher)
    student = _unit(student.flatten(1))
    teacher = _unit(teacher.flatten(1))
    return (student - teacher).abs().sum(1).mean()


@_in_full_precision
def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of the hint T and the regressed guided map r(S).

    Args:
        student: r(S), after the regressor, of the teacher's shape.
        teacher: (N, C, H, W) or (N, D).

    Source: A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3.
    Deviation: a mean over all entries instead of half their sum.
    """
    _same_shape("fitnet", student, teacher)
    return F.mse_loss(student, teacher)


@_in_full_precision
def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of the L2-normalised attention maps Q = mean_c |A_c|^2.

    The larger map is averaged down to the smaller one.

    Args:
        student: (N, C, H, W); C, H and W may differ.
        teacher: likewise.

    Source: S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention", ICLR 2017, equation
    2, p = 2, reduced as in the authors' code.
    """
    _same_batch("attention", student, teacher)
    for whose, each in {"student": student, "teacher": teacher}.items():
        if each.ndim != 4:
            raise DistillError(
                f"attention needs feature maps (N, C, H, W), the {whose}'s features are "
                f"{tuple(each.shape)}. Name an earlier place."
            )
    size = tuple(map(min, student.shape[2:], teacher.shape[2:]))

    def maps(features: Tensor) -> Tensor:
        if tuple(features.shape[2:]) != size:
            features = F.adaptive_avg_pool2d(features, size)
        return _unit(features.square().mean(1).flatten(1))

    return (maps(student) - maps(teacher)).square().mean()


@_in_full_precision
def variational(student: Tensor, teacher: Tensor, variance: Tensor | float = 1.0) -> Tensor:
    """-log q(t | s) of a Gaussian with mean mu(s) and a variance per channel, but for a constant.

    mean of ((t - mu)^2 / variance + log variance) / 2 over all entries

    Args:
        student: mu(s), the predicted mean, of the teacher's shape.
        teacher: t, (N, C, H, W) or (N, C).
        variance: (C,), or one number.

    Source: S. Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR
    2019, equation 5, reduced as in the authors' code.
    """
    _same_shape("variational", student, teacher)
    variance = torch.as_tensor(variance, dtype=student.dtype, device=student.device)
    if variance.ndim:
        variance = variance.view(1, -1, *[1] * (student.ndim - 2))
    return 0.5 * ((student - teacher).square() / variance + variance.log()).mean()


# ---------------------------------------------------------------------------------------- relations


def _embeddings(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    _same_batch(name, student, teacher)
    return student.flatten(1), teacher.flatten(1)


def _differences(embeddings: Tensor) -> Tensor:
    """(N, D) -> (N, N, D), x_j - x_i at [i, j]."""
    return embeddings[None, :] - embeddings[:, None]


def _pairwise(embeddings: Tensor) -> Tensor:
    """psi_D: the distance of each pair over mu, the mean over pairs of different samples."""
    distances = torch.linalg.vector_norm(_differences(embeddings), dim=2)
    n = len(distances)
    mu = distances.sum() / max(1, n * (n - 1))  # those of a sample to itself are 0
    return distances / mu.clamp_min(torch.finfo(mu.dtype).tiny)


@_in_full_precision
def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The Huber loss (delta 1) between psi_D of the student and of the teacher, over N x N pairs.

    psi_D(x_i, x_j) = |x_i - x_j|_2 / mu. A batch of one sample has no pair: the loss is 0.

    Args:
        student: (N, D), D may differ; maps are flattened.
        teacher: likewise.

    Source: W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019,
    section 3.2.1, reduced as in the authors' code.
    """
    student, teacher = _embeddings("rkd_distance", student, teacher)
    return F.smooth_l1_loss(_pairwise(student), _pairwise(teacher))


def _angles(embeddings: Tensor) -> Tensor:
    """psi_A: (N, D) -> (N, N, N), the cosine of the angle at sample i between j and k, 0 if j or k is i."""
    direction = _unit(_differences(embeddings), dim=2)
    return direction @ direction.transpose(1, 2)


@_in_full_precision
def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """The Huber loss (delta 1) between psi_A of the student and of the teacher, over N x N x N.

    psi_A(x_i, x_j, x_k) = cos of the angle at x_j. Fewer than three samples form no angle: 0.

    Args:
        student: (N, D), D may differ; maps are flattened. Memory grows with N^3.
        teacher: likewise.

    Source: as `rkd_distance`, section 3.2.2.
    """
    student, teacher = _embeddings("rkd_angle", student, teacher)
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


@_in_full_precision
def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """|| G_T - G_S ||_F^2 / N^2 for G = Q Q^T with rows of length 1, Q the flattened features.

    Args:
        student: (N, ...), all but N may differ.
        teacher: likewise.

    Source: F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, equations
    1 to 4.
    """
    student, teacher = _embeddings("similarity", student, teacher)

    def gram(q: Tensor) -> Tensor:
        return _unit(q @ q.T)

    return (gram(teacher) - gram(student)).square().mean()


@_in_full_precision
def correlation(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """|| C_T - C_S ||_F^2 / N^2 for the correlations C of all pairs under a Gaussian kernel.

    exp(-gamma |x - y|^2) as its Taylor series e^(-2 gamma) sum_p (2 gamma)^p / p! (x . y)^p up to
    `order`, for features of length 1.

    Args:
        student: (N, ...), all but N may differ.
        teacher: likewise.

    Source: B. Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019,
    section 3: the congruence loss and the Taylor series of the Gaussian, P = 2.
    """
    student, teacher = _embeddings("correlation", student, teacher)

    def correlations(features: Tensor) -> Tensor:
        features = _unit(features)
        cosine = features @ features.T
        series = sum((2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))
        return math.exp(-2 * gamma) * torch.as_tensor(series)

    return (correlations(teacher) - correlations(student)).square().mean()


@_in_full_precision
def probabilistic(student: Tensor, teacher: Tensor) -> Tensor:
    """KL between the probabilities with which each sample picks another, a mean over N x N.

    p(j | i) = K(x_i, x_j) / sum_j K(x_i, x_j), K = (cosine + 1) / 2.

    Args:
        student: (N, ...), all but N may differ.
        teacher: likewise.

    Source: N. Passalis, A. Tefas, "Learning Deep Representations with Probabilistic Knowledge
    Transfer", ECCV 2018, section 3; a sample may pick itself and the mean is over N x N,
    as in the authors' code.
    """
    student, teacher = _embeddings("probabilistic", student, teacher)
    tiny = 1e-7  # as in the authors' code: opposite samples have probability 0

    def probabilities(features: Tensor) -> Tensor:
        features = _unit(features)
        kernel = (features @ features.T + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    p, q = probabilities(teacher), probabilities(student)
    return (p * ((p + tiny) / (q + tiny)).log()).mean()


@_in_full_precision
def contrastive(
    student: Tensor,
    teacher: Tensor,
    student_bank: Tensor | None = None,
    teacher_bank: Tensor | None = None,
    *,
    temperature: float = 0.07,
    log_scale: Tensor | tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """-log h of the pair, -log(1 - h) of each of its K negatives; both networks are anchors in turn.

    h = e^(s . t / temperature) / (e^(s . t / temperature) + K Z), summed over negatives, a mean
    over the batch; written with softplus, so that no exponential overflows.

    Args:
        student: (N, D), projected; rows are brought to length 1 here.
        teacher: likewise.
        student_bank: (K, D), rows of length 1, negatives for the teacher's anchors; without it the
            other samples of the batch, K = N - 1.
        teacher_bank: likewise for the student's anchors.
        log_scale: log Z for the student's anchors and for the teacher's. Z stands for the mean of
            e^(s . t / temperature) over the bank, which the authors' code estimates once.

    Source: Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020,
    equations 17 to 19. Deviation: negatives come from a bank of bounded length, first in first
    out, instead of one entry for every sample of the data.
    """
    _same_shape("contrastive", student, teacher)
    student, teacher = _unit(student), _unit(teacher)
    positive = (student * teacher).sum(1) / temperature
    total = student.sum() * 0 + teacher.sum() * 0
    pairs = ((student, teacher, teacher_bank), (teacher, student, student_bank))
    for (anchor, other, bank), log_z in zip(pairs, log_scale, strict=True):
        if bank is None:
            scores = anchor @ other.T / temperature
            alone = ~torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
            negative = scores[alone].view(len(anchor), -1)
        else:
            negative = anchor @ bank.to(anchor).T / temperature
        if negative.shape[1] == 0:
            continue  # nothing to tell the pair from
        bias = math.log(negative.shape[1]) + log_z
        total = total + (F.softplus(bias - positive) + F.softplus(negative - bias).sum(1)).mean()
    return total
