"""Parameters of the stage `benchmark`."""

from __future__ import annotations

from kdpipe.benchmark.settings import BenchmarkSettings
from kdpipe.dataset.settings import DatasetSettings
from kdpipe.distil.settings import StoreSettings
from kdpipe.models.settings import CodeSettings
from kdpipe.settings import Settings


class Benchmark(Settings):
    """Compare trained students: accuracy, agreement with the teacher, size and latency."""

    dataset: DatasetSettings
    measurement: BenchmarkSettings
    stores: StoreSettings
    code: CodeSettings
