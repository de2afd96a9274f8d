"""Benchmarks of the model's own work, without a server: seconds and memory."""
