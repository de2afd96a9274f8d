"""Adapted documents, and how they are written and read: safetensors and JSON, never pickle."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
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
from refine_server.ttt.models.device import to_host
from refine_server.ttt.models.state import STORABLE, State, field_names

FORMAT = 1
FAST, STATE, HIDDEN, INPUT_IDS = "fast.", "state.", "hidden", "input_ids"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptedDocument:
    """A document that any number of queries can be answered from."""

    kind: ClassVar[Literal["document"]] = "document"
    citations: ClassVar[tuple[Citation, ...]] = ()
    """There are none: it was not aimed at evidence."""
    owner: str
    """The only owner who may use it."""
    fast_weights: FastWeights
    """φ, the adapted weights; the base weights if the adaptation was of no use."""
    state: State
    """The state after the document, read under these weights."""
    hidden: Tensor
    """[1, D], the final hidden state of the document's last token."""
    report: AdaptationReport
    """How the adaptation went."""
    document_tokens: int
    """Tokens of the document itself, without the prompt's header and without its tail."""
    input_ids: Tensor | None = None
    """[1, T], what was read: the prompt up to the end of the document. None for one that an earlier
    version stored."""
    tail: str = ""
    """The document's last characters, which the state has not read: they are read with a query."""
    overflow: Overflow | None = None
    """How the document was shortened, if it was."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.fast_weights.nbytes + self.state.nbytes + self.hidden.nbytes

    @property
    def read_tokens(self) -> int:
        """Tokens that stand before a query."""
        return int(self.state.position[0])

    def require_owner(self, owner: str) -> None:
        """Check that the document and its fast weights are this owner's.

        Raises:
            IsolationError: they are not.
        """
        if self.owner != owner:
            raise IsolationError(f"a document of {self.owner!r} was requested by {owner!r}")
        self.fast_weights.require_owner(owner)


def dump(document: AdaptedDocument) -> tuple[bytes, dict[str, Any]]:
    """Write a document: its tensors as safetensors bytes, the rest as a description for JSON."""
    tensors = {FAST + name: document.fast_weights[name] for name in document.fast_weights}
    tensors[HIDDEN] = document.hidden
    if document.input_ids is not None:
        tensors[INPUT_IDS] = document.input_ids
    state = _describe(document.state, tensors, STATE)
    description = {
        "format": FORMAT,
        "owner": document.owner,
        "document_tokens": document.document_tokens,
        "tail": document.tail,
        "overflow": document.overflow and document.overflow.model_dump(),
        "report": document.report.model_dump(),
        "state": state,
    }
    return save(to_host(tensors)), description


def restore(data: bytes, description: dict[str, Any], device: torch.device) -> AdaptedDocument:
    """Read what ``dump`` wrote.

    Raises:
        DamagedError: the bytes or the description are damaged, or of another format.
    """
    try:
        if description["format"] != FORMAT:
            raise DamagedError(f"its format is {description['format']!r}, not {FORMAT}")
        tensors = {name: tensor.to(device) for name, tensor in load(data).items()}
        state = _build(description["state"], tensors)
        if not isinstance(state, State):
            raise DamagedError("the state has an unknown type")
        owner = description["owner"]
        fast = {n.removeprefix(FAST): t for n, t in tensors.items() if n.startswith(FAST)}
        return AdaptedDocument(
            owner=owner,
            fast_weights=FastWeights(fast, owner),
            state=state,
            hidden=tensors[HIDDEN],
            input_ids=tensors.get(INPUT_IDS),
            report=AdaptationReport.model_validate(description["report"]),
            document_tokens=description["document_tokens"],
            tail=description.get("tail", ""),  # documents of version 0.2 have none
            overflow=overflow_of(description),
        )
    except DamagedError:
        raise
    except (KeyError, TypeError, ValueError, SafetensorError, json.JSONDecodeError) as error:
        raise DamagedError(f"it cannot be read: {error!r}") from error


def _describe(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Describe a state for JSON, with the names of its tensors, and add them to ``tensors``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    kind = type(value).__name__
    if STORABLE.get(kind) is type(value):
        fields = {
            field: _describe(getattr(value, field), tensors, f"{name}.{field}")
            for field in field_names(type(value))
        }
        return {"kind": kind, "fields": fields}
    if isinstance(value, tuple):
        return [_describe(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} holds a {kind}, which is not registered as storable")


def _build(form: Any, tensors: dict[str, Tensor]) -> Any:
    match form:
        case {"tensor": name}:
            return tensors[name]
        case {"kind": kind, "fields": fields}:
            return STORABLE[kind](**{n: _build(value, tensors) for n, value in fields.items()})
        case list():
            return tuple(_build(item, tensors) for item in form)
        case _:
            return form
