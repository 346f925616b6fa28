"""Encodings of logits: logits to codes and back, and what that loses.

- ``registry``: ``get_encoding("sqrtp:8,4")`` returns an encoding by name, ``restore_encoding`` the one that a manifest
  describes;
- ``base``: the interface of an encoding, and the registry that each file in ``kinds`` adds its encodings to;
- ``chooser``: ``choose_encoding`` finds the smallest encoding within a budget of KL;
- ``fidelity``: the KL of decoded logits, per row and summed over a store;
- ``settings``: the settings of commands that make a store.
"""
