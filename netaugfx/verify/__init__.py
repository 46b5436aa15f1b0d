"""The laws, checked on one model by numbers."""

from .laws import Report, culprits, verify

__all__ = ["Report", "culprits", "verify"]
