"""Where to roll out: one position in each chunk of a row (arXiv 2602.16704, section 3.1)."""
