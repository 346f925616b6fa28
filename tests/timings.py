"""Timings for tests of what is made from them."""

from __future__ import annotations

from kdpipe.benchmark.timing import Network, Timing, Workload


def timed(
    ms_by_batch: dict[int, float], *, network: Network | None = None, **others: str | int
) -> dict[Workload, Timing]:
    """Return timings of one network by batch size, each of 50 rounds whose passes all take the same time.

    ``others`` are parts of the workloads, such as ``engine="onnx"``.
    """
    network = network or Network("resnet8", "0" * 16, 32)
    found = {}
    for batch_size, ms in ms_by_batch.items():
        workload = Workload(network=network, batch_size=batch_size, **others)  # type: ignore[arg-type]
        passes = ((round(ms * 1e6),),) * 50
        found[workload] = Timing(wall_ns=passes, cpu_ns=passes, batch_size=batch_size, device=workload.device)
    return found
