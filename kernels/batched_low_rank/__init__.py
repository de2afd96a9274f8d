"""A linear projection that requests share, plus a low-rank delta (LoRA) of each request's own."""
