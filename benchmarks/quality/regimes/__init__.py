"""Benchmark: how much adapting to a document improves answers, compared with alternatives."""
