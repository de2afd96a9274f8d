"""The text of tokens, token by token."""

import codecs
from collections.abc import Sequence

from refine_server.ttt.decoding.token_bytes import TokenBytes
from refine_server.ttt.interface.traces import TracedTokens


def traced_tokens(ids: Sequence[int], token_bytes: TokenBytes) -> TracedTokens:
    """Return tokens with the text that each of them adds."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = len(ids) - 1
    pieces = tuple(decoder.decode(token_bytes(id), n == last) for n, id in enumerate(ids))
    return TracedTokens(tokens=tuple(ids), pieces=pieces)
