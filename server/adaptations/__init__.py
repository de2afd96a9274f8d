"""Adapted documents as resources: the registry, its memory budget and its durable store."""
