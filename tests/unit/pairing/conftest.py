"""The fixtures of the store's tests."""

from tests.unit.store.conftest import quickly

__all__ = ["quickly"]
