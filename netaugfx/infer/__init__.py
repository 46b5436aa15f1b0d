"""Graphs and rules -> Plan: every tensor axis gets a channel type; what may grow is named, what may not says why."""

from .inference import infer
from .lengths import axes_read
from .naming import out_channels
from .settle import names_kept
from .solve import OUTPUT, Typing, where

__all__ = ["OUTPUT", "Typing", "axes_read", "infer", "names_kept", "out_channels", "where"]
