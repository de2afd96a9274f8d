"""Models with an explicit state and explicit fast weights."""

from refine_server.ttt.models.base import CausalLM, ModelError, Output, Trunk
from refine_server.ttt.models.loading.loader import build, load
from refine_server.ttt.models.state import State

__all__ = ["CausalLM", "ModelError", "Output", "State", "Trunk", "build", "load"]
