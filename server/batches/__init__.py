"""Batches: requests in a file, which are answered at low priority."""
