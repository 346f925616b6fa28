"""Stores at a shared place, of plain files: a folder, a web server, a bucket or a host with ssh.

- ``address`` and ``catalog``: ``URL/NAME@VERSION``, and ``index.json`` with a row for each version;
- ``withholding`` and ``reencoding``: a store without some of its parts, derived without a teacher;
"""
