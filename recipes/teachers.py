"""Who teaches: any frozen network, or a wider subnet of the student itself, which learns too."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import netaugfx
from netaugfx.errors import InputError
from recipes.errors import DistillError
from recipes.features import Pass, Watch, base_features_in_graph, eval_mode, look, wide_in
from recipes.passes import SameInput

ONLINE = ("widest", "sampled")  # teachers that are subnets of the student's own wide model


class FrozenTeacher(nn.Module):
    """A copy of a network in eval mode, without gradients; `train()` does not change that.

    Its state_dict is empty: checkpoints of what holds it do not carry it.

    Args:
        model: the teacher; it is copied.
        mean: of the channels, how the teacher's images are normalised; given with the next three
            or not at all.
        std: likewise.
        student_mean: how the images that come, the student's, are normalised.
        student_std: likewise.
        cache: how many samples' outputs to keep, found again by the image's own bytes. Worth it
            where images come back unchanged; the oldest are dropped.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        student_mean: Sequence[float] | None = None,
        student_std: Sequence[float] | None = None,
        cache: int = 0,
    ):
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.same_input = SameInput()
        self.cache_length = cache
        self.cache: OrderedDict[bytes, dict[str | None, Tensor]] = OrderedDict()
        given = [each for each in (mean, std, student_mean, student_std) if each is not None]
        if len(given) not in (0, 4):
            raise ValueError("mean, std, student_mean and student_std come together or not at all.")
        rows = [torch.tensor(each).view(1, -1, 1, 1) for each in given]
        if rows and torch.equal(rows[0], rows[2]) and torch.equal(rows[1], rows[3]):
            rows = []
        self.scale: Tensor | None
        self.shift: Tensor | None
        self.register_buffer("scale", rows[3] / rows[1] if rows else None)
        self.register_buffer("shift", (rows[2] - rows[0]) / rows[1] if rows else None)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode."""
        return super().train(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing: a teacher is no part of what is trained."""
        return {}

    @torch.no_grad()
    def forward(self, images: Tensor, names: Sequence[str] = ()) -> Pass:
        """The teacher's logits and features for a batch; `names` as in recipes/features.py."""
        if self.cache_length:
            return self._from_cache(images, tuple(names))
        return self._run(images, names)

    def _run(self, images: Tensor, names: Sequence[str]) -> Pass:
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        with Watch(self.model, names) as watch:
            output = self.same_input(self.model, images)
        watched = watch.passes[0]
        watched.output = output
        return watched

    def _from_cache(self, images: Tensor, names: tuple[str, ...]) -> Pass:
        rows = images.detach().cpu().contiguous()
        keys = [hashlib.blake2b(each.numpy().tobytes(), digest_size=16).digest() for each in rows]
        missing = [
            index
            for index, key in enumerate(keys)
            if key not in self.cache or not {None, *names} <= self.cache[key].keys()
        ]
        found: dict[bytes, dict[str | None, Tensor]] = {}
        if missing:
            fresh = self._run(images[missing], names)
            values: dict[str | None, Tensor] = {None: fresh.output} | dict(fresh.features)
            for row, index in enumerate(missing):
                found[keys[index]] = {name: value[row].cpu() for name, value in values.items()}
        for key in keys:
            self.cache[key] = found[key] = found.get(key) or self.cache[key]
            self.cache.move_to_end(key)
        while len(self.cache) > self.cache_length:
            self.cache.popitem(last=False)

        def batch(name: str | None) -> Tensor:
            return torch.stack([found[key][name] for key in keys]).to(images.device)

        return Pass(None, batch(None), {name: batch(name) for name in names})

    def shapes(self, names: Sequence[str], images: Tensor) -> dict[str, tuple[int, ...]]:
        """The shape of the features at each name."""
        return look(self.model, names, images)


class OnlineTeacher:
    """A wider subnet of the student's own WideModel; its pass is part of the step, and it learns.

    Args:
        student: the WideModel, or what wraps it.
        which: "widest", or "sampled": the network that NetAug samples in the step.
        detach: whether the student's losses leave it alone; it still learns from its labels.

    Raises:
        InputError: `student` contains no WideModel.
        DistillError: `which` is neither, or no width can grow.
    """

    def __init__(self, student: nn.Module, which: str = "widest", *, detach: bool = True):
        wide = wide_in(student)
        if wide is None:
            raise InputError(
                f"A subnet as teacher needs a widened student, got {type(student).__name__}. "
                "Make one with wide = netaugfx.widen(model)."
            )
        if which not in ONLINE:
            raise DistillError(f"A subnet that teaches is {' or '.join(ONLINE)}, not {which!r}.")
        if wide.max_config == wide.base_config:
            raise DistillError(
                "No width can grow, so there is no wider subnet to teach. "
                "netaugfx.describe(wide) says why."
            )
        self.wide, self.which, self.detach = wide, which, detach

    @property
    def config(self) -> netaugfx.Config:
        """Where the widest subnet is."""
        return self.wide.max_config

    def lesson(self, watched: Pass) -> Pass:
        """What the student sees of the teacher's pass."""
        if not self.detach:
            return watched
        return Pass(
            watched.config,
            watched.output.detach(),
            {name: each.detach() for name, each in watched.features.items()},
        )

    @torch.no_grad()
    def shapes(self, names: Sequence[str], images: Tensor) -> dict[str, tuple[int, ...]]:
        """The shape of the features at each name, at the widest config.

        Raises:
            DistillError: a name leads nowhere, or its module puts out something else than the last
                value that it computes, which is what is read in a subnet.
        """
        with eval_mode(self.wide):
            with Watch(self.wide, names) as watch:
                self.wide.base(images)
                self.wide.at(self.config)(images)
            in_graph = base_features_in_graph(self.wide, names, images)
        base, widest = watch.passes
        for name in names:
            seen, expected = in_graph.get(name), base[name]
            near = torch.finfo(expected.dtype).eps ** 0.5
            if (
                seen is None
                or seen.shape != expected.shape
                or not seen.allclose(expected, near, near)
            ):
                raise DistillError(
                    f"The features {name!r} cannot be read in a subnet: the module does not put out "
                    "the last value that it computes. Name a module inside it."
                )
        return {name: tuple(widest[name].shape) for name in names}
