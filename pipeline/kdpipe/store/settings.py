"""Settings that a store records about itself."""

from kdpipe.store.sections import Provenance

__all__ = ["Provenance"]
