"""Why a forward fails while it is traced, in words for who wrote it."""

from __future__ import annotations

import re
from types import TracebackType

from .lines import is_user_file

# What PyTorch says, on the meta device, of an operator whose result depends on data; the group is the operator.
_READS = (
    re.compile(r"register_meta function for torch\.(\w+)"),
    re.compile(r"^Tensor\.(\w+)\(\) cannot be called on meta tensors"),
    re.compile(r"^cannot (\w+) a meta tensor"),
    re.compile(r"^\w+::(\w+) .*data-dependent"),
)
_NO_KERNEL = re.compile(r"^(\w+::\w+)\S*: attempted to run this operator with Meta tensors")


def about_meta(error: BaseException) -> bool:
    """Whether an operator failed as it has no data, or no kernel, on the meta device."""
    if isinstance(error, NotImplementedError):
        return not is_user_file(_innermost(error.__traceback__))
    return "meta" in str(error).lower()


def _innermost(traceback: TracebackType | None) -> str:
    """The file that an error comes from."""
    file = ""
    while traceback is not None:
        file, traceback = traceback.tb_frame.f_code.co_filename, traceback.tb_next
    return file


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def reason_of(error: BaseException, source: str) -> str:
    """Why a forward fails under tracing alone.

    Args:
        error: What it raised.
        source: The user's line, as "file.py:41".
    """
    text = first_line(error)
    for pattern in _READS:
        if found := pattern.search(text):
            return f"reads tensor data ({found[1]}) at {source}"
    if found := _NO_KERNEL.search(text):
        return f"calls {found[1]}, which PyTorch cannot run without data, at {source}"
    return f"fails under tracing at {source}: {text}"
