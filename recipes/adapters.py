"""The learnt parts of distillation losses: trained beside the student, thrown away at its export."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes import losses
from recipes.errors import DistillError


def same_places(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger map down to the smaller one, along each axis; a vector has one place.

    Args:
        student, teacher: (N, C, H, W) or (N, C).
    """
    if student.ndim == teacher.ndim == 4:
        size = tuple(map(min, student.shape[2:], teacher.shape[2:]))
        return _to_size(student, size), _to_size(teacher, size)
    return _to_vector(student), _to_vector(teacher)


def _to_size(features: Tensor, size: tuple[int, ...]) -> Tensor:
    same = tuple(features.shape[2:]) == size
    return features if same else F.adaptive_avg_pool2d(features, size)


def _to_vector(features: Tensor) -> Tensor:
    return features.mean((2, 3)) if features.ndim == 4 else features


def _channels(features: Sequence[int], whose: str) -> int:
    if len(features) not in (2, 4):
        raise DistillError(
            f"The {whose}'s features are {tuple(features)}; a regressor takes (N, C, H, W) or (N, C). "
            "Name another place."
        )
    return features[1]


def _layer(in_channels: int, out_channels: int, *, maps: bool, bias: bool) -> nn.Module:
    if maps:
        return nn.Conv2d(in_channels, out_channels, 1, bias=bias)
    return nn.Linear(in_channels, out_channels, bias=bias)


class Regressor(nn.Module):
    """r(S): a 1x1 convolution (a linear layer for vectors) to the teacher's channels.

    Args:
        student, teacher: shapes of the features, (N, C, H, W) or (N, C).
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]):
        super().__init__()
        channels = _channels(student, "student"), _channels(teacher, "teacher")
        self.layer = _layer(*channels, maps=len(student) == len(teacher) == 4, bias=True)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return r(S) and T, both of one shape."""
        student, teacher = same_places(student, teacher)
        return self.layer(student), teacher


class VariationalRegressor(nn.Module):
    """mu(S) by three 1x1 convolutions, and a variance for each of the teacher's channels.

    Args:
        student, teacher: shapes of the features, (N, C, H, W) or (N, C).
        variance: where each variance starts.

    Source: S. Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR
    2019, section 3.2, sizes as in the authors' code.
    """

    least = 1e-5  # of a variance

    def __init__(self, student: Sequence[int], teacher: Sequence[int], variance: float = 5.0):
        super().__init__()
        ins, outs = _channels(student, "student"), _channels(teacher, "teacher")
        maps = len(student) == len(teacher) == 4
        self.mean = nn.Sequential(
            _layer(ins, outs, maps=maps, bias=False),
            nn.ReLU(),
            _layer(outs, outs, maps=maps, bias=False),
            nn.ReLU(),
            _layer(outs, outs, maps=maps, bias=False),
        )
        start = math.log(math.expm1(variance - self.least))
        self.log_scale = nn.Parameter(torch.full((outs,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mu(S), T, both of one shape, and the variances (C,)."""
        student, teacher = same_places(student, teacher)
        return self.mean(student), teacher, F.softplus(self.log_scale) + self.least


class Contrast(nn.Module):
    """CRD's projections and its memory bank, bounded: the newest `length` samples of each network.

    Args:
        student, teacher: shapes of the features; maps are averaged over places.
        width: channels that both are projected to.
        length: samples that the bank holds; at first random directions.
        temperature: of the scores.

    Source: as `losses.contrastive`; width and temperature are the authors'.
    """

    def __init__(
        self,
        student: Sequence[int],
        teacher: Sequence[int],
        *,
        width: int = 128,
        length: int = 4096,
        temperature: float = 0.07,
    ):
        super().__init__()
        self.student = nn.Linear(_channels(student, "student"), width)
        self.teacher = nn.Linear(_channels(teacher, "teacher"), width)
        self.temperature = temperature
        self.student_bank: Tensor
        self.teacher_bank: Tensor
        self.log_scale: Tensor
        self.next: Tensor
        self.register_buffer("student_bank", F.normalize(torch.randn(length, width), dim=1))
        self.register_buffer("teacher_bank", F.normalize(torch.randn(length, width), dim=1))
        self.register_buffer("log_scale", torch.full((2,), math.nan))  # until the first batch
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss; the bank stays as it is until `remember`."""
        s, t = self.project(student, teacher)
        return losses.contrastive(
            s,
            t,
            self.student_bank,
            self.teacher_bank,
            temperature=self.temperature,
            log_scale=self._scale(s, t),
        )

    def project(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both features on the unit sphere, (N, width)."""
        pair = self.student(_to_vector(student)), self.teacher(_to_vector(teacher))
        s, t = (F.normalize(each, dim=1) for each in pair)
        return s, t

    @torch.no_grad()
    def remember(self, student: Tensor, teacher: Tensor) -> None:
        """Put a batch into the bank in place of its oldest samples; fix Z at the first one."""
        s, t = self.project(student, teacher)
        self.log_scale = self._scale(s, t).to(self.log_scale.dtype)
        length = len(self.student_bank)
        s, t = s[:length], t[:length]
        rows = (int(self.next) + torch.arange(len(s), device=s.device)) % length
        # new tensors: the backward pass of this step still needs the old ones
        self.student_bank = self.student_bank.index_copy(0, rows, s.to(self.student_bank.dtype))
        self.teacher_bank = self.teacher_bank.index_copy(0, rows, t.to(self.teacher_bank.dtype))
        self.next.fill_((int(self.next) + len(s)) % length)

    @torch.no_grad()
    def _scale(self, s: Tensor, t: Tensor) -> Tensor:
        """Log of the mean of e^(score / temperature) over the bank, at the first batch."""
        if not self.log_scale.isnan().any():
            return self.log_scale
        pairs = ((s, self.teacher_bank), (t, self.student_bank))
        scores = [anchor.float() @ bank.float().T / self.temperature for anchor, bank in pairs]
        return torch.stack([each.logsumexp((0, 1)) - math.log(each.numel()) for each in scores])
