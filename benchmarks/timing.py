"""What the benchmarks share: models, interleaved timing, and where the tables go."""

from __future__ import annotations

import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
import torchvision

PAGE = Path(__file__).parent.parent / "docs/results/performance.md"
MODELS = (
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mnasnet_small",
    "resnet18",
    "regnetx_002",
    "efficientnet_b0",
    "densenet121",
    "torchvision:shufflenet_v2_x0_5",
    "convnext_atto",
)


def build(name: str) -> torch.nn.Module:
    """Return the untrained model of a timm name, or of `torchvision:NAME`."""
    torch.manual_seed(0)
    if name.startswith("torchvision:"):
        return torchvision.models.get_model(name.partition(":")[2], weights=None)
    return timm.create_model(name)


def seconds(run: Callable[[], object]) -> float:
    """Return how long one call takes: on a GPU by the clock, on the CPU in seconds of this process.

    The latter do not count the time that other jobs have the core. With several threads they would count every thread.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    if torch.cuda.is_available():
        clock = time.perf_counter
        torch.cuda.synchronize()
    start = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def ratio(a: Callable[[], object], b: Callable[[], object], pairs: int) -> float:
    """Return the median over pairs of the time of `a` over that of `b`, run in turn."""
    for run in (a, b, a, b):
        run()
    return statistics.median(seconds(a) / seconds(b) for _ in range(pairs))


def machine() -> str:
    """Return the machine, the versions, how busy it was, and the day."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    name = found.group(1) if found else platform.processor() or platform.machine()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    return f"{name}, {load}, PyTorch {torch.__version__}, {time.strftime('%d %B %Y')}"


def publish(name: str | None, note: str, lines: Sequence[str]) -> None:
    """Print a table; put it into the page of results, in place of the one of that `name`."""
    kept = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(("OMP_NUM", "MALLOC_"))]
    words = [a for i, a in enumerate(sys.argv) if "--write" not in (a, sys.argv[i - 1])]
    command = " ".join([*kept, "python", *map(shlex.quote, words)])
    text = "\n".join([f"`{command}`", "", f"{note} {machine()}.", "", *lines])
    print(text)
    if name is None:
        return
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = PAGE.read_text()
    if start not in page:
        page = f"{page.rstrip()}\n\n{start}\n{end}\n"
    before, rest = page.split(start)
    PAGE.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}")
