"""Models with an explicit state and explicit fast weights."""

from refine_server.ttt.models.base import CausalLM, ModelError
from refine_server.ttt.models.loading.loader import build, load
from refine_server.ttt.models.output import Output
from refine_server.ttt.models.state import State
from refine_server.ttt.models.trunk import Frozen, Trunk

__all__ = ["CausalLM", "Frozen", "ModelError", "Output", "State", "Trunk", "build", "load"]
