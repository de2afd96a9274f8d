"""Query-side adaptations that are kept, and how they are written and read.

What is kept is what the adaptation changed, and the document's text. The document's state is the
base model's, so that it is read again wherever it is not in memory.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import Guard
from refine_server.ttt.interface.errors import DamagedError, IsolationError
from refine_server.ttt.interface.reports import (
    AdaptationReport,
    Citation,
    Overflow,
    overflow_of,
)
from refine_server.ttt.models.device import to_host

KEPT_DTYPE = torch.bfloat16
"""The precision of kept deltas: half the bytes of float32, and its range."""
TEXT = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryAdaptation:
    """An adaptation of a model's queries to a document, for any number of later queries."""

    kind: ClassVar[Literal["queries"]] = "queries"
    owner: str
    """The only owner who may use it."""
    document: str
    """The document's text."""
    fast_weights: FastWeights
    """The deltas of query projections; the base weights if the adaptation was of no use."""
    report: AdaptationReport
    """How the adaptation went."""
    document_tokens: int
    """Tokens of what is read of the document."""
    room: int
    """The most tokens that are read of it, for every query alike."""
    document_key: str
    """Tells what is read from the owner's other documents (``DocumentCache``)."""
    guard: Guard = "none"
    """How every answer is guarded (``AdaptConfig.guard``)."""
    citations: tuple[Citation, ...] = ()
    """The evidence that the adaptation was aimed at, in the document's order."""
    overflow: Overflow | None = None
    """How the document is shortened, if it is."""
    pages: tuple[int, ...] = ()
    """First character of each page of the document; empty where it has none."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory, without the document's state."""
        return self.fast_weights.nbytes + len(self.document.encode())

    def require_owner(self, owner: str) -> None:
        """Check that the adaptation is this owner's.

        Raises:
            IsolationError: it is not.
        """
        if self.owner != owner:
            raise IsolationError(f"an adaptation of {self.owner!r} was requested by {owner!r}")
        self.fast_weights.require_owner(owner)

    def dump(self) -> tuple[bytes, dict[str, Any]]:
        """Write it: tensors as safetensors bytes, the rest as a description for JSON."""
        fast = self.fast_weights
        tensors = to_host({name: fast[name].to(KEPT_DTYPE) for name in fast})
        text = torch.frombuffer(bytearray(self.document.encode()), dtype=torch.uint8)
        dtypes = {str(fast[name].dtype).removeprefix("torch.") for name in fast}
        description = {
            "kind": self.kind,
            "owner": self.owner,
            "document_tokens": self.document_tokens,
            "room": self.room,
            "document_key": self.document_key,
            "overflow": self.overflow and self.overflow.model_dump(),
            "dtype": dtypes.pop() if dtypes else None,
            "guard": self.guard,
            "citations": [citation.model_dump() for citation in self.citations],
            "pages": list(self.pages),
            "report": self.report.model_dump(),
        }
        return save({**tensors, TEXT: text}), description

    @classmethod
    def restore(cls, data: bytes, description: dict[str, Any], device: torch.device) -> Self:
        """Read what ``dump`` wrote.

        Raises:
            KeyError, TypeError, ValueError, SafetensorError: it is damaged.
        """
        tensors = load(data)
        text = bytes(tensors.pop(TEXT).numpy()).decode()
        owner = description["owner"]
        return cls(
            owner=owner,
            document=text,
            fast_weights=FastWeights(_widened(tensors, description["dtype"], device), owner),
            report=AdaptationReport.model_validate(description["report"]),
            document_tokens=description["document_tokens"],
            room=description["room"],
            document_key=description["document_key"],
            overflow=overflow_of(description),
            guard=description.get("guard", "none"),
            pages=tuple(description.get("pages", ())),
            citations=tuple(Citation.model_validate(c) for c in description["citations"]),
        )


def _widened(
    tensors: dict[str, Tensor], dtype: str | None, device: torch.device
) -> dict[str, Tensor]:
    if not tensors:
        return {}
    wide = getattr(torch, str(dtype), None)
    if not isinstance(wide, torch.dtype):
        raise DamagedError(f"its weights have the unknown type {dtype!r}")
    return {name: tensor.to(device, wide) for name, tensor in tensors.items()}


def rounded(fast: FastWeights) -> FastWeights:
    """Round deltas to the precision in which they are kept, so that a stored one answers alike."""
    tensors = {name: fast[name].detach().to(KEPT_DTYPE).to(fast[name].dtype) for name in fast}
    return FastWeights(tensors, fast.owner)
