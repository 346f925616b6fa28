"""Distil from a store with timm's model, optimizer, scheduler, weight average and meters.

    python examples/timm_loop.py STORE DATA EPOCHS

STORE was made of DATA, such as digits or folder:PATH, by kdpipe cache-teacher. Needs timm.
"""

import sys

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy, random_seed
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import kdpipe
from kdpipe.dataset import load
from kdpipe.distil.losses import make


def main(path: str, data: str, epochs: int) -> None:
    """Train timm's test_resnet, and print its loss in each epoch and its accuracy at the end."""
    random_seed(0)
    store = kdpipe.open_store(path)
    model = timm.create_model("test_resnet", num_classes=store.num_classes)
    config = resolve_model_data_config(model)
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(config["mean"], config["std"])])
    dataset_train = kdpipe.attach(store, load(data, "train", store.num_samples), transform=transform)
    tests = kdpipe.open_store(path, split="test")
    dataset_eval = kdpipe.attach(tests, load(data, "test", tests.num_samples), transform=transform)
    loader_train = DataLoader(dataset_train, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)
    loader_eval = DataLoader(dataset_eval, batch_size=64)

    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=epochs, step_on_epochs=False, updates_per_epoch=len(loader_train)
    )
    model_ema = ModelEmaV3(model, decay=0.9)
    updates = 0
    for epoch in range(epochs):
        dataset_train.set_epoch(epoch)
        losses = AverageMeter()
        model.train()
        for images, target, soft_target in loader_train:
            loss = distillation_loss(model(images), target, soft_target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            scheduler.step_update(num_updates=updates)
            model_ema.update(model, step=updates)
            losses.update(loss.item(), len(target))
        print(f"epoch {epoch}: view {dataset_train.view}, loss {losses.avg:.4f}", flush=True)
    print(f"test: top-1 {top1(model, loader_eval):.4f}, of the average {top1(model_ema.module, loader_eval):.4f}")


def distillation_loss(output: torch.Tensor, target: torch.Tensor, soft_target: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of distillation at temperature 4 and cross-entropy."""
    distilled = make("kd", temperature=4.0)(output, soft_target, target)
    return 0.9 * distilled + 0.1 * F.cross_entropy(output, target, ignore_index=-1)


@torch.inference_mode()
def top1(model: torch.nn.Module, loader: DataLoader) -> float:
    """Return the accuracy on a loader, 0 to 1."""
    model.eval()
    meter = AverageMeter()
    for images, target, _ in loader:
        meter.update(accuracy(model(images), target)[0].item() / 100, len(target))
    return meter.avg


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
