"""NetAug as a LightningModule.

It needs `pip install lightning`:

    module = NetAugModule(netaugfx.widen(model), lambda p: torch.optim.SGD(p, lr=0.05))
    lightning.Trainer(max_epochs=10).fit(module, train_loader, validation_loader)
    tiny = netaugfx.extract_base(module.wide)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning
from torch import Tensor, nn

import netaugfx
from recipes.netaug import NetAugTask


class NetAugModule(lightning.LightningModule):
    """The loss of the base plus that of one sampled wider network per step; validates the base.

    Lightning does the backward pass, accumulates, clips and scales as its Trainer was told. A
    checkpoint holds the wide model and where sampling stands.

    Args:
        wide: what `netaugfx.widen` returned.
        optimizer: makes an optimiser, or what else `configure_optimizers` may return, from the
            Parameters.
        options: for NetAugTask: criterion, alpha, samples, kinds, sampler, seed.
    """

    def __init__(
        self,
        wide: netaugfx.WideModel,
        optimizer: Callable[[Iterable[nn.Parameter]], Any],
        **options: Any,
    ):
        super().__init__()
        self.wide = wide
        self._optimizer = optimizer
        self._task = (NetAugTask(wide, **options),)  # in a tuple: `wide` is registered once
        if isinstance(self.task.criterion, nn.Module):  # what it holds moves with the module
            self.criterion = self.task.criterion

    @property
    def task(self) -> NetAugTask:
        """The objective; its alpha and kinds may be changed between epochs."""
        return self._task[0]

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the base, (N, num_classes)."""
        return self.wide(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of one batch of images and labels."""
        result = self.task(*batch)
        parts = {name: value for name, value in result.items() if name.endswith("_loss")}
        self.log_dict({f"train_{name}": value for name, value in parts.items()})
        return result["loss"]

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Log the top-1 accuracy of the base, in percent, as `val_top1`."""
        images, labels = batch
        hits = self(images).argmax(1) == labels
        self.log("val_top1", 100 * hits.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Over the base's Parameters and their blocks."""
        return self._optimizer(self.wide.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add where sampling stands."""
        checkpoint["netaug"] = self.task.get_task_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up sampling where it stood."""
        self.task.load_task_state(checkpoint["netaug"])
