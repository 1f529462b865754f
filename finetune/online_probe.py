"""A linear classifier that is trained beside the masked autoencoder, on the features of its own training passes."""

from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from bamboo.errors import InputError
from bamboo.training import is_logged
from bamboo.vision.encoder import encode
from bamboo.vision.image_data import ImageData


class LinearProbe(Callback):
    """Trains a linear classifier during pretraining, and logs how often it is right on whole validation images.

    Its features are the mean of the visible patch tokens after the encoder's final norm, taken from the training pass
    itself: no second pass, no gradient into the encoder, no random number. A batch norm without weights and a linear
    layer that starts at zero, in fp32, take one step of AdamW per batch, accumulated or not. Images without a label
    (-1) count in the batch norm alone. Processes average gradients and running statistics, so that all hold one
    classifier; each normalises by its own batch.

    Logged are `probe/online_train_loss` and `probe/online_train_top1`, means of the first process since the last log,
    and `probe/online_top1` with each validation. Without labels, or in batches of one image, it does nothing.

    Args:
        lr: learning rate, which stays as it is.

    Raises:
        InputError: for a rate that is not positive; at the start of training for a module without a masked autoencoder,
            or a resumed run with another number of classes or features.
    """

    def __init__(self, lr: float = 3e-3) -> None:
        if lr <= 0:
            raise InputError(f"lr of LinearProbe must be positive, got {lr}")
        self.lr = lr
        self.head: nn.Sequential | None = None
        self.top1: float | None = None
        self._resumed: dict[str, Any] = {}
        self._watching = ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """Classifier, batch norm and optimizer, the sums since the last log, and the last accuracy."""
        if self.head is None:
            return {}
        parts = {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**parts, "sums": self.sums, "top1": self.top1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the run that is resumed until the classifier is there."""
        self._resumed = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the classifier where there are labels, and take up the state of a resumed run."""
        self.head, data = None, trainer.datamodule  # type: ignore[attr-defined]
        classes = count_classes(data)
        reasons = {
            "the training images have no labels": not classes,
            "batches of one image cannot be normalised": getattr(data, "batch_size", 2) < 2,
            "passes that are replayed as a graph show no features": getattr(pl_module, "replays", False),
        }
        if why := next((reason for reason, applies in reasons.items() if applies), None):
            if trainer.is_global_zero:
                print(f"no online linear probe: {why}")
            return
        if not hasattr(pl_module, "mae"):
            raise InputError(f"LinearProbe belongs to a masked autoencoder, not to {type(pl_module).__name__}")
        module: Any = pl_module
        encoder, device = module.mae.encoder, trainer.strategy.root_device
        self.head = build_head(encoder.embed_dim, classes).to(device)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=self.lr, weight_decay=0.0)
        self.sums, self._step = torch.zeros(3, device=device), trainer.global_step  # loss, right answers, labels
        if self._resumed:
            self._resume(self.head)

    def _resume(self, head: nn.Sequential) -> None:
        here, there = (tuple(state["1.weight"].shape) for state in (head.state_dict(), self._resumed["head"]))
        if here != there:
            raise InputError(
                f"the online linear probe of the checkpoint has (classes, features) {there} and this run {here}: "
                "leave the callback out, or start a new run"
            )
        head.load_state_dict(self._resumed["head"])
        self.optimizer.load_state_dict(self._resumed["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.sums.copy_(self._resumed["sums"])
        self.top1, self._resumed = self._resumed["top1"], {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch the final norm, in this training pass alone; of norms of several layers the last counts."""
        if self.head is not None:
            encoder: Any = pl_module.mae.encoder  # type: ignore[union-attr]

            def keep(norm: nn.Module, args: Any, tokens: Tensor) -> None:
                self._tokens = tokens.detach()[:, encoder.num_prefix_tokens :]

            self._watching.callback(encoder.norm.register_forward_hook(keep).remove)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The training pass is over: look away before anything else runs the encoder."""
        self._watching.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._watching.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a step, and log at the steps that are logged: the host waits for the device there alone."""
        if self.head is None:
            return
        self._train(self.head, self._tokens.float().mean(dim=1), batch["label"], trainer.world_size)
        del self._tokens
        if trainer.global_step == self._step or not is_logged(trainer, trainer.global_step):
            return  # in between accumulated batches too
        self._step = trainer.global_step
        loss, right, count = self.sums.tolist()
        self.sums.zero_()
        if count:
            logs = {"loss": loss / count, "top1": right / count}
            pl_module.log_dict({f"probe/online_train_{name}": torch.tensor(value) for name, value in logs.items()})

    def _train(self, head: nn.Sequential, features: Tensor, labels: Tensor, processes: int) -> None:
        """One step on features (B, D) and labels (B,) of this process."""
        logits = head.train()(features)
        # A sum, to be divided by the labels of all processes, of which each may have another number.
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        self.optimizer.zero_grad()
        loss.backward()
        count = (labels >= 0).sum().float()
        self.sums += torch.stack([loss.detach(), (logits.argmax(dim=1) == labels).sum(), count])
        gradients = [p.grad for p in head.parameters() if p.grad is not None]
        if processes > 1:
            statistics = [buffer for buffer in head.buffers() if buffer.is_floating_point()]
            for tensor in (*gradients, *statistics, count):
                distributed.all_reduce(tensor)
            torch._foreach_div_(statistics, processes)
        for gradient in gradients:
            gradient /= count.clamp(min=1)
        self.optimizer.step()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._counts = torch.zeros(2, device=trainer.strategy.root_device)  # right answers, labels

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count right answers for whole images, by one more pass through the encoder; a batch may be empty."""
        if self.head is None or not len(batch["image"]):
            return
        module: Any = pl_module
        encoder, labels = module.mae.encoder, batch["label"]
        with trainer.precision_plugin.forward_context():
            tokens = encode(encoder, module.pixels(batch["image"]))[:, encoder.num_prefix_tokens :]
        answers = self.head.eval()(tokens.float().mean(dim=1)).argmax(dim=1)
        self._counts += torch.stack([(answers == labels).sum(), (labels >= 0).sum()])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the share of right answers over all processes."""
        if self.head is None:
            return
        right, count = trainer.strategy.reduce(self._counts, reduce_op="sum").tolist()
        if count:
            self.top1 = right / count
            pl_module.log("probe/online_top1", torch.tensor(self.top1))

    def summary(self) -> dict[str, str]:
        """What to print at the end of a run."""
        return {} if self.top1 is None else {"online linear probe, top-1": f"{100 * self.top1:.1f} %"}


def build_head(width: int, classes: int) -> nn.Sequential:
    """A batch norm without weights and a linear layer of zeros, (B, width) to (B, classes); nothing is drawn."""
    linear = nn.utils.skip_init(nn.Linear, width, classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, eps=1e-6, affine=False), linear)


def count_classes(data: Any) -> int:
    """Number of classes of the images to train on, 0 where they have no labels, though others may."""
    if isinstance(data, ImageData):
        return int(data.sources.train.labels.max()) + 1
    return int(getattr(data, "num_classes", 0))
