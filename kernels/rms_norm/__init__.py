"""RMS norm, before and after a layer's parts, and L2 norm, of keys and queries."""
