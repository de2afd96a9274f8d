"""The delta rule (arXiv 2406.06484): an associative memory, overwritten one key at a time."""

CHUNK = 64
"""Tokens between two of the boundary states that ``delta_rule`` returns."""
