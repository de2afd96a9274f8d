"""Causal attention over a prefix that branches share and a tail of each branch's own."""
