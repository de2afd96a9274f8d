"""Models of the transformers library: Llama-like attention models, and delta-rule hybrids."""

from refine_server.ttt.models.families.hf.hybrid import Hybrid
from refine_server.ttt.models.families.hf.overlay import Overlay

__all__ = ["Hybrid", "Overlay"]
