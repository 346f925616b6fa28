"""The logit store: codes and their manifest in a Zarr v3 group; an incomplete or damaged one is refused.

- ``reader``: ``open_store`` and ``LogitStore``; ``planes`` and ``blocks`` hold rows in memory, which the ranks of a
  ``machine`` share; ``pieces`` are those of the chunks of ``segments``, the samples that were cached together;
- ``writer``: ``build`` and ``Builder``, from a ``plan``; ``skeleton`` makes and repairs the empty store, ``ledger``
  records finished shards; ``growing`` adds segments, ``adoption`` puts them in their place, ``merging`` joins stores;
- ``manifest`` and its ``sections``, ``arrays``: the description of a store, and the arrays of a split;
- ``partial``: stores of which a part is here; ``claims``: a manifest compared with files and bounds;
- ``inspect`` and ``verify``: summaries and checks.

``docs/reference/format.md`` describes format 1.
"""
