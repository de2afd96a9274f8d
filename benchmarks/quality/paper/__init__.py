"""Benchmark: the paper's tables, from its own rows and with its own protocol (arXiv 2602.16704)."""
