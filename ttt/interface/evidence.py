"""What a request says of evidence: how it is found, and what of a document the model reads."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from refine_server.ttt.interface.strict import StrictModel

ReadContext = Literal["document", "passages", "document+passages"]
"""What the model reads before the query: the document, its evidence instead, or both."""
ContextStrategy = Literal["document", "passages", "document+passages", "best"]
"""The same, or ``best``: of the answers in these three ways, the one that is likeliest behind the
evidence alone."""


OnOverflow = Literal["error", "truncate_middle", "passages"]
"""What is done with a document that is too long to be read as a whole: it is refused, its middle is
cut out, or the passages are read that fit the query best."""
OnDocumentOverflow = Literal["error", "truncate_middle"]
"""The same for a document whose query is not known."""


class _Evidence(StrictModel):
    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, json_schema_extra={"required": ["by"]}
    )


class _ChosenEvidence(_Evidence):
    count: int = Field(4, ge=1, le=64)
    """The most chunks of the document that are evidence."""
    tokens: int = Field(128, ge=16, le=1024)
    """The most tokens of a chunk. It ends behind a paragraph, a line, a sentence or a word."""


class EvidenceByWords(_ChosenEvidence):
    """The chunks that have most words in common with the query (BM25).

    Words are compared in Unicode's form NFKC and without case, those of one character included. Of
    scripts without spaces between words (Chinese, Japanese, Thai, …) and of Korean every pair of
    neighbouring characters is compared, and every ideograph.
    """

    by: Literal["bm25"] = "bm25"
    words: str | None = None
    """The words to search by, where the query itself has many that say nothing of what is asked,
    such as instructions. By default the query."""


class EvidenceByAttention(_ChosenEvidence):
    """The chunks to which the question attends most in the unadapted model.

    The model must have layers with softmax attention, and the context must be the document.
    """

    by: Literal["attention"] = "attention"


class EvidenceByUtility(_ChosenEvidence):
    """The chunks behind which the unadapted model predicts the question best.

    Equation 2 of arXiv 2606.06906. The context must be the document.
    """

    by: Literal["utility"] = "utility"


class DocumentSpan(StrictModel):
    """A part of a document, in characters."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    start: int = Field(ge=0)
    """Its first character."""
    end: int = Field(ge=0)
    """One beyond its last character."""


class EvidenceSpans(_Evidence):
    """Parts of the document that the client names."""

    model_config = ConfigDict(json_schema_extra={"required": ["by", "spans"]})

    by: Literal["spans"] = "spans"
    # Not strict: a list is taken as well, which is what JSON has.
    spans: tuple[DocumentSpan, ...] = Field(min_length=1, max_length=64, strict=False)


Evidence = Annotated[
    EvidenceByWords | EvidenceByAttention | EvidenceByUtility | EvidenceSpans,
    Field(discriminator="by"),
]
"""How the evidence for a query is found in a document."""
