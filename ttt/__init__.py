"""Test-time training: REFINE on a per-request copy of a model's fast weights."""
