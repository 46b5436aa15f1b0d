"""Batch-norm statistics of a subnet: what its batch norms see, averaged over batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .rewrite import Bound, Program, tensor
from .rules.norm import BATCH_NORM, subnet_batch_norm


class BatchStatistics(fx.Interpreter):
    """Runs a subnet with every batch norm normalising by the batch, and averages what they see.

    The average is over batches, each with the same weight, of the mean and of the unbiased variance, as
    `nn.BatchNorm2d(momentum=None)` keeps it.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(nn.Module(), graph=program.graph)  # it is read, so nothing is compiled
        self.program = program
        self.batches = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, bound: Bound, inputs: list[Tensor]) -> None:
        """Run one batch."""
        with torch.no_grad():
            self.run(bound, *inputs)
        self.batches += 1

    def means(self) -> dict[str, Tensor]:
        """Return buffer name -> average, for every batch norm that keeps running statistics."""
        return {name: total / self.batches for name, total in self.sums.items()}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node of the rewritten graph."""
        if n.op != "call_function" or n.target is not subnet_batch_norm:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = {**dict(zip(BATCH_NORM, args, strict=False)), **kwargs}
        nodes = {**dict(zip(BATCH_NORM, n.args, strict=False)), **n.kwargs}
        mean, var = given["running_mean"], given["running_var"]
        if mean is None:
            return subnet_batch_norm(**{**given, "training": True})
        if mean.dtype in (torch.float32, torch.float64):
            # with a momentum of 1 the kernel that normalises leaves what it saw: no pass more
            mean, var = torch.zeros_like(mean), torch.zeros_like(var)
            seen = {"running_mean": mean, "running_var": var, "training": True, "momentum": 1.0}
            result = F.batch_norm(**{**given, **seen})
        else:
            x = given["input"]
            var, mean = torch.var_mean(x.float(), [d for d in range(x.dim()) if d != 1])
            result = subnet_batch_norm(**{**given, "training": True})
        for name, value in (("running_mean", mean), ("running_var", var)):
            site = nodes[name]
            if isinstance(site, fx.Node) and site.target is tensor:
                key = self.program.sites[int(site.args[1])].name  # type: ignore[arg-type]
                self.sums[key] = self.sums.get(key, 0) + value
        return result
