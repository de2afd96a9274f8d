"""Vectors divided by their length: the norm of every layer, and that of keys and queries."""
