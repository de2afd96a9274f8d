"""The gate of SwiGLU layers (arXiv 2002.05202)."""
