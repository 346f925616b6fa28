"""Logits of frozen teachers for a store, or for students that train with a live teacher."""
