"""LaCT: a large chunk of tokens updates a layer's SwiGLU memory at once (arXiv 2505.23884)."""

from refine_server.ttt.models.families.lact.model import LaCT

__all__ = ["LaCT"]
