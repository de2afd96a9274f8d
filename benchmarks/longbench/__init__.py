"""LongBench (arXiv 2308.14508) replayed over HTTP: rows, prompts, truncation, official metrics."""
