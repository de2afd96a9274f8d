"""A linear projection that requests share, plus the LoRA of each request's own."""
