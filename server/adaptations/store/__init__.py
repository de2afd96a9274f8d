"""Adaptations on disk or in an object store, which several servers may share (docs/store.md)."""
