"""A run's teacher and distillation task, built from its configuration before training starts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.task import TrainingTask
from torch import Tensor, nn

from recipes.augment import normalisation
from recipes.data import Data, check_classes
from recipes.distill import DistillTask
from recipes.errors import DistillError
from recipes.models import build_model, check_logits
from recipes.netaug import NetAugTask
from recipes.objectives import check_batch, expand
from recipes.schemes import build_scheme
from recipes.teachers import ONLINE, FrozenTeacher, OnlineTeacher
from recipes.training.config import TrainConfig
from recipes.training.distillation import Distillation
from recipes.training.finished import base_of, open_run, with_weights
from recipes.training.ingredients import laid_out


def teach(inner: TrainingTask, config: TrainConfig, data: Data, images: Tensor) -> TrainingTask:
    """`inner` with the teacher of `config` beside it; `inner` itself where there is none.

    Args:
        inner: the student's task, on the student as it is before it is prepared for ranks.
        images: an example batch.

    Raises:
        DistillError, ModelError, RunError: teacher, objectives and student do not fit each other.
    """
    distill = config.distill
    if distill is None:
        return inner
    if config.method == "sandwich":
        raise DistillError("In the sandwich rule the widest subnet teaches: leave out --teacher.")
    if config.method == "spos":
        raise DistillError("Single paths are trained on labels alone: leave out --teacher.")
    smallest = min(config.batch_size, len(data.train))
    check_batch(distill.objectives, smallest)
    with torch.random.fork_rng(devices=[]):  # a teacher's fresh weights are drawn beside the run
        teacher = build_teacher(distill, inner.trainable_module, data, images)
    if isinstance(teacher, FrozenTeacher):  # an online one is the student itself
        laid_out(teacher, config)
    labels, weights = distill.labels, dict(distill.weights)
    if labels is None:
        labels = 1.0
        if config.method == "baseline" and expand(distill.objectives) == ("kd",) and not weights:
            labels, weights = 0.1, {"kd": 0.9}  # Hinton's 1 - a and a
    scheme = None
    if distill.scheme is not None:
        scheme = build_scheme(distill.scheme, *normalisation(data.channels))
        if smallest < 2 and scheme.name not in ("identity", "flip"):
            raise DistillError(f"{scheme.name} needs a batch of at least 2, got {smallest}.")
    task = DistillTask(
        inner,
        teacher,
        distill.objectives,
        images,
        labels=labels,
        weights=weights,
        places=distill.places or None,
        temperature=distill.temperature,
        scheme=scheme,
        seed=config.seed,
    )
    if config.sort and task.own_parameters():
        raise DistillError(
            "Sorting channels would move them away from the objectives' learnt parts: leave out "
            "--sort, or feature, fitnet, variational and contrastive."
        )
    return task


def build_teacher(
    distill: Distillation, student: nn.Module, data: Data, images: Tensor
) -> FrozenTeacher | OnlineTeacher:
    """The teacher that `distill` names.

    Raises:
        DistillError: a model's name without trained weights, or another number of classes.
        ModelError, RunError: there is no such model or run, or its weights are another model's.
    """
    if distill.teacher in ONLINE:
        return OnlineTeacher(student, distill.teacher, detach=distill.detach)
    model, name = load_network(
        distill.teacher,
        data,
        weights=distill.teacher_weights,
        pretrained=distill.teacher_pretrained,
        model_args=distill.teacher_args,
    )
    with torch.no_grad():
        try:
            outputs = model.eval()(images)
        except Exception as error:  # a forward may raise anything
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DistillError(
                f"The teacher {name} does not take images of shape {tuple(images.shape)}: {message}"
            ) from error
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] != data.num_classes:
        raise DistillError(
            f"The teacher {name} has {outputs.shape[1]} classes, the data {data.num_classes}."
        )
    check_logits(model, f"The teacher {name}", images, data.num_classes)
    own = getattr(model, "pretrained_cfg", None) or {}
    mean, std = normalisation(data.channels)
    normalised: dict[str, Any] = {}
    if distill.teacher_pretrained and len(own.get("mean", ())) == data.channels:
        normalised = {"mean": own["mean"], "std": own["std"]}
        normalised |= {"student_mean": mean, "student_std": std}
    return FrozenTeacher(model, cache=distill.cache, **normalised)


def load_network(
    spec: str,
    data: Data,
    *,
    weights: str | None = None,
    pretrained: bool = False,
    model_args: Any = None,
) -> tuple[nn.Module, str]:
    """A trained network and what errors call it.

    Args:
        spec: the directory of a finished run, or a model's name; the latter with
        weights: a safetensors file, or
        pretrained: the library's trained weights.
    """
    path = Path(spec)
    if (path / "config.json").is_file() or (path.is_dir() and not weights):
        idle = [
            option
            for option, given in {
                "--teacher-weights": weights,
                "--teacher-pretrained": pretrained,
                "--teacher-arg": model_args,
            }.items()
            if given
        ]
        if idle:
            raise DistillError(
                f"The teacher {spec} is a run, which knows its model and weights: leave out {', '.join(idle)}."
            )
        run = open_run(path)
        check_classes(run.described.get("classes"), data.classes, f"The teacher {spec}", "the data")
        return base_of(run), str(path)
    if not weights and not pretrained:
        raise DistillError(
            f"The teacher {spec!r} is no directory of a run here. If it is a model's name: that alone is untrained, so "
            "add --teacher-weights FILE or --teacher-pretrained."
        )
    model = build_model(
        spec,
        num_classes=data.num_classes,
        channels=data.channels,
        model_args=model_args or {},
        pretrained=pretrained,
    )
    return (with_weights(model, Path(weights)) if weights else model.eval()), spec


def teacher_digest(distill: Distillation | None) -> str | None:
    """The SHA-256 of the teacher's weights, where they lie in a file: part of what a run is."""
    if distill is None or distill.teacher in ONLINE:
        return None
    file = Path(distill.teacher_weights or Path(distill.teacher) / "base.safetensors")
    if not file.is_file():
        return None
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def rewrapped(task: TrainingTask, model: nn.Module, accelerator: Accelerator) -> TrainingTask:
    """Put the student, as it was prepared for ranks and device, in the place of the plain one.

    Raises:
        DistillError: it cannot be trained in several processes.
    """
    if isinstance(task, DistillTask) and accelerator.num_processes > 1:
        task.check_ranks()
    if isinstance(task, DistillTask):
        task.wrap(model)
    else:
        task.trainable_module = model
    return task.to(accelerator.device)


def own_parameters(task: TrainingTask) -> list[nn.Parameter]:
    """What a task learns beside the student."""
    return task.own_parameters() if isinstance(task, DistillTask) else []


def netaug_in(task: TrainingTask) -> NetAugTask | None:
    """The NetAug task that a task is or holds."""
    inner = task.inner if isinstance(task, DistillTask) else task
    return inner if isinstance(inner, NetAugTask) else None
