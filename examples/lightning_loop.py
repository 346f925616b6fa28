"""Distil from a store with Lightning.

    python examples/lightning_loop.py STORE DATA EPOCHS

STORE was made of DATA, such as digits or folder:PATH, by kdpipe cache-teacher. Needs pytorch-lightning.
"""

import sys

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.models import shufflenet_v2_x0_5
from torchvision.transforms import v2

import kdpipe
from kdpipe.dataset import load
from kdpipe.distil.losses import make
from kdpipe.pairing.attach import AttachedDataset
from kdpipe.store.reader import LogitStore


class Student(pl.LightningModule):
    """A ShuffleNetV2 that is trained on the teacher's logits and the labels."""

    def __init__(self, train_set: AttachedDataset, classes: int) -> None:
        """Train on ``train_set``."""
        super().__init__()
        self.train_set = train_set
        self.network = shufflenet_v2_x0_5(num_classes=classes)
        self.distillation = make("kd", temperature=4.0)

    def train_dataloader(self) -> DataLoader:
        """Select the view here too: Lightning loads a resumed run's first batches before the epoch starts."""
        self.train_set.set_epoch(self.current_epoch)
        return DataLoader(self.train_set, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)

    def on_train_epoch_start(self) -> None:
        """Select the epoch's view."""
        self.train_set.set_epoch(self.current_epoch)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Return the weighted sum of distillation and cross-entropy."""
        images, labels, soft_targets = batch
        logits = self.network(images)
        loss = 0.9 * self.distillation(logits, soft_targets, labels)
        loss += 0.1 * F.cross_entropy(logits, labels, ignore_index=-1)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Print the epoch's view and loss."""
        loss = self.trainer.callback_metrics["loss"]
        print(f"epoch {self.current_epoch}: view {self.train_set.view}, loss {loss:.4f}", flush=True)

    def test_step(self, batch: list[torch.Tensor]) -> None:
        """Log the accuracy and the agreement with the teacher."""
        images, labels, soft_targets = batch
        predictions = self.network(images).argmax(dim=1)
        self.log("top-1", (predictions == labels).float().mean())
        self.log("agreement with the teacher", (predictions == soft_targets.argmax(dim=1)).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def attached(store: LogitStore, data: str) -> AttachedDataset:
    """Return the store's split of a dataset, normalized, with soft targets."""
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])
    return kdpipe.attach(store, load(data, store.split, store.num_samples), transform=normalize)


def main(path: str, data: str, epochs: int) -> None:
    """Train the student, and print its loss in each epoch and its accuracy at the end."""
    pl.seed_everything(0, verbose=False)
    store, tests = kdpipe.open_store(path), kdpipe.open_store(path, split="test")
    student = Student(attached(store, data), store.num_classes)
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(student)
    (result,) = trainer.test(student, DataLoader(attached(tests, data), batch_size=64), verbose=False)
    print("test: " + ", ".join(f"{name} {value:.4f}" for name, value in result.items()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
