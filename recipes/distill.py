"""Distillation: a task that adds a teacher to another task.

    task = DistillTask(NetAugTask(wide, criterion), FrozenTeacher(teacher), ["kd", "rkd"], images)

    L(W_t) + sum_i alpha_i L([W_t, W_i]) + sum_k lambda_k L_k

The first two are the inner task's (timm's ClassificationTask: the first alone).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from netaugfx.errors import InputError
from recipes import losses
from recipes.errors import DistillError
from recipes.features import Pass, Watch, eval_mode, wide_in
from recipes.netaug import NetAugTask, own_random_numbers
from recipes.objectives import Term, build_terms, check_logits_agree, expand
from recipes.passes import SameInput
from recipes.schemes import Scheme
from recipes.teachers import FrozenTeacher, OnlineTeacher


class DistillTask(TrainingTask):
    """Another task's loss, and what a teacher adds to it.

    Args:
        inner: what the student learns without a teacher: a ClassificationTask, or a NetAugTask.
        teacher: a FrozenTeacher; or an OnlineTeacher, a wider subnet of the same WideModel. The
            widest learns from the labels too, with the weight `alpha` of the inner task; a sampled
            one does so already.
        objectives: names, see recipes/objectives.py.
        images: an example batch of at least two, to see the shapes of features; nothing learns
            from it.
        labels: weight of the inner task's loss: 1 - a for Hinton's.
        weights: objective -> lambda; what is left out has its authors'.
        places: student feature -> teacher feature (recipes/features.py); None for the usual ones.
        temperature: of kd.
        scheme: x -> x'; the student learns, with kd's weight and temperature, the teacher's own
            output on x' beside all that it learns from x, and no label there.
        generator: of schemes and of the teacher's pass, on the CPU; made from `seed` if None.
        seed: of that, and of what is learnt beside the student.

    Raises:
        DistillError: an unknown objective or place, different classes, a subnet that changes from
            step to step for an objective that learns its channels, a scheme without kd.
        InputError: a subnet is to teach, and there is no WideModel; and, from the second step of
            an optimiser on, what is learnt beside the student has been given to none.

    Source: H. Cai et al., "Network Augmentation for Tiny Deep Learning", ICLR 2022, equation 1 and
    table 2; H. Wang et al., "What Makes a 'Good' Data Augmentation in Knowledge Distillation",
    NeurIPS 2022, section 3, for x'.
    """

    def __init__(
        self,
        inner: TrainingTask,
        teacher: FrozenTeacher | OnlineTeacher,
        objectives: Sequence[str],
        images: Tensor,
        *,
        labels: float = 1.0,
        weights: Mapping[str, float] | None = None,
        places: Mapping[str, str] | None = None,
        temperature: float = 4.0,
        scheme: Scheme | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ):
        super().__init__(device=inner.device, dtype=inner.dtype, verbose=inner.verbose)
        if not 0 <= labels < float("inf"):
            raise DistillError(f"The weight of the labels must be from 0 on, got {labels}.")
        if not 0 < temperature < float("inf"):
            raise DistillError(f"The temperature must be above 0, got {temperature}.")
        if not isinstance(teacher, FrozenTeacher | OnlineTeacher):
            raise DistillError(
                f"A teacher is a FrozenTeacher or an OnlineTeacher, got {type(teacher).__name__}. "
                "Make one with FrozenTeacher(network)."
            )
        self.inner, self.labels, self.scheme = inner, labels, scheme
        self.generator = torch.Generator().manual_seed(seed) if generator is None else generator
        student = inner.trainable_module
        self.teacher = teacher
        self._run = SameInput()
        self._check(expand(objectives), images)
        shown = student if isinstance(teacher, OnlineTeacher) else teacher.model
        with own_random_numbers(torch.Generator().manual_seed(seed), torch.device("cpu")):
            self.terms = build_terms(
                objectives,
                student,
                shown,
                images,
                shapes_of_teacher=lambda names: teacher.shapes(names, images),
                places=places,
                weights=weights,
                temperature=temperature,
            )
        self.terms.to(device=self.device, dtype=self.dtype)
        _refuse_unlearnt(self)
        self.watch = Watch(student, [term.student for term in self._terms() if term.student])
        if isinstance(teacher, OnlineTeacher):  # it shares the modules, and is watched with them
            names = [term.teacher for term in self._terms() if term.teacher]
            self.watch = Watch(student, [*self.watch.names, *names])

    def _check(self, objectives: Sequence[str], images: Tensor) -> None:
        student, teacher = self.inner.trainable_module, self.teacher
        if self.scheme is not None and "kd" not in objectives:
            raise DistillError(
                f"Images of {self.scheme.name} are learnt from the teacher's output alone: "
                "add kd to the objectives."
            )
        if isinstance(teacher, OnlineTeacher):
            if self.scheme is not None and teacher.which == "sampled":
                raise DistillError("On a second view the widest teaches, not a sampled subnet.")
            if wide_in(student) is not teacher.wide:
                raise InputError("The subnet that teaches belongs to another WideModel.")
            if teacher.which == "sampled":
                if not isinstance(self.inner, NetAugTask):
                    raise DistillError(
                        "A sampled subnet teaches within NetAug: widen the inner task."
                    )
                learnt = set(objectives) & {"feature", "fitnet", "variational", "contrastive"}
                if learnt:
                    raise DistillError(
                        f"{', '.join(sorted(learnt))} learns the teacher's channels, and those of "
                        "a sampled subnet change at each step. Let the widest teach."
                    )
            return
        with torch.no_grad(), eval_mode(student):
            base = Watch(student).base
            check_logits_agree(base(images), teacher(images).output)

    def _terms(self) -> Iterator[Term]:
        for term in self.terms:
            assert isinstance(term, Term)
            yield term

    @property
    def trainable_module(self) -> nn.Module:
        """The student, as the inner task holds it."""
        return self.inner.trainable_module

    def wrap(self, student: nn.Module) -> None:
        """Put the student, wrapped for many ranks or compiled, in the place of the plain one."""
        self.inner.trainable_module = student
        self.watch = Watch(student, self.watch.names)

    def get_trainable_module(self, ema: bool = False) -> nn.Module | None:
        """The student."""
        return self.inner.get_trainable_module(ema=ema)

    def own_parameters(self) -> list[nn.Parameter]:
        """What is learnt beside the student: give it to the optimiser too; extraction drops it."""
        return list(self.terms.parameters())

    def forward(self, input: Any, target: Any) -> dict[str, Any]:  # noqa: A002 (timm's name)
        """Run the inner task, the teacher, and the objectives.

        Args:
            input: images (N, C, H, W). target: what the inner task takes.

        Returns:
            What the inner task returns, and for each objective "NAME_loss", a detached scalar
            without its weight; "view_loss" for x', "teacher_loss" for the widest on its labels.
            "loss" is the weighted sum of all, with its graph.
        """
        # First what the base alone does, last the widest: DistributedDataParallel takes for unused
        # what the last pass of a step does not use.
        view = None if self.scheme is None else self._view(input, self.scheme)
        with self.watch as watch:
            result = dict(self._run(self.inner, (input, target)))
            passes = list(watch.passes)
            taught = self._teacher_learns(input, target, watch)
        student = passes[0]
        total = self.labels * result["loss"] if self.labels != 0 else 0.0 * result["loss"].detach()
        if "base_loss" not in result:  # a ClassificationTask
            result["base_loss"] = result["loss"].detach()
        lesson = self._lesson(input, passes, taught)
        if taught is not None:
            loss, weight = self._label_loss(taught, target)
            result["teacher_loss"] = loss.detach()
            if weight != 0:
                total = total + weight * loss
        if lesson is not None:
            for name, weight, loss in self._losses(student, lesson):
                result[name] = result.get(name, 0.0) + loss.detach()
                if weight != 0:
                    total = total + weight * loss
            if self.training:
                for term in self._terms():
                    term.remember(student, lesson)
        if view is not None:
            weight, loss = view
            result["view_loss"] = loss.detach()
            if weight != 0:
                total = total + weight * loss
        return result | {"loss": total}

    def _losses(self, student: Pass, lesson: Pass) -> Iterator[tuple[str, float, Tensor]]:
        for term in self._terms():
            if term.kind.least > len(student.output):
                raise DistillError(
                    f"{term.name} needs a batch of at least {term.kind.least}, "
                    f"got {len(student.output)}."
                )
            yield f"{term.name}_loss", term.weight, term(student, lesson)

    def _teacher_learns(self, images: Any, target: Any, watch: Watch) -> Pass | None:
        """The widest subnet's pass on x, where it teaches."""
        teacher = self.teacher
        if not isinstance(teacher, OnlineTeacher) or teacher.which != "widest":
            return None
        self._run_subnet(teacher, images)
        return watch.passes[-1]

    def _run_subnet(self, teacher: OnlineTeacher, images: Any) -> Any:
        device = next(teacher.wide.parameters()).device
        with own_random_numbers(self.generator, device), teacher.wide.at(teacher.config):
            return self._run(self.trainable_module, images)

    def _label_loss(self, taught: Pass, target: Any) -> tuple[Tensor, float]:
        return self.inner.criterion(taught.output, target), float(getattr(self.inner, "alpha", 1.0))

    def _lesson(self, images: Any, passes: list[Pass], taught: Pass | None) -> Pass | None:
        teacher = self.teacher
        if isinstance(teacher, FrozenTeacher):
            return teacher(images, [term.teacher for term in self._terms() if term.teacher])
        if taught is not None:
            return teacher.lesson(taught)
        # a schedule may have ended the augmentation: then nobody teaches
        return teacher.lesson(passes[1]) if len(passes) > 1 else None

    def _view(self, images: Tensor, scheme: Scheme) -> tuple[float, Tensor]:
        """KL to the teacher's own output on x'."""
        kd = next(term for term in self._terms() if term.name == "kd")
        view = scheme(images, self.generator, self._judge(scheme))
        output = self._run(self.trainable_module, view)
        with torch.no_grad():
            taught = self._teacher_output(view)
        return kd.weight, losses.soft(output, taught, temperature=kd.temperature)

    def _judge(self, scheme: Scheme) -> Callable[[Tensor], Tensor]:
        if scheme.judge == "teacher":
            return self._teacher_output
        student = Watch(self.trainable_module).base

        def predict(images: Tensor) -> Tensor:
            with eval_mode(student):
                return self._run(student, images)

        return predict

    def _teacher_output(self, images: Tensor) -> Tensor:
        if isinstance(self.teacher, FrozenTeacher):
            return self.teacher(images).output
        return self._run_subnet(self.teacher, images)

    def check_ranks(self) -> None:
        """Refuse what DistributedDataParallel cannot train.

        Raises:
            DistillError: something is learnt beside the student, whose gradients no wrapper joins;
                or several sampled networks a step, of which only the last one's blocks are seen.
        """
        if self.own_parameters():
            raise DistillError(
                "Objectives with learnt parts train in one process; "
                "leave out feature, fitnet, variational and contrastive."
            )
        widest = isinstance(self.teacher, OnlineTeacher) and self.teacher.which == "widest"
        if getattr(self.inner, "samples", 1) > 1 and not widest:
            raise DistillError(
                "Several sampled networks per step train with a teacher in one process; "
                "take one sample, or let the widest subnet teach."
            )

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> DistillTask:
        """Wrap the student as the inner task does.

        Raises:
            DistillError: as `check_ranks`.
        """
        self.check_ranks()
        self.inner.prepare_distributed(device_ids, **ddp_kwargs)
        self.wrap(self.inner.trainable_module)
        return self

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Tensors: the inner task's, the generator's, and what is learnt beside the student."""
        inner = self.inner.get_task_state(module, ema)
        return (
            {f"inner/{name}": value for name, value in inner.items()}
            | {"distill_generator": self.generator.get_state()}
            | {f"terms/{name}": value for name, value in self.terms.state_dict().items()}
        )

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Go on where `get_task_state` was called."""
        state = state or {}
        if "distill_generator" not in state:
            if strict:
                raise InputError("The task state is not one of DistillTask.get_task_state().")
            return
        self.generator.set_state(state["distill_generator"].cpu())
        self.terms.load_state_dict(_below(state, "terms/"), strict=strict)
        self.inner.load_task_state(_below(state, "inner/"), strict, module, ema)


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def _refuse_unlearnt(task: DistillTask) -> None:
    """Let the second step of the student's optimiser raise if nobody learns what lies beside the student.

    The hook sees every optimiser of the process and goes with the task.
    """
    watched = weakref.ref(task)
    given: set[int] = set()  # Parameters of the objectives that some optimiser has stepped
    steps = 0

    def check(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal steps
        task = watched()
        if task is None:
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        given.update(held)
        student = {id(p) for p in task.trainable_module.parameters() if p.grad is not None}
        if not held & student:
            return
        steps += 1
        missing = [
            name
            for name, p in task.terms.named_parameters()
            if p.grad is not None and id(p) not in given
        ]
        if steps > 1 and missing:
            raise InputError(
                f"{len(missing)} Parameters that objectives learn beside the student are in no "
                "optimiser, so they would stay as they were drawn. Make it from "
                "[*wide.parameters(), *task.own_parameters()]."
            )

    if task.own_parameters():
        weakref.finalize(task, register_optimizer_step_pre_hook(check).remove)
