"""Benchmarks of answers: data sets, generated questions, and their scores."""
