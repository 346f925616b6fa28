"""A store paired with a dataset: joined by sample id, with the teacher's pixels checked by replay probes.

- ``join``: the store's row of each sample of a dataset, checked for changed files and pixels;
- ``moved``: samples that were moved or relabeled since, recognized by content; ``order``: a check by position;
- ``probes``: the teacher's pixels again, and where they differ;
- ``growth``: the samples that a store lacks of a dataset that changed; ``compaction``: a copy without unused rows;
- ``coverage``: the share of a dataset that a store has, before any view is read;
- ``attach``: a dataset with soft targets for other trainers; ``shared`` holds them in memory for workers.
"""
