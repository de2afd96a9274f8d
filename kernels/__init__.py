"""The loop's numerical operations: one folder per op, chosen in ``dispatch``."""
