"""The fixtures of the store's tests."""

from tests.unit.store.conftest import quickly, small_layout

__all__ = ["quickly", "small_layout"]
