"""What is distilled in a run: a frozen record, part of its TrainConfig; and the presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# --method -> what the student learns without a teacher, and what the teacher adds
PRESETS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "kd": ("baseline", {"objectives": ("kd",)}),
    "rkd": ("baseline", {"objectives": ("rkd",)}),
    "netaug+kd": ("netaug", {"objectives": ("kd",)}),  # the NetAug paper's table 2
    "netaug+rkd": ("netaug", {"objectives": ("rkd",), "teacher": "widest"}),
}


@dataclass(frozen=True)
class Distillation:
    """Who teaches what. The student's own loss and NetAug are the run's other fields."""

    teacher: str  # "widest", "sampled", the directory of a finished run, or a model's name
    objectives: tuple[str, ...] = ("kd",)  # recipes/objectives.py
    teacher_weights: str | None = None  # a safetensors file, for a model's name
    teacher_pretrained: bool = False  # or the library's trained weights
    teacher_args: Mapping[str, Any] = field(default_factory=dict)  # of its constructor
    weights: Mapping[str, float] = field(default_factory=dict)  # objective -> lambda; else its own
    labels: float | None = None  # weight of the student's own loss; None: 1, but for plain kd 0.1
    temperature: float = 4.0  # of kd (Tian et al. 2020)
    places: Mapping[str, str] = field(default_factory=dict)  # student feature -> teacher feature
    detach: bool = True  # whether the student's losses leave a subnet that teaches alone
    scheme: str | None = None  # x', recipes/schemes.py
    cache: int = 0  # images whose teacher outputs are kept, found again if they come back unchanged

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Distillation:
        """The inverse of `as_json`, also after a round through a file."""
        return Distillation(**{**fields, "objectives": tuple(fields["objectives"])})
