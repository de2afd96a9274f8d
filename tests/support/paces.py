"""A pace that is set by hand."""

from typing_extensions import override

from refine_server.ttt.pieces import Pace, PieceKind


class FixedPace(Pace):
    """Pieces of so many tokens, whatever they cost."""

    def __init__(self, tokens: int) -> None:
        super().__init__(parameters=1, device="cpu")
        self._tokens = tokens

    @override
    def tokens(self, kind: PieceKind, layers: int) -> int:
        return self._tokens
