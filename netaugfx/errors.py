"""What can go wrong, one class each.

Every message says what came, what was expected and what to do.
"""

from __future__ import annotations


class NetAugFXError(Exception):
    """The base of every error that netaugfx raises on purpose."""


class TraceError(NetAugFXError):
    """The model could not be turned into a graph."""


class InputError(NetAugFXError, ValueError):
    """Example inputs, or inputs of a forward pass, do not fit the model."""


class ConfigError(NetAugFXError, ValueError):
    """A config names an unknown width, or a size that is not one of its choices."""


class PlanError(NetAugFXError, ValueError):
    """A plan cannot be made, or does not fit the model that it is used with."""


class StateError(NetAugFXError, RuntimeError):
    """A checkpoint is not of the base that it is to be loaded into."""


class RuleError(NetAugFXError):
    """A channel rule is missing, or contradicts the operator that it describes."""


class PinnedError(NetAugFXError):
    """Widths had to be pinned although `strict=True` was asked for."""


class GuardError(NetAugFXError):
    """A value that Python read while tracing has changed, and retracing gives other couplings."""


class ExtractError(NetAugFXError):
    """A subnet cannot be turned into a network of plain modules."""


class VerifyError(NetAugFXError):
    """A law does not hold on this model, and pinning widths did not mend it; or it cannot be checked."""
