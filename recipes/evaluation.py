"""How good a network is on images it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from recipes.errors import DataError


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable, accelerator: Accelerator) -> dict[str, float]:
    """Cross entropy, top-1 and top-5 of `model`, which is put in eval mode.

    Returns:
        "loss" in nats, "top1" and "top5" in percent (top-5 of all classes where there are fewer).
    """
    model.eval()
    loss, top1, top5, count = 0.0, 0, 0, 0
    for images, labels in batches(loader):
        with accelerator.autocast():
            logits = model(images)
        logits, labels = accelerator.gather_for_metrics((logits, labels))
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss += nn.functional.cross_entropy(logits.float(), labels, reduction="sum").item()
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.any(1).sum())
        count += len(labels)
    return {"loss": loss / count, "top1": 100.0 * top1 / count, "top5": 100.0 * top5 / count}


def batches(loader: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `loader`; a DataError from a worker loses the traceback in its text."""
    try:
        yield from loader
    except DataError as error:
        raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from error
