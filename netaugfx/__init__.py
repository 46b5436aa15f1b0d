"""Train tiny networks inside larger ones that share their weights, and get the exact network back."""

from .contract import extract, extract_base
from .errors import (
    ConfigError,
    ExtractError,
    GuardError,
    InputError,
    NetAugFXError,
    PinnedError,
    PlanError,
    RuleError,
    StateError,
    TraceError,
    VerifyError,
)
from .model import WideModel
from .plan import Config, Layer, Plan, Width
from .planning import plan
from .report import describe, picture, to_networkx
from .rules import register_rule
from .verify import verify
from .widen import widen

__version__ = "0.1.0"
__all__ = [
    "Config", "ConfigError", "ExtractError", "GuardError", "InputError", "Layer", "NetAugFXError", "PinnedError",
    "Plan", "PlanError", "RuleError", "StateError", "TraceError", "VerifyError", "WideModel", "Width", "describe",
    "extract", "extract_base", "picture", "plan", "register_rule", "to_networkx", "verify", "widen",
]  # fmt: skip
