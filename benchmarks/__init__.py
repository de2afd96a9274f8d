"""Benchmarks of speed and quality; with --json, the last line of output is one JSON object."""
