"""The text that each token adds."""

from refine_server.ttt.tracing.token_text import traced_tokens

BYTES = {0: b"Zo", 1: b"\xc3", 2: b"\xab", 3: b" x"}


class Spelled:
    def __call__(self, id: int) -> bytes:
        return BYTES[id]


def test_pieces_joined_are_the_text_and_a_character_is_whole() -> None:
    found = traced_tokens([0, 1, 2, 3], Spelled())  # type: ignore[arg-type]
    assert found.tokens == (0, 1, 2, 3)
    assert found.pieces == ("Zo", "", "ë", " x")


def test_an_unfinished_character_is_replaced() -> None:
    found = traced_tokens([0, 1], Spelled())  # type: ignore[arg-type]
    assert found.pieces == ("Zo", "\N{REPLACEMENT CHARACTER}")
