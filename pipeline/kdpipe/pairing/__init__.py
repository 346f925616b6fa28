"""A store paired with a dataset: joined by sample id, with the teacher's pixels checked by replay probes.

- ``join``: the store's row of each sample of a dataset, checked for changed files and pixels;
- ``recognition``: samples that were moved, relabeled or saved again since, recognized by content or pixels;
- ``probes``: the teacher's pixels again, and where they differ;
- ``growth``: the samples that a store lacks of a dataset that changed; ``compaction``: a copy without unused rows;
- ``coverage``: the share of a dataset that a store has, before any view is read;
- ``classes``: which class of the store each class of a dataset is; ``audit``: labels that its teacher finds unlikely;
- ``attach``: a dataset with soft targets for other trainers, ``given`` joins those of other libraries; ``shared`` and
  ``windowed`` hold soft targets in memory for workers.
"""
