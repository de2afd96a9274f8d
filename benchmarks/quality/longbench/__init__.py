"""LongBench (arXiv 2308.14508) over HTTP: rows, prompts, truncation, official metrics."""
