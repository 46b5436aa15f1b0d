"""Try a rule of your own: an operator between two layers that can grow, with the laws checked around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import RuleError
from .plan import Plan
from .planning import plan as plan_of
from .verify import Report, verify
from .widen import probe, widen


class Between(nn.Module):
    """A linear layer per input along its channel axis, the operator, and a linear layer behind it.

    Args:
        operator: What is called with the tensors; a module is registered.
        examples: Its inputs.
        channel: Their channel axis.
        out_channel: The channel axis of the result.
    """

    def __init__(
        self,
        operator: Callable[..., Tensor],
        examples: tuple[Tensor, ...],
        channel: int,
        out_channel: int,
    ) -> None:
        super().__init__()
        self.channel, self.out_channel = channel, out_channel
        self.before = nn.ModuleList(nn.Linear(2, x.shape[channel]) for x in examples)
        # torch.library's operators cannot be copied, a function of them can
        self.operator = operator if isinstance(operator, nn.Module) else lambda *x: operator(*x)
        with torch.no_grad():
            result = operator(*examples)
        if not isinstance(result, Tensor):
            raise RuleError(
                f"check_rule: the operator gave {type(result).__name__}, and one tensor was expected; pick one, as in "
                "lambda x: torch.max(x, 2).values."
            )
        self.after = nn.Linear(result.shape[out_channel], 2)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors with 2 channels -> a tensor with 2 channels."""
        grown = [
            layer(x.transpose(self.channel, -1)).transpose(self.channel, -1).contiguous()
            for layer, x in zip(self.before, inputs, strict=True)
        ]
        result: Tensor = self.after(self.operator(*grown).transpose(self.out_channel, -1))
        return result


def check_rule(
    operator: Callable[..., Tensor],
    *examples: Tensor,
    channel: int = 1,
    out_channel: int | None = None,
) -> tuple[Plan, Report]:
    """Check what the rule of `operator` says, by the laws, on a small network around it.

    Args:
        operator: A function of tensors to one tensor, or a module; registered with `netaugfx.register_rule`.
        examples: Inputs, float32; shapes matter, and values for operators that are undefined somewhere.
        channel: The axis of the inputs that can grow.
        out_channel: The axis of the result that holds channels; `channel` where not given.

    Returns:
        The plan, whose widths `before.0` ... are those of the inputs and whose pins say what the rule does not
        let grow; and the report, true if laws 2, 3 and 4 hold with every width grown by another amount.

    Raises:
        RuleError: Nothing can grow around the operator: it has no rule, or its rule pins everything. No examples, or
            no single tensor as the result.

    Example:
        >>> import torch
        >>> from netaugfx.testing import check_rule
        >>> plan, report = check_rule(torch.add, torch.randn(2, 4, 5), torch.randn(2, 4, 5))
        >>> [width.name for width in plan.widths], bool(report)
        (['before.0'], True)
    """
    for x in examples or ("nothing",):
        if not isinstance(x, Tensor) or not -x.dim() <= channel < x.dim():
            came = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
            raise RuleError(
                f"check_rule: examples must be tensors, at least one, each with an axis {channel} of channels; {came} "
                "came."
            )
    network: Any = Between(
        operator, examples, channel, channel if out_channel is None else out_channel
    )
    inputs = []
    for x in examples:
        shape = list(x.shape)
        shape[channel] = 2
        inputs.append(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    found = plan_of(network, example_inputs=tuple(inputs))
    if not found.widths:
        raise RuleError(
            f"Nothing can grow around {getattr(operator, '__name__', operator)!r}: "
            + "; ".join(sorted(set(found.pinned.values())))
        )
    wide = widen(network, plan=probe(found), example_inputs=tuple(inputs), verify=False)
    return found, verify(wide, [wide.max_config])
