"""Lines of the user's source, as "file.py:41"."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch

_HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_SHAPES = "_meta_registrations.py"  # of torchvision: what its operators do on the meta device
UNKNOWN = "an unknown line"


def running_source() -> str | None:
    """The innermost line of user code that a trace is running; of torch's, where all is torch's own containers."""
    frame: FrameType | None = sys._getframe(1)
    inside = None
    while frame is not None and frame.f_code.co_name != "trace_root":
        file, here = frame.f_code.co_filename, _line(frame.f_code.co_filename, frame.f_lineno)
        if is_user_file(file):
            return here
        if file.startswith(_TORCH) and frame.f_code.co_name == "forward":
            inside = inside or here
        frame = frame.f_back
    return inside


def _line(file: str, line: int) -> str:
    return f"{os.path.basename(file)}:{line}"


def is_user_file(file: str) -> bool:
    """Whether a file is neither torch's nor this package's."""
    return not file.startswith((_TORCH, _HERE, "<")) and not file.endswith(_SHAPES)


def source_of(traceback: TracebackType | None) -> str:
    """The innermost line of user code in a traceback, as "file.py:41"."""
    source = UNKNOWN
    while traceback is not None:
        if is_user_file(traceback.tb_frame.f_code.co_filename):
            source = _line(traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return source


def origin_of(function: Callable[..., Any]) -> str:
    """Where a function is defined, as "file.py:41"."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return _line(code.co_filename, code.co_firstlineno) if code else UNKNOWN
