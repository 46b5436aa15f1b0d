"""Question: which networks does netaugfx widen, how much of them, and do the laws hold?

    python benchmarks/coverage.py --names benchmarks/families.txt --out runs/coverage  # one of each timm family
    python benchmarks/coverage.py --names torchvision --out runs/torchvision           # all of torchvision's builders
    python benchmarks/coverage.py --names benchmarks/families.txt --plans --out runs/plans
    python benchmarks/coverage.py --names benchmarks/pytorchcv.txt --out runs/pytorchcv        # pip install pytorchcv

For every name: plan; widen by 1.5 with verification off; law 1 on the copy; laws 2, 3 and 4 by `netaugfx.verify` on
widths that each grow by another amount. Each model has a process of its own, bounded in time and memory. Results go to
OUT.jsonl as they come, a second run goes on where the first stopped (and with --against completes its rows), and OUT.md
is written from them at the end.
With --plans, and above --most-parameters, the plan alone is made, on the meta device. --against torch-pruning says
beside it whether that package prunes half of the model's channels and the model then runs, within 30 seconds.

Exits with 1 if a model was neither planned nor found lawful, or if less of a plan grows than --least-share.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

import netaugfx
from netaugfx.infer import OUTPUT
from netaugfx.widen import probe

SIDES = (32, 64, 96, 128, 224)
ROOMS = (
    torchvision.models,
    torchvision.models.segmentation,
    torchvision.models.video,
    torchvision.models.detection,
)


def build(name: str, device: str) -> torch.nn.Module:
    """Return the untrained model of a timm name, of `torchvision:NAME` or of `pytorchcv:NAME`."""
    with torch.device(device):
        if name.startswith("pytorchcv:"):
            from pytorchcv.model_provider import get_model

            model: torch.nn.Module = get_model(name.partition(":")[2])
            return model
        if name.startswith("torchvision:"):
            options: dict[str, Any] = {"weights": None}
            builder = torchvision.models.get_model_builder(name.partition(":")[2])
            if "weights_backbone" in builder.__annotations__:
                options["weights_backbone"] = None
            return torchvision.models.get_model(name.partition(":")[2], **options)
        return timm.create_model(name)


def kind_of(name: str) -> str:
    """Return the room of torchvision's that a model is in, nothing for timm's."""
    if not name.startswith("torchvision:"):
        return ""
    return torchvision.models.get_model_builder(name.partition(":")[2]).__module__.split(".")[2]


def detects(name: str) -> bool:
    """Return whether a model finds boxes."""
    return kind_of(name) == "detection"


def examples(name: str, model: torch.nn.Module) -> list[Any]:
    """Return inputs to try, the smallest first."""
    if detects(name):
        model.eval()  # in training it wants boxes
        return [([torch.rand(3, 128, 128)],)]
    if kind_of(name) == "video":
        shapes = ((8, 64), (16, 112), (16, 224))
        return [torch.empty(2, 3, frames, side, side, device="meta") for frames, side in shapes]
    cfg = getattr(model, "pretrained_cfg", None) or {}
    own = int(cfg.get("input_size", (3, 224, 224))[-1])
    own = max(getattr(model, "in_size", (own,)))  # pytorchcv's
    sides = (*(side for side in SIDES if side < own), own, 299)
    return [torch.empty(2, 3, side, side, device="meta") for side in dict.fromkeys(sides)]


def planned(name: str, model: torch.nn.Module, factor: float) -> tuple[netaugfx.Plan, Any]:
    """Return the plan at the smallest image that the model takes."""
    last: Exception | None = None
    for x in examples(name, model):
        try:
            return netaugfx.plan(model, factor=factor, example_inputs=x), x
        except (netaugfx.NetAugFXError, RuntimeError) as error:
            last = error
    assert last is not None
    raise last


def pruned(name: str) -> str:
    """Return whether torch-pruning can halve the channels of a model that then runs."""
    import torch_pruning

    torch.manual_seed(0)
    model = build(name, "cpu").eval()
    x = next(
        torch.randn(x.shape) for x in examples(name, build(name, "meta")) if _runs(model, x.shape)
    )
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    last = [m for m in model.modules() if isinstance(m, layers)][-1]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[last],
    )
    pruner.step()
    model(x)
    return "runs"


def _runs(model: torch.nn.Module, shape: torch.Size) -> bool:
    try:
        with torch.no_grad():
            model(torch.randn(shape))
        return True
    except (RuntimeError, ValueError, AssertionError):
        return False


def law_1(model: torch.nn.Module, wide: netaugfx.WideModel) -> str:
    """Return what the round trip changes, nothing if it changes nothing."""
    base = netaugfx.extract_base(wide)
    if type(base) is not type(model):
        return "class"
    mine, theirs = model.state_dict(), base.state_dict()
    if list(mine) != list(theirs):
        return "state_dict keys"
    return next((k for k in mine if not torch.equal(mine[k], theirs[k])), "")


def judge(name: str, most: float, plans: bool) -> dict[str, Any]:
    """Return one row of the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {"model": name}
    torch.manual_seed(0)
    try:
        meta = build(name, "meta")
    except NotImplementedError:  # its constructor computes with values
        meta = build(name, "cpu")
    row["parameters"] = sum(p.numel() for p in meta.parameters())
    big = plans or row["parameters"] > most
    # A detector's children are traced apart, which runs it: its boxes need values.
    model = meta if big and not detects(name) else build(name, "cpu")
    plan, x = planned(name, model, 1.5)
    row["side"] = x.shape[-1] if isinstance(x, torch.Tensor) else x[0][0].shape[-1]
    start = time.process_time()
    plan = netaugfx.plan(model, factor=1.5, example_inputs=x)
    row["plan_seconds"] = round(time.process_time() - start, 3)
    row["widths"], row["share"] = len(plan.widths), round(plan.elastic_share, 4)
    reasons = [
        re.sub(r" \(.*?\)|'.*?' ?", "", why).strip()
        for why in plan.pinned.values()
        if why != OUTPUT
    ]
    row["pinned"] = dict(Counter(reasons).most_common(4))
    row["opaque"] = len(plan.opaque)
    if big or not plan.widths:
        row["verdict"] = "planned" if plan.widths else "nothing grows"
        return row
    wide = netaugfx.widen(model, plan=probe(plan), example_inputs=x, verify=False)
    changed = law_1(model, wide)
    start = time.process_time()
    report = netaugfx.verify(wide, [wide.max_config])
    row["verify_seconds"] = round(time.process_time() - start, 2)
    unchecked = report.unchecked.get(3)
    lawful = f"lawful, but law 3 was not checked: {unchecked}" if unchecked else "lawful"
    row["verdict"] = f"law 1: {changed}" if changed else lawful if report else str(report)
    if report.since:
        row["since"] = f"in float32: {report.since.partition(' (')[0]}"
    return row


