"""What a forward returns."""

from dataclasses import dataclass, field

from torch import Tensor

from refine_server.ttt.models.layers.functional import logits
from refine_server.ttt.models.state import State


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward returns."""

    hidden: Tensor
    """[B, T, D], after the final norm, as fed to the LM head."""
    state: State
    """The state after the last token."""
    head: Tensor = field(repr=False)
    """The LM head's weight, [V, D] or [R, V, D]."""

    @property
    def logits(self) -> Tensor:
        """[B, T, V], computed whenever it is asked for."""
        return logits(self.hidden, self.head)
