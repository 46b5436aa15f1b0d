"""Running statistics of a subnet: what its batch and instance norms see, averaged over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..rules import BATCH_NORM, INSTANCE_NORM, SUBNET_BATCH_NORMS, subnet_instance_norm
from .program import Bound, Program, tensor

# what stands in a subnet -> its arguments, the function itself, and what makes it normalise by the batch
NORMS: dict[Any, tuple[tuple[str, ...], Callable[..., Any] | None, dict[str, bool]]] = {
    **{form: (BATCH_NORM, plain, {"training": True}) for form, plain in SUBNET_BATCH_NORMS.items()},
    subnet_instance_norm: (INSTANCE_NORM, F.instance_norm, {"use_input_stats": True}),
}


class BatchStatistics(fx.Interpreter):
    """Runs a subnet with every norm that keeps running statistics normalising by the batch, and averages what they see.

    The average is over batches, each with the same weight, of the mean and of the unbiased variance, as
    `nn.BatchNorm2d(momentum=None)` keeps it.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(nn.Module(), graph=program.graph)  # it is read, so nothing is compiled
        self.program = program
        self.batches = 0
        self.sums: dict[str, Tensor] = {}
        # of the buffers; sums of bfloat16 are kept in float32
        self.dtypes: dict[str, torch.dtype] = {}

    def add(self, bound: Bound, inputs: list[Tensor]) -> None:
        """Run one batch."""
        with torch.no_grad():
            self.run(bound, *inputs)
        self.batches += 1

    def means(self) -> dict[str, Tensor]:
        """Return buffer name -> average, for every norm that keeps running statistics."""
        return {
            name: (total / self.batches).to(self.dtypes[name]) for name, total in self.sums.items()
        }

    def run_node(self, n: fx.Node) -> Any:
        """Run one node of the rewritten graph."""
        names, plain, by_batch = NORMS.get(n.target, ((), None, {}))
        if n.op != "call_function" or plain is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = {**dict(zip(names, args, strict=False)), **kwargs, **by_batch}
        nodes = {**dict(zip(names, n.args, strict=False)), **n.kwargs}
        mean, var = given["running_mean"], given["running_var"]
        if mean is None:
            return plain(**given)
        if mean.dtype in (torch.float32, torch.float64):
            # with a momentum of 1 the kernel that normalises leaves what it saw: no pass more
            mean, var = torch.zeros_like(mean), torch.zeros_like(var)
            result = plain(**{**given, "running_mean": mean, "running_var": var, "momentum": 1.0})
        else:
            x = given["input"].float()
            each = plain is F.instance_norm  # statistics of every image, averaged over them
            space = [d for d in range(x.dim()) if d > 1 or (d == 0 and not each)]
            var, mean = torch.var_mean(x, space)
            mean, var = (mean.mean(0), var.mean(0)) if each else (mean, var)
            result = plain(**{**given, "running_mean": None, "running_var": None})
        for name, value in (("running_mean", mean), ("running_var", var)):
            site = nodes[name]
            if isinstance(site, fx.Node) and site.target is tensor:
                key = self.program.sites[int(site.args[1])].name  # type: ignore[arg-type]
                self.sums[key] = self.sums.get(key, 0) + value
                self.dtypes[key] = given[name].dtype
        return result


def averages(runs: Iterable[BatchStatistics]) -> dict[str, Tensor]:
    """Return buffer name -> average over the batches of all `runs`, which may be of several graphs of one subnet."""
    runs = list(runs)
    total = sum(run.batches for run in runs)
    found: dict[str, Tensor] = {}
    for run in runs:
        for name, mean in run.means().items():
            found[name] = found.get(name, 0) + mean * (run.batches / total)
    return found
