"""Decoding an answer token by token from a state."""

from collections.abc import Generator, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from refine_server.ttt.config import SamplingConfig
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State


@torch.no_grad()
def decode(
    model: CausalLM,
    query: Sequence[int],
    state: State,
    fast: FastWeights,
    sampling: SamplingConfig,
) -> Generator[str, None, tuple[str, str, int]]:
    """Read the query from the document's state, then write the answer.

    Yields the text that each token adds, possibly empty. Returns the whole text, why it ended
    ("stop" or "length"), and how many tokens were decoded. The given state is not changed: any
    number of queries can start from it.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    stops = StopStrings(sampling.stop)
    stream = DecodeStream(skip_special_tokens=True)
    pieces: list[str] = []
    finish, count = "length", 0
    input_ids = torch.tensor([list(query)], device=model.device)
    for _ in range(sampling.max_tokens):
        output = model(input_ids, state, fast)
        state = output.state
        token = _sample(model.head_logits(output.hidden[:, -1], fast)[0], sampling, generator)
        count += 1
        if token in model.stop_ids:
            finish = "stop"
            break
        text = stops.feed(stream.step(_backend(model.tokenizer), token) or "")
        pieces.append(text)
        yield text
        if stops.hit:
            finish = "stop"
            break
        input_ids = torch.tensor([[token]], device=model.device)
    if rest := stops.rest():
        pieces.append(rest)
        yield rest
    return "".join(pieces), finish, count


def _sample(logits: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """One token from logits [V]: greedy at temperature 0, else from the top_p of the mass."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    p = (logits.float() / sampling.temperature).softmax(-1).cpu()
    if sampling.top_p < 1:
        ordered, order = p.sort(descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        p[order[outside]] = 0.0
    return int(torch.multinomial(p, 1, generator=generator))


def _backend(tokenizer: Any) -> Any:
    return tokenizer.backend_tokenizer


class StopStrings:
    """Ends a text before the first stop string, which may come in several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [s for s in stops if s]
        self.hit = False
        self._held = ""

    def feed(self, text: str) -> str:
        """Take more text; return what is certain to stand before any stop string."""
        self._held += text
        found = [at for at in (self._held.find(s) for s in self.stops) if at >= 0]
        if found:
            self.hit = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = max((self._begun(s) for s in self.stops), default=0)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def rest(self) -> str:
        """What was held back in case a stop string followed."""
        held, self._held = self._held, ""
        return held

    def _begun(self, stop: str) -> int:
        """Length of the longest end of the held text that begins the stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
