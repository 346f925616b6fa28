"""The parameters of each stage: one frozen model each, from which flags, params.yaml and help all come."""

from stages.params.base import StageParams
from stages.params.benchmark import Benchmark
from stages.params.storing import CacheTeacher, ImportLogits, StoreParams
from stages.params.training import TrainStudent, TrainTeacher

__all__ = ["Benchmark", "CacheTeacher", "ImportLogits", "StageParams", "StoreParams", "TrainStudent", "TrainTeacher"]
