"""LaCT: a large chunk of tokens updates the fast weights at once (arXiv 2505.23884)."""