def isolated(
    name: str, work_on: Callable[[], dict[str, Any]], seconds: float, gigabytes: float
) -> dict[str, Any]:
    """Return the row of one model, from a process of its own."""
    here, there = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        limit = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        try:
            there.send(work_on())
        except BaseException as error:  # the row says what happened; the sweep goes on
            there.send({"model": name, "verdict": f"{type(error).__name__}: {error}"[:400]})

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    there.close()  # else a process that was killed would be waited for
    row = {"model": name, "verdict": f"longer than {seconds:.0f} s"}
    if here.poll(seconds):
        try:
            row = here.recv()
        except EOFError:
            row = {"model": name, "verdict": "killed (memory)"}
    here.close()
    process.kill()
    process.join()
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a page."""
    fine = [r for r in rows if r["verdict"].startswith(("lawful", "planned"))]
    shares = sorted(r["share"] for r in fine)
    seconds = sorted(r["plan_seconds"] for r in fine)
    lawful = sum(r["verdict"] == "lawful" for r in rows)
    against = [r["torch_pruning"] for r in rows if "torch_pruning" in r]
    lines = [
        f"{len(rows)} networks: {len(fine)} planned; {lawful} widened with laws 1 to 4 verified; elastic share: "
        f"median {statistics.median(shares):.3f}, lowest {shares[0]:.3f}; seconds to plan: "
        f"median {statistics.median(seconds):.2f}, longest {seconds[-1]:.2f}.",
        "",
        *(
            [
                f"torch-pruning halves {against.count('runs')} of {len(against)} of them, and they run.",
                "",
            ]
            if against
            else []
        ),
        "| model | parameters | image | widths | elastic share | pinned (other than outputs) | plan (s) | verdict |"
        + " torch-pruning |" * bool(against),
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | --- |" + " --- |" * bool(against),
    ]
    for r in rows:
        why = "; ".join(f"{n} x {text}" for text, n in r.get("pinned", {}).items())
        verdict = ", ".join(s for s in (r["verdict"], r.get("since")) if s).replace("|", "/")
        other = re.sub(r"[|\s]+", " ", r.get("torch_pruning", ""))[:60]
        lines.append(
            f"| {r['model']} | {r.get('parameters', 0):,} | {r.get('side', '')} | {r.get('widths', '')} | "
            f"{r.get('share', '')} | {why} | {r.get('plan_seconds', '')} | {verdict} |"
            + f" {other} |"
            * bool(against)
        )
    return "\n".join(lines) + "\n"


def names_of(text: str) -> list[str]:
    """Return the names that --names stands for."""
    if text == "timm":
        return timm.list_models()
    if text == "torchvision":
        return [f"torchvision:{n}" for room in ROOMS for n in torchvision.models.list_models(room)]
    room = "pytorchcv:" if Path(text).name == "pytorchcv.txt" else ""
    return [room + name for name in Path(text).read_text().split()]


def main() -> None:
    """Sweep, or go on with a sweep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--names", required=True, help="timm, torchvision, or a file of names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0, help="bound for one model")
    parser.add_argument("--gigabytes", type=float, default=12.0, help="bound for one model")
    parser.add_argument("--most-parameters", type=float, default=100e6)
    parser.add_argument("--part", default="0/1", help="k/n: every n-th name from the k-th on")
    parser.add_argument("--plans", action="store_true", help="plan alone, on the meta device")
    parser.add_argument("--processes", type=int, default=1, help="models at a time")
    parser.add_argument("--least-share", type=float, default=0.0)
    parser.add_argument("--against", choices=["torch-pruning"])
    options = parser.parse_args()
    log = options.out.with_suffix(".jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines() if log.exists() else []
    found = {row["model"]: row for row in map(json.loads, lines)}  # of two lines the later one
    k, n = map(int, options.part.split("/"))

    def row_of(name: str) -> dict[str, Any]:
        bounds = options.seconds, options.gigabytes
        work_on = partial(judge, name, options.most_parameters, options.plans)
        row = found.get(name) or isolated(name, work_on, *bounds)
        if options.against:
            other = isolated(name, lambda: {"verdict": pruned(name)}, 30.0, options.gigabytes)
            row["torch_pruning"] = other["verdict"]
        return row

    last = "torch_pruning" if options.against else "model"
    names = [name for name in names_of(options.names)[k::n] if last not in found.get(name, {})]
    with ThreadPoolExecutor(options.processes) as pool:
        for row in pool.map(row_of, names):
            found[row["model"]] = row
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                row["model"], row.get("share"), row.get("plan_seconds"), row["verdict"], flush=True
            )
    rows = list(found.values())
    options.out.with_suffix(".md").write_text(table(rows))
    wrong = [
        f"{row['model']}: {row['verdict']}, share {row.get('share')}"
        for row in rows
        if not row["verdict"].startswith(("lawful", "planned"))
        or row["share"] < options.least_share
    ]
    print(f"{len(rows)} models, {len(wrong)} of them not as they should be", *wrong, sep="\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
