"""Read an attached dataset through a ``DataLoader``: a program, so that a deadlock ends with a timeout.

python read_attached.py STORE SPEC OUT EPOCHS WORKERS METHOD PERSISTENT [MEMORY_LIMIT]
"""

import sys

import numpy as np
import torch
from torch.utils.data import DataLoader

from kdpipe import attach, open_store
from kdpipe.dataset import load


def main() -> None:
    path, spec, out, epochs, workers, method, persistent, *limit = sys.argv[1:]
    store = open_store(path)
    store.plane(0)  # threads have run: what a fork inherits of them must not be needed
    if limit:
        store = open_store(path, memory_limit=int(limit[0]))
    attached = attach(store, load(spec, "train"))
    loader = DataLoader(
        attached,
        batch_size=4,
        sampler=attached.sampler(),
        num_workers=int(workers),
        multiprocessing_context=method,
        persistent_workers=persistent == "persistent",
    )
    read = {}
    for epoch in range(int(epochs)):
        attached.set_epoch(epoch)
        images, labels, soft_targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
        read |= {f"images {epoch}": images, f"labels {epoch}": labels, f"soft {epoch}": soft_targets}
    np.savez(out, **{name: value.numpy() for name, value in read.items()})


if __name__ == "__main__":
    main()
