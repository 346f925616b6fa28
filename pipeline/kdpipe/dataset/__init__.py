"""Datasets: which samples, in which order, with which ids, labels and pixels.

    train = load("folder:photos", "train")
    train.image(0), train.labels[0], train.sample_ids[0]

``all_kinds`` lists the forms that the first argument takes; ``kdpipe.dataset.registry`` describes how to add one.
"""

from kdpipe.dataset.caching import cache_directory
from kdpipe.dataset.choice import balanced_indices
from kdpipe.dataset.decode import decoder_name
from kdpipe.dataset.forms import Form
from kdpipe.dataset.ids import find_ids, sample_id
from kdpipe.dataset.loading import Loading, load
from kdpipe.dataset.names import Names
from kdpipe.dataset.parts import hold_out, labeled, limit_labels, single_classes
from kdpipe.dataset.pixels import processors
from kdpipe.dataset.registry import Kind, Listing, Request, Source, Survey, all_kinds, register
from kdpipe.dataset.samples import Dataset
from kdpipe.dataset.workers import Shared, worker_context

__all__ = [
    "Dataset",
    "Form",
    "Kind",
    "Listing",
    "Loading",
    "Names",
    "Request",
    "Shared",
    "Source",
    "Survey",
    "all_kinds",
    "balanced_indices",
    "cache_directory",
    "decoder_name",
    "find_ids",
    "hold_out",
    "labeled",
    "limit_labels",
    "load",
    "processors",
    "register",
    "sample_id",
    "single_classes",
    "worker_context",
]
