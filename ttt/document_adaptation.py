"""Adaptations to a document whose state is not kept with them: it is read again from its tokens.

Keys and values of a document take a thousand times the bytes of its text. What is kept is what the
adaptation changed, and the tokens that were read; the state under the adapted weights is in the
``DocumentCache``, once, and is read again where it is not.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.errors import DamagedError, IsolationError
from refine_server.ttt.interface.reports import (
    AdaptationReport,
    Citation,
    Overflow,
    overflow_of,
)
from refine_server.ttt.models.state import State

FORMAT = 2
"""Of the description; 1 is that of a document with its state (``document``)."""
FAST, INPUT_IDS = "fast.", "input_ids"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadEnd:
    """Where the reading of a document ended, under the weights that it was read with."""

    hidden: Tensor
    """[1, D], the final hidden state of the last token."""
    state: State
    """The state after it, of one row."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.hidden.nbytes + self.state.nbytes


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentAdaptation:
    """The weights that were adapted to a document, and the document's tokens."""

    kind: ClassVar[Literal["document"]] = "document"
    citations: ClassVar[tuple[Citation, ...]] = ()
    """There are none: it was not aimed at evidence."""
    owner: str
    """The only owner who may use it."""
    fast_weights: FastWeights
    """The adapted weights; the base weights if the adaptation was of no use."""
    input_ids: Tensor
    """[1, T], the prompt up to the end of the document."""
    report: AdaptationReport
    """How the adaptation went."""
    document_tokens: int
    """Tokens of the document itself, without the prompt's header and without its tail."""
    document_key: str
    """Tells its state from the owner's others (``DocumentCache``)."""
    tail: str = ""
    """The document's last characters, which are read with a query."""
    overflow: Overflow | None = None
    """How the document was shortened, if it was."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory, without the document's state."""
        return self.fast_weights.nbytes + self.input_ids.nbytes

    @property
    def read_tokens(self) -> int:
        """Tokens that stand before a query."""
        return self.input_ids.shape[1]

    def require_owner(self, owner: str) -> None:
        """Check that the adaptation is this owner's.

        Raises:
            IsolationError: it is not.
        """
        if self.owner != owner:
            raise IsolationError(f"a document of {self.owner!r} was requested by {owner!r}")
        self.fast_weights.require_owner(owner)

    def dump(self) -> tuple[bytes, dict[str, Any]]:
        """Write it: tensors as safetensors bytes, the rest as a description for JSON."""
        tensors = {FAST + name: self.fast_weights[name] for name in self.fast_weights}
        tensors[INPUT_IDS] = self.input_ids
        description = {
            "format": FORMAT,
            "kind": self.kind,
            "owner": self.owner,
            "document_tokens": self.document_tokens,
            "document_key": self.document_key,
            "tail": self.tail,
            "overflow": self.overflow and self.overflow.model_dump(),
            "report": self.report.model_dump(),
        }
        return save({name: t.contiguous().cpu() for name, t in tensors.items()}), description

    @classmethod
    def restore(cls, data: bytes, description: dict[str, Any], device: torch.device) -> Self:
        """Read what ``dump`` wrote.

        Raises:
            DamagedError: it is of another format.
            KeyError, TypeError, ValueError, SafetensorError: it is damaged.
        """
        if description["format"] != FORMAT:
            raise DamagedError(f"its format is {description['format']!r}, not {FORMAT}")
        tensors = {name: tensor.to(device) for name, tensor in load(data).items()}
        fast = {n.removeprefix(FAST): t for n, t in tensors.items() if n.startswith(FAST)}
        owner = description["owner"]
        return cls(
            owner=owner,
            fast_weights=FastWeights(fast, owner),
            input_ids=tensors[INPUT_IDS],
            report=AdaptationReport.model_validate(description["report"]),
            document_tokens=description["document_tokens"],
            document_key=description["document_key"],
            tail=description["tail"],
            overflow=overflow_of(description),
        )
