"""Delta-rule models in the layout of flash-linear-attention."""
