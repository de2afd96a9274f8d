"""Find, read, check and convert checkpoints."""
