"""The laws, checked on one model by numbers, and what breaks them found width by width."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from ..checks import seed_of
from ..errors import NetAugFXError, VerifyError
from ..model import WideModel
from ..parts import WideParts, share
from ..plan import Config
from ..trace import random_states_kept
from .judge import Judge, said, short_of_memory
from .together import fault_of_the_whole


@dataclass(frozen=True)
class Report:
    """What `verify` found; true where nothing breaks a law.

    Args (fields):
        failures: Law number -> what breaks it.
        configs: What was tried.
        unchecked: Law number -> why it was not checked: `extract`, which law 3 is about, refused.
        dtype: What it was checked in; float32 where the model does not run in float64, or memory is short.
        since: Why it was not float64.
    """

    failures: Mapping[int, str]
    configs: tuple[Config, ...]
    unchecked: Mapping[int, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    since: str = ""

    def __bool__(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        parts = [f"law {n}: {text}" for n, text in self.failures.items()]
        if not parts:
            laws = [str(n) for n in (2, 3, 4) if n not in self.unchecked]
            held = f"{', '.join(laws[:-1])} and {laws[-1]}"
            parts = [f"laws {held} hold at {len(self.configs)} configs"]
        parts += [f"law {n} was not checked: {why}" for n, why in self.unchecked.items()]
        if self.dtype != torch.float64:
            parts += [f"checked in {self.dtype}, since {self.since}"]
        return "; ".join(parts)


def verify(
    wide: WideModel, configs: Iterable[Mapping[str, int]] | None = None, seed: int = 0
) -> Report:
    """Check laws 2, 3 and 4 by numbers, in float64, on random inputs shaped as the example; `wide` is not changed.

    A model that does not run in float64, or not in the memory that there is, is checked in float32. A model in parts
    is checked part by part, then as a whole: law 2, and that subnets run where the base does.

    2: the base computes the same before and after a subnet ran, and a subnet's pass leaves its buffers alone.
    3: the subnet at a config computes what `extract` gives, outputs and gradients of shared Parameters.
    4: with the blocks zeroed that carry new inputs into base outputs, the base channels of every tensor in the
       subnet are what the base computes, with its own statistics of batch norm.

    Args:
        wide: What to check.
        configs: What to try; the largest config and a random one where not given.
        seed: Of inputs and of the random config.

    Returns:
        A report that is true if no law is broken. Where `extract` refuses, law 3 cannot be checked, which the
        report says: `report.unchecked[3]` is the reason.

    Raises:
        VerifyError: The model has no values (it is on the meta device); its own backward pass fails; memory is short
            in float32 too.
    """
    if not isinstance(wide, WideModel):
        raise VerifyError(f"verify expects what widen() returned; {type(wide).__name__} came.")
    if any(p.device.type == "meta" for p in wide.parameters()):
        raise VerifyError(
            "verify needs values: the model is on the meta device; use verify=False there."
        )
    for name, p in wide.named_parameters():
        if not bool(p.isfinite().all()):
            raise VerifyError(
                f"verify needs finite values: '{name}' holds NaN or inf; mend it, or use verify=False."
            )
    if isinstance(configs, Mapping) or not isinstance(configs, Iterable | None):
        raise VerifyError(f"verify: configs must be a list of configs; {configs!r} came.")
    generator = torch.Generator().manual_seed(seed_of(seed, "verify"))
    chosen = (
        (wide.max_config, wide.sample(generator))
        if configs is None
        else tuple(wide.plan.config(c) for c in configs)
    )
    chosen = tuple(c for c in dict.fromkeys(chosen) if c != wide.base_config)
    if isinstance(wide, WideParts):
        return _joint(wide, chosen, seed)
    with random_states_kept(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*wider subnets"
        )  # of attributes: this is a copy
        try:
            report = _judged(wide, chosen, seed, torch.float64)
            since = "the model does not run in float64"
        except MemoryError as error:
            report, since = None, f"float64 takes more memory than there is ({error})"
        if report is not None:
            return report
        try:
            report = _judged(wide, chosen, seed, torch.float32)
        except MemoryError as error:
            raise VerifyError(
                f"Memory is short for verification ({error}): it runs the widest subnet forward and backward on inputs "
                "like the example. Give example_inputs of fewer samples or pixels, or verify=False."
            ) from error
        assert report is not None
        return replace(report, since=since)


def _judged(
    wide: WideModel, configs: tuple[Config, ...], seed: int, dtype: torch.dtype
) -> Report | None:
    """Return what is found in one dtype; None where the model does not run in float64.

    Raises:
        MemoryError: Memory is short.
        VerifyError: The model's own backward pass fails, in float32 too.
    """
    try:
        judge = Judge(wide, seed, dtype)
    except (NetAugFXError, RuntimeError) as error:
        if short_of_memory(error):
            raise MemoryError(said(error)) from None
        if dtype == torch.float32:
            raise
        return None
    failures, unchecked = judge.faults(configs)
    report = Report(failures, configs, unchecked, dtype)
    if report:
        return report
    runs = judge.base_runs()
    wrong = judge.backward_fails() if runs else None
    if dtype != torch.float32:
        return report if runs and wrong is None else None
    if wrong is not None:
        raise VerifyError(
            f"The backward pass of the model itself fails ({wrong}), so that it cannot be trained; mend it, or use "
            "verify=False."
        )
    return report


def _joint(wide: WideParts, configs: tuple[Config, ...], seed: int) -> Report:
    """Return what is found of all parts; where that is nothing, of the whole."""
    failures: dict[int, str] = {}
    unchecked: dict[int, str] = {}
    dtype, since = torch.float64, ""
    for path, part in wide.wides.items():
        report = verify(part, [share(c, path) for c in configs], seed)
        failures = {n: f"{path}: {text}" for n, text in report.failures.items()} | failures
        unchecked = {n: f"{path}: {why}" for n, why in report.unchecked.items()} | unchecked
        if report.since:
            dtype, since = report.dtype, f"{report.since}, in {path}"
    if not failures and (wrong := fault_of_the_whole(wide, configs, seed)):
        failures[2] = wrong
    return Report(failures, configs, unchecked, dtype, since)


def culprits(wide: WideModel) -> list[str]:
    """Return widths that must be pinned for the laws to hold: tried one by one, then jointly by bisection.

    None where a law is broken while nothing grows.
    """
    if isinstance(wide, WideParts):
        return _culprits_of_parts(wide)
    names = _growing(wide)

    def lawful(some: Iterable[str]) -> bool:
        return bool(verify(wide, [_largest(wide, some)]))

    if not lawful(()):
        return []
    alone = [name for name in names if not lawful([name])]
    if alone:
        return alone
    good: list[str] = []  # a joint fault: the shortest prefix that fails ends in a culprit
    low, high = 0, len(names)
    if lawful(names):
        return good
    while low < high:
        middle = (low + high) // 2
        if lawful(names[: middle + 1]):
            low = middle + 1
        else:
            high = middle
    return [names[low]] if low < len(names) else names


def _culprits_of_parts(wide: WideParts) -> list[str]:
    """Return what is at fault in each part; where each is lawful by itself, all of those that fail in the whole."""
    found = [
        f"{path}.{name}"
        for path, part in wide.wides.items()
        if not verify(part, [part.max_config])
        for name in culprits(part)
    ]
    if found:
        return found
    parts = [[n for n in _growing(wide) if n.startswith(f"{path}.")] for path in wide.wides]
    alone = [p for p in parts if fault_of_the_whole(wide, (_largest(wide, p),), seed=0)]
    return [name for names in alone or parts for name in names]


def _growing(wide: WideModel) -> list[str]:
    return [w.name for w in wide.plan.widths if len(w.choices) > 1]


def _largest(wide: WideModel, names: Iterable[str]) -> Config:
    """Return the config at which these widths alone have their largest size."""
    return wide.plan.config({name: wide.widths[name].choices[-1] for name in names})
