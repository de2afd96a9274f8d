"""Decoding under a grammar: tokens that would break an answer's form are masked out.

The library is llguidance, which compiles a form for the tokenizer once and computes the mask of the
next token in microseconds. Each sequence has a matcher of its own, so that a batch may mix forms.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import llguidance
import numpy as np
import torch
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark
from torch import Tensor

from refine_server.ttt.decoding.token_bytes import TokenBytes
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.output_format import (
    ChoiceFormat,
    GrammarFormat,
    JsonFormat,
    OutputFormat,
    RegexFormat,
)
from refine_server.ttt.models.base import CausalLM

WHITE_SPACE = " ?"
"""What may stand between the parts of a JSON value. More would let a model write it for ever."""
MAX_SCHEMA = 16_384
"""Characters of the longest schema. Compiling takes time that grows with their square, and longer
chains of references than fit into it would overflow the stack."""
LIMITS = llguidance.LLParserLimits(initial_lexer_fuel=200_000, verbose_errors=False)
"""Of regular expressions and grammars: the steps of compiling one, some 50,000 in a millisecond."""
PROBED_TOKENS = 2
"""Tokens of a pattern or a grammar that are tried when it is compiled: an expression that is too
complex shows at its first characters, after a second in which the model's thread would wait."""
MAX_REASON = 200
"""Characters of a reason, which may repeat what was sent."""
CODE = "invalid_format"
UNWRITABLE = "the model has no tokens to write it"


class Matcher:
    """How far one text has come in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int, param: str) -> None:
        self._matcher, self._vocabulary, self._param = matcher, vocabulary, param

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: Tensor) -> Tensor:
        """Set the logits [1, V] of all tokens that cannot come next to minus infinity.

        Raises:
            RequestError: the grammar is too complex to go on, or no token can.
        """
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_sound()
        allowed = np.unpackbits(packed, count=self._vocabulary, bitorder="little").astype(bool)
        if not allowed.any():
            raise _invalid(UNWRITABLE, self._param)
        return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)

    def advance(self, token: int) -> None:
        """Take the token that comes next.

        Raises:
            RequestError: the grammar is too complex to go on.
        """
        self._matcher.consume_token(token)
        self._require_sound()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise _invalid(self._matcher.get_error(), self._param)


class Grammar:
    """A compiled form; any number of texts are decoded under it."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int, param: str) -> None:
        self._matcher, self._vocabulary, self._param = matcher, vocabulary, param

    def start(self) -> Matcher:
        """Return the matcher of a text that has not begun."""
        return Matcher(self._matcher.deep_copy(), self._vocabulary, self._param)


class GrammarCompiler:
    """Compiles forms for a model's tokenizer, which is prepared when the first one is needed.

    Its methods may be called from any thread.
    """

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._lock = Lock()

    def compile(self, form: OutputFormat) -> Grammar:
        """Compile a form.

        Raises:
            RequestError: nothing has this form, or the schema uses what is not supported.
        """
        with self._lock:
            tokenizer = self._tokenizer
        param = form.param
        limits = LIMITS if isinstance(form, RegexFormat | GrammarFormat) else None
        matcher = llguidance.LLMatcher(tokenizer, _grammar(form), log_level=0, limits=limits)
        if matcher.is_error():
            raise _invalid(matcher.get_error(), param)
        grammar = Grammar(matcher, self._model.embedding.num_embeddings, param)
        if limits is not None:
            self._probe(grammar)
        return grammar

    def _probe(self, grammar: Grammar) -> None:
        """Raise RequestError if nothing has the form, or it is too complex from its beginning."""
        logits = torch.zeros(1, self._model.embedding.num_embeddings)  # [1, V]
        matcher = grammar.start()
        for _ in range(PROBED_TOKENS):
            allowed = matcher.mask(logits)[0].isfinite().nonzero()[:, 0]
            matcher.advance(int(allowed[-1]))
            if matcher.is_complete:
                return

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        model = self._model
        ends = sorted(model.stop_ids)
        vocabulary = _Vocabulary(model.tokenizer, model.embedding.num_embeddings, ends)
        wrapper = llguidance.TokenizerWrapper(vocabulary)
        return llguidance.LLTokenizer(wrapper, eos_token=ends or None)


class _Vocabulary:
    """A tokenizer's tokens as bytes, as llguidance reads them."""

    def __init__(self, tokenizer: Any, size: int, ends: Sequence[int]) -> None:
        token_bytes = TokenBytes(tokenizer)
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        special = {id for id, token in added.items() if token.special}
        self.tokens = [token_bytes(id) for id in range(max(size, len(tokenizer)))]
        self.special_token_ids = sorted({*special, *tokenizer.all_special_ids, *ends})
        self.bos_token_id = None
        self.eos_token_id = ends[0] if ends else len(self.tokens) - 1

        self._ids = {token: id for id, token in enumerate(self.tokens) if token}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        """Encode a text by its longest tokens; what no token begins with is left out."""
        ids: list[int] = []
        at = 0
        while at < len(text):
            ends = range(min(at + self._longest, len(text)), at, -1)
            end = next((end for end in ends if text[at:end] in self._ids), None)
            if end is not None:
                ids.append(self._ids[text[at:end]])
            at = end or at + 1
        return ids


def _grammar(form: OutputFormat) -> str:
    """Write a form in llguidance's dialect of Lark.

    A space may come first, with which many models begin an answer; the decoder drops it.
    """
    match form:
        case JsonFormat():
            _require_short(form.schema, form.param)
            try:
                schema = json.loads(form.schema)
                options = {"x-guidance": {"whitespace_pattern": WHITE_SPACE}}
                text = json.dumps({**schema, **options})
            except RecursionError:
                raise _invalid("its values are nested too deeply", form.param) from None
            return f'start: " "? form\nform: %json {text}\n'
        case ChoiceFormat():
            choices = " | ".join(json.dumps(choice) for choice in form.choices)
            return f'start: " "? ({choices})\n'
        case RegexFormat():
            _require_short(form.pattern, form.param)
            return _behind_space(f"start: /{regex_to_lark(form.pattern, use_ascii='')}/\n")
        case GrammarFormat():
            _require_short(form.grammar, form.param)
            try:
                return _behind_space(any_to_lark(form.grammar))
            except RecursionError:
                raise _invalid("it is nested too deeply", form.param) from None
            except Exception as error:  # the converter raises nothing more special
                raise _invalid(str(error), form.param) from None


def _behind_space(grammar: str) -> str:
    """Put a grammar of its own, whose start is ``start``, behind the space that may come first."""
    own = {"name": "form", "lark_grammar": grammar}
    return json.dumps({"grammars": [{"lark_grammar": 'start: " "? @form\n'}, own]})


def _require_short(text: str, param: str) -> None:
    if len(text) > MAX_SCHEMA:
        raise _invalid(f"it has more than {MAX_SCHEMA} characters", param)


def _invalid(reason: str, param: str) -> RequestError:
    """Make the error of a form; llguidance's reasons end with an excerpt of the grammar."""
    if reason.startswith("panic"):
        reason = "it is too large"
    if reason.startswith("Parser Error: token"):  # what is forced has no token
        reason = UNWRITABLE
    if "NoExtensionBias" in reason:
        reason = "no text has this form"
    lines = reason.split("failed to compile JSON schema: ")[-1].split("\n")
    # Of a regular expression the first lines repeat it, and a later one says what is wrong.
    said = next((line for line in lines if line.strip().startswith("error: ")), lines[0]).strip()
    return RequestError(f"{param}: {said.removeprefix('error: ')[:MAX_REASON]}", param, CODE)
