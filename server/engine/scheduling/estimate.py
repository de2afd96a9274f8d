"""What a piece of work is expected to cost."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Seconds of work by phase, on a machine that does no other work, and its memory."""

    read: float = 0.0
    """To read the document or the prompts."""
    adapt: float = 0.0
    """To make all steps; fewer are made where time runs out."""
    reread: float = 0.0
    """To read the document once more, under weights that its state depends on."""
    decode: float = 0.0
    """To decode the answer."""
    memory_bytes: int = 0
    """Memory that it takes at its peak, beside the base weights, as predicted."""

    @property
    def finish(self) -> float:
        """Seconds from the last step to the end of the answer."""
        return self.reread + self.decode

    @property
    def total(self) -> float:
        """Seconds of everything that was asked for."""
        return self.read + self.adapt + self.finish

    @property
    def least(self) -> float:
        """Seconds without any step."""
        return self.read + self.finish
