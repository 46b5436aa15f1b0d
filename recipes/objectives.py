"""Objectives by name: which loss, between which features, with which weight and learnt parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes import losses
from recipes.adapters import Contrast, Regressor, VariationalRegressor
from recipes.errors import DistillError, near
from recipes.features import Pass, look, usual_places

__all__ = ["NAMES", "Term", "build_terms", "check_batch", "expand"]


@dataclass(frozen=True)
class Kind:
    """What an objective compares.

    `place` is where its features are taken if none is named (None: it compares logits); `least`
    the samples that a batch needs.
    """

    loss: Callable[..., Tensor]
    place: str | None
    weight: float
    adapter: type[nn.Module] | None = None
    least: int = 1


# Weights of fitnet, attention, similarity, probabilistic, variational and contrastive: Y. Tian, D.
# Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020, appendix; of rkd: its
# authors'. feature and correlation are scaled otherwise there; theirs are ours, and not tuned.
KINDS: Mapping[str, Kind] = {
    "kd": Kind(losses.soft, None, 1.0),
    "feature": Kind(losses.feature, "map", 0.1, Regressor),
    "rkd_distance": Kind(losses.rkd_distance, "embedding", 25.0, least=2),
    "rkd_angle": Kind(losses.rkd_angle, "embedding", 50.0, least=3),
    "fitnet": Kind(losses.fitnet, "map", 100.0, Regressor),
    "attention": Kind(losses.attention, "map", 1000.0),
    "similarity": Kind(losses.similarity, "map", 3000.0, least=2),
    "correlation": Kind(losses.correlation, "embedding", 1.0, least=2),
    "probabilistic": Kind(losses.probabilistic, "embedding", 30000.0, least=2),
    "variational": Kind(losses.variational, "map", 1.0, VariationalRegressor),
    "contrastive": Kind(losses.contrastive, "embedding", 0.8, Contrast),
}
SEVERAL = {"rkd": ("rkd_distance", "rkd_angle")}
NAMES = (*KINDS, *SEVERAL)


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Objective names, each once, `rkd` as its two.

    Raises:
        DistillError: an unknown name, or none.

    >>> expand(["kd", "rkd"])
    ('kd', 'rkd_distance', 'rkd_angle')
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in NAMES:
            raise DistillError(f"There is no objective {name!r}. {near(name, NAMES)}")
        found |= dict.fromkeys(SEVERAL.get(name, (name,)))
    if not found:
        raise DistillError(f"No objective came; give one of {', '.join(NAMES)}.")
    return tuple(found)


def check_batch(names: Sequence[str], batch_size: int) -> None:
    """Raise DistillError where a batch is too small for one of the objectives."""
    for name in expand(names):
        if batch_size < KINDS[name].least:
            what = "angles" if name == "rkd_angle" else "relations"
            raise DistillError(
                f"{name} compares {what} between samples: a batch needs at least "
                f"{KINDS[name].least}, got {batch_size}."
            )


class Term(nn.Module):
    """One objective between two watched passes, with what it learns.

    Args:
        name: of the objective.
        student, teacher: names of the features, None for logits.
        weight: in the sum.
        adapter: what is learnt, if anything.
        temperature: of kd.
    """

    def __init__(
        self,
        name: str,
        student: str | None,
        teacher: str | None,
        weight: float,
        adapter: nn.Module | None,
        temperature: float,
    ):
        super().__init__()
        self.name, self.kind, self.weight = name, KINDS[name], weight
        self.student, self.teacher, self.temperature = student, teacher, temperature
        self.adapter = adapter

    def forward(self, student: Pass, teacher: Pass) -> Tensor:
        """The loss, a scalar without its weight."""
        if self.student is None or self.teacher is None:
            return losses.soft(student.output, teacher.output, temperature=self.temperature)
        pair = student[self.student], teacher[self.teacher]
        if self.adapter is None:
            return self.kind.loss(*pair)
        dtype = next(self.adapter.parameters()).dtype  # features may come from under autocast
        adapted = self.adapter(*(each.to(dtype) for each in pair))
        return adapted if isinstance(self.adapter, Contrast) else self.kind.loss(*adapted)

    def remember(self, student: Pass, teacher: Pass) -> None:
        """After a step: let a memory bank take up its samples."""
        if isinstance(self.adapter, Contrast) and self.student and self.teacher:
            dtype = self.adapter.student.weight.dtype
            self.adapter.remember(student[self.student].to(dtype), teacher[self.teacher].to(dtype))


def build_terms(
    names: Sequence[str],
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    *,
    shapes_of_teacher: Callable[[Sequence[str]], dict[str, tuple[int, ...]]] | None = None,
    places: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    temperature: float = 4.0,
) -> nn.ModuleList:
    """A Term for each objective and pair of places, fitted to the features as they come.

    Args:
        names: objectives.
        student, teacher: networks; neither is changed.
        images: an example batch, on their device.
        shapes_of_teacher: how to look at the teacher, if not by a pass of `teacher`.
        places: student feature -> teacher feature; None for the usual ones. Every objective that
            compares features gets a term for each pair.
        weights: objective -> weight, instead of its own; `rkd` scales both of its parts.

    Raises:
        DistillError: an unknown objective, a place that does not exist or has no features.
    """
    names = expand(names)
    given = _weights(names, weights or {})
    if places and all(KINDS[name].place is None for name in names):
        came = ", ".join(f"{one}={other}" for one, other in places.items())
        raise DistillError(
            f"Features came ({came}), and {', '.join(names)} compares none. "
            "Leave them out, or add an objective that does, as attention."
        )
    pairs: dict[str, list[tuple[str, str]]] = {}
    for kind in {KINDS[name].place for name in names} - {None}:
        assert kind is not None
        if places:
            pairs[kind] = list(places.items())
        else:
            usual = usual_places(student, images), usual_places(teacher, images)
            for whose, found in zip(("student", "teacher"), usual, strict=True):
                if kind not in found:
                    needs = ", ".join(name for name in names if KINDS[name].place == kind)
                    raise DistillError(
                        f"{needs} compares a feature {kind}, and the {whose} has none that is "
                        "found by itself. Name the places with features."
                    )
            pairs[kind] = [(usual[0][kind], usual[1][kind])]
    wanted = {pair for each in pairs.values() for pair in each}
    look_at_teacher = shapes_of_teacher or (lambda those: look(teacher, those, images))
    try:
        shapes = look(student, sorted({each for each, _ in wanted}), images) if wanted else {}
    except DistillError as error:
        raise DistillError(f"Student: {error}") from error
    try:
        of_teacher = look_at_teacher(sorted({each for _, each in wanted})) if wanted else {}
    except DistillError as error:
        raise DistillError(f"Teacher: {error}") from error
    terms = []
    for name in names:
        kind_of = KINDS[name]
        if kind_of.place is None:
            terms.append(Term(name, None, None, given[name], None, temperature))
            continue
        for one, two in pairs[kind_of.place]:
            needs_map = kind_of.place == "map" and name == "attention"
            for whose, place, shape in (
                ("student", one, shapes[one]),
                ("teacher", two, of_teacher[two]),
            ):
                if needs_map and len(shape) != 4:
                    raise DistillError(
                        f"{name} needs feature maps (N, C, H, W); {place!r} of the {whose} is {shape}."
                    )
                if needs_map and shape[2] * shape[3] == 1:
                    raise DistillError(
                        f"{name} compares where features are large, and {place!r} of the {whose} is one pixel "
                        f"({shape}): nothing would be learnt. Name an earlier place with features."
                    )
            adapter = None
            if kind_of.adapter is not None:
                adapter = kind_of.adapter(shapes[one], of_teacher[two])
            terms.append(Term(name, one, two, given[name], adapter, temperature))
    return nn.ModuleList(terms)


def _weights(names: Sequence[str], given: Mapping[str, float]) -> dict[str, float]:
    weights = {name: KINDS[name].weight for name in names}
    for name, weight in given.items():
        parts = SEVERAL.get(name, (name,))
        if not set(parts) <= set(names):
            raise DistillError(
                f"A weight came for {name!r}, which is none of the objectives: {', '.join(names)}."
            )
        if not 0 <= weight < float("inf"):
            raise DistillError(f"The weight of {name} must be a number from 0 on, got {weight}.")
        for part in parts:
            weights[part] = weight * (weights[part] if name in SEVERAL else 1.0)
    return weights


def check_logits_agree(student: Tensor, teacher: Tensor) -> None:
    """Raise DistillError where the two networks' outputs are no logits of the same classes."""
    for whose, output in (("student", student), ("teacher", teacher)):
        if not isinstance(output, torch.Tensor) or output.ndim != 2:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise DistillError(f"The {whose} gives {found}; expected logits (N, classes).")
    if student.shape != teacher.shape:
        raise DistillError(
            f"The teacher has {teacher.shape[1]} classes, the student {student.shape[1]}: "
            "they must be the same ones."
        )
