"""Distil from a store in a plain PyTorch loop.

    python examples/plain_pytorch.py STORE DATA EPOCHS

STORE was made of DATA, such as digits or folder:PATH, by kdpipe cache-teacher.
"""

import sys

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import kdpipe
from kdpipe.dataset import load
from kdpipe.distil.losses import make


def main(path: str, data: str, epochs: int) -> None:
    """Train a small network, and print its loss in each epoch and its accuracy at the end."""
    torch.manual_seed(0)
    store = kdpipe.open_store(path)
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])
    train_set = kdpipe.attach(store, load(data, "train", store.num_samples), transform=normalize)
    loader = DataLoader(train_set, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)

    model = network(store.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    distillation = make("kd", temperature=4.0)
    for epoch in range(epochs):
        train_set.set_epoch(epoch)
        total = 0.0
        for images, labels, soft_targets in loader:
            logits = model(images)
            loss = 0.9 * distillation(logits, soft_targets, labels)
            loss += 0.1 * F.cross_entropy(logits, labels, ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        print(f"epoch {epoch}: view {train_set.view}, loss {total / len(train_set):.4f}", flush=True)

    tests = kdpipe.open_store(path, split="test")
    test_set = kdpipe.attach(tests, load(data, "test", tests.num_samples), transform=normalize)
    images, labels, soft_targets = next(iter(DataLoader(test_set, batch_size=len(test_set))))
    with torch.inference_mode():
        predictions = model.eval()(images).argmax(dim=1)
    agreement = (predictions == soft_targets.argmax(dim=1)).float().mean()
    print(f"test: top-1 {(predictions == labels).float().mean():.4f}, agreement with the teacher {agreement:.4f}")


def network(classes: int) -> torch.nn.Module:
    """Return a small convolutional network for images of any size."""
    layers: list[torch.nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [torch.nn.Conv2d(inputs, outputs, 3, stride=2), torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, classes))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
