"""Stores at a shared place, of plain files: a folder, a web server, a bucket or a host with ssh.

- ``address`` and ``catalog``: ``URL/NAME@VERSION``, and ``index.json`` with a row for each version;
- ``remote``: ``connect`` and ``Folder``, the files at a place, read with limits; kinds of places are ``disk``, ``web``,
  ``buckets`` and ``host``, by the protocol ``sftp``; ``watching`` cuts off servers that are silent or slow;
- ``published``: a version that was found; ``pulling`` copies it or a part, ``streaming`` opens it where it is, and
  stores in an ``archive``;
- ``withholding`` and ``reencoding``: a store without some of its parts, derived without a teacher;
- ``publishing``: writes a version, its ``card``, ``croissant`` metadata and the ``page`` of the catalog;
- ``signature`` and ``remembered``: who signed a version, and what was seen at a place before;
- ``listing``: the stores at a place as rows.
"""
