"""Question: which networks does netaugfx widen, how much of them, and do the laws hold?

    python benchmarks/coverage.py --names timm --out docs/results/coverage      # all of timm's CNNs
    python benchmarks/coverage.py --names FILE --out DIR                        # names, one a line

For every name: plan; widen by 1.5 with verification off; law 1 on the copy; laws 2, 3 and 4 by `netaugfx.verify` on
widths that each grow by another amount. Each model has a process of its own, bounded in time and memory. Results go to
OUT.jsonl as they come, a second run goes on where the first stopped, and OUT.md is written from them at the end.
Above --most-parameters the plan alone is made, on the meta device.

Machine of the figures in docs/results: 2 cores, 24 GiB, no accelerator.
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
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

import netaugfx
from netaugfx.solve import OUTPUT
from netaugfx.widen import probe

SIDES = (32, 64, 96, 128, 224)


def build(name: str, device: str) -> torch.nn.Module:
    """Return the untrained model of a timm name, or of `torchvision:NAME`."""
    with torch.device(device):
        if name.startswith("torchvision:"):
            options: dict[str, Any] = {"weights": None}
            builder = torchvision.models.get_model_builder(name.partition(":")[2])
            if "weights_backbone" in builder.__annotations__:
                options["weights_backbone"] = None
            return torchvision.models.get_model(name.partition(":")[2], **options)
        return timm.create_model(name)


def planned(model: torch.nn.Module, factor: float) -> tuple[netaugfx.Plan, torch.Tensor]:
    """Return the plan at the smallest image that the model takes."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    own = int(cfg.get("input_size", (3, 224, 224))[-1])
    last: Exception | None = None
    for side in (*(s for s in SIDES if s < own), own):
        x = torch.empty(2, 3, side, side, device="meta")
        try:
            return netaugfx.plan(model, factor=factor, example_inputs=x), x
        except (netaugfx.NetAugFXError, RuntimeError) as error:
            last = error
    assert last is not None
    raise last


def law_1(model: torch.nn.Module, wide: netaugfx.WideModel) -> str:
    """Return what the round trip changes, nothing if it changes nothing."""
    base = netaugfx.extract_base(wide)
    if type(base) is not type(model):
        return "class"
    mine, theirs = model.state_dict(), base.state_dict()
    if list(mine) != list(theirs):
        return "state_dict keys"
    return next((k for k in mine if not torch.equal(mine[k], theirs[k])), "")


def judge(name: str, most: float) -> dict[str, Any]:
    """Return one row of the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {"model": name}
    torch.manual_seed(0)
    meta = build(name, "meta")
    row["parameters"] = sum(p.numel() for p in meta.parameters())
    big = row["parameters"] > most
    model = meta if big else build(name, "cpu")
    start = time.perf_counter()
    plan, x = planned(model, 1.5)
    row["side"] = x.shape[-1]
    start = time.perf_counter()
    plan = netaugfx.plan(model, factor=1.5, example_inputs=x)
    row["plan_seconds"] = round(time.perf_counter() - start, 3)
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
    start = time.perf_counter()
    report = netaugfx.verify(wide, [wide.max_config])
    row["verify_seconds"] = round(time.perf_counter() - start, 2)
    row["verdict"] = f"law 1: {changed}" if changed else "lawful" if report else str(report)
    return row


def isolated(name: str, most: float, seconds: float, gigabytes: float) -> dict[str, Any]:
    """Judge one model in a process of its own."""
    here, there = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        limit = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        try:
            there.send(judge(name, most))
        except BaseException as error:  # the row says what happened; the sweep goes on
            there.send({"model": name, "verdict": f"{type(error).__name__}: {error}"[:400]})

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    row = {"model": name, "verdict": f"longer than {seconds:.0f} s"}
    if here.poll(seconds):
        try:
            row = here.recv()
        except EOFError:
            row = {"model": name, "verdict": "killed (memory)"}
    process.kill()
    process.join()
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a page."""
    fine = [r for r in rows if r["verdict"] in ("lawful", "planned")]
    shares = sorted(r["share"] for r in fine)
    seconds = sorted(r["plan_seconds"] for r in fine)
    lawful = sum(r["verdict"] == "lawful" for r in rows)
    lines = [
        f"{len(rows)} networks: {len(fine)} planned; {lawful} widened with laws 1 to 4 verified; elastic share: "
        f"median {statistics.median(shares):.3f}, lowest {shares[0]:.3f}; seconds to plan: "
        f"median {statistics.median(seconds):.2f}, longest {seconds[-1]:.2f}.",
        "",
        "| model | parameters | image | widths | elastic share | pinned (other than outputs) | plan (s) | verdict |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    for r in rows:
        why = "; ".join(f"{n} x {text}" for text, n in r.get("pinned", {}).items())
        lines.append(
            f"| {r['model']} | {r.get('parameters', 0):,} | {r.get('side', '')} | {r.get('widths', '')} | "
            f"{r.get('share', '')} | {why} | {r.get('plan_seconds', '')} | {r['verdict'].replace('|', '/')} |"
        )
    return "\n".join(lines) + "\n"


def names_of(text: str) -> list[str]:
    """Return the names that --names stands for."""
    if text == "timm":
        return timm.list_models()
    if text == "torchvision":
        rooms = (torchvision.models, torchvision.models.segmentation, torchvision.models.detection)
        return [f"torchvision:{n}" for room in rooms for n in torchvision.models.list_models(room)]
    return Path(text).read_text().split()


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
    options = parser.parse_args()
    log = options.out.with_suffix(".jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    seen = {row["model"] for row in known}
    k, n = map(int, options.part.split("/"))
    for name in names_of(options.names)[k::n]:
        if name in seen:
            continue
        row = isolated(name, options.most_parameters, options.seconds, options.gigabytes)
        known.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row["model"], row.get("share"), row.get("plan_seconds"), row["verdict"], flush=True)
    options.out.with_suffix(".md").write_text(table(known))


if __name__ == "__main__":
    main()
