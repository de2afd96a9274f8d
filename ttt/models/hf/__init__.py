"""Models of the transformers library: the overlay on attention models, and delta-rule hybrids."""
