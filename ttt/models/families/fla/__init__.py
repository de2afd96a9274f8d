"""Delta-rule models in the layout of flash-linear-attention."""

from refine_server.ttt.models.families.fla.delta_net import DeltaNet
from refine_server.ttt.models.families.fla.gated_delta_net import GatedDeltaNet

__all__ = ["DeltaNet", "GatedDeltaNet"]
