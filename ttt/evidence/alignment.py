"""Places among the tokens of one encoding of a text, in another encoding of it."""

from collections.abc import Callable, Sequence


def align(own: Sequence[int], other: Sequence[int]) -> Callable[[int], int]:
    """Map places between tokens of one encoding of a text to places of another.

    The encodings differ at their ends at most, where the other has a prompt's text around it, and
    where control tokens are spelled out. Between what they begin and end with in common a place is
    mapped in proportion.

    Args:
        own, other: the token ids.
    """
    shorter = min(len(own), len(other))
    head = next((n for n in range(shorter) if own[n] != other[n]), shorter)
    left = shorter - head
    tail = next((n for n in range(left) if own[-1 - n] != other[-1 - n]), left)
    between, others = len(own) - head - tail, len(other) - head - tail

    def place(at: int) -> int:
        if at <= head:
            return at
        if at >= len(own) - tail:
            return len(other) - (len(own) - at)
        return head + (at - head) * others // between

    return place
