"""Causal attention over a prefix that several branches share and a tail of their own."""
