"""Answers that are held to a form: JSON, one of several texts, a pattern or a grammar."""

import json
import re
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
import regex
import torch
from tokenizers import decoders

from refine_server.ttt.decoding.grammar import GrammarCompiler
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import AnswerCompleted, AnswerDelta
from refine_server.ttt.interface.output_format import (
    ANY_OBJECT,
    ChoiceFormat,
    GrammarFormat,
    JsonFormat,
    OutputFormat,
    RegexFormat,
)
from refine_server.ttt.interface.requests import AnswerRequest
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.start import perform
from support import tokenizers

DOCUMENT = "The harbour code is amber. The garden code is coral. The tower code is ivory."
QUERY = "What is the harbour code?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"code": {"enum": ["amber", "coral"]}, "rooms": {"type": "integer"}},
    "required": ["code", "rooms"],
    "additionalProperties": False,
}
NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "names": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
        "inner": {"$ref": "#/$defs/inner"},
    },
    "required": ["names", "inner"],
    "additionalProperties": False,
    "$defs": {
        "inner": {
            "type": "object",
            "properties": {"is": {"type": "boolean"}, "at": {"type": ["null", "integer"]}},
            "required": ["is", "at"],
            "additionalProperties": False,
        }
    },
}
CHOICES = ("amber", "coral red", 'a "quoted" word', "日本語", "two\nlines", "amber light")


def json_form(schema: dict[str, Any]) -> JsonFormat:
    return JsonFormat(json.dumps(schema), "schema")


def is_of(form: OutputFormat, text: str) -> bool:
    """Return whether a text has one of the forms of these tests."""
    if isinstance(form, ChoiceFormat):
        return text in form.choices
    value = json.loads(text)
    match form:
        case JsonFormat(schema) if json.loads(schema) == SCHEMA:
            return value["code"] in ("amber", "coral") and type(value["rooms"]) is int
        case JsonFormat(schema) if json.loads(schema) == NESTED:
            sound = all(len(name) <= 5 for name in value["names"]) and len(value["names"]) <= 2
            return sound and value["inner"].keys() == {"is", "at"}
    return isinstance(value, dict)


FORMS = {
    "schema": json_form(SCHEMA),
    "nested": json_form(NESTED),
    "choice": ChoiceFormat(CHOICES, "choice"),
}


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


def answer(model: CausalLM, form: OutputFormat, **options: Any) -> AnswerCompleted:
    sampling = SamplingConfig(**{"max_tokens": 200, "form": form, **options.pop("sampling", {})})
    adapt = AdaptConfig.model_validate(options.pop("adapt", {"objective": "none"}))
    *events, last = perform(model, AnswerRequest(DOCUMENT, QUERY, adapt, sampling, **options))
    assert isinstance(last, AnswerCompleted)
    assert last.answer == "".join(e.text for e in events if isinstance(e, AnswerDelta))
    return last


def with_tokenizer(kind: str) -> tuple[Any, CausalLM]:
    """Return a tokenizer, with the decoder that published ones have, and what is read of a model.

    Weights may have more rows than the tokenizer has tokens.
    """
    tokenizer = tokenizers.TOKENIZERS[kind]()
    backend = tokenizer.backend_tokenizer
    if backend.decoder is None:
        parts = [decoders.Replace(tokenizers.SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(parts)
    embedding = SimpleNamespace(num_embeddings=len(tokenizer) + 7)
    model = SimpleNamespace(tokenizer=tokenizer, embedding=embedding, stop_ids=frozenset({0}))
    return tokenizer, cast(CausalLM, model)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "kind", ["gpt2_like", "llama3_like", "llama2_like", "mistral_like", "gemma_like"]
)
def test_any_logits_give_a_text_of_the_form_in_any_tokenizer(kind: str, form: OutputFormat) -> None:
    tokenizer, model = with_tokenizer(kind)
    size = model.embedding.num_embeddings
    grammar = GrammarCompiler(model).compile(form)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        matcher, ids = grammar.start(), list[int]()
        while not matcher.is_complete and len(ids) < 400:
            logits = matcher.mask(torch.randn(1, size, generator=generator))
            ids.append(int(logits.argmax()))
            matcher.advance(ids[-1])
        text = tokenizer.decode([id for id in ids if id])
        assert len(ids) == 400 or is_of(form, text.strip(" ")), text


def test_what_the_tokenizer_cannot_write_is_refused() -> None:
    _, model = with_tokenizer("unigram")  # it has no braces
    matcher = GrammarCompiler(model).compile(FORMS["schema"]).start()

    def decode() -> None:
        for _ in range(2):  # a space may come first
            logits = matcher.mask(torch.zeros(1, model.embedding.num_embeddings))
            matcher.advance(int(logits.argmax()))

    with pytest.raises(RequestError, match="no tokens to write it") as refused:
        decode()
    assert refused.value.param == "schema"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_answer_has_the_form(tiny: CausalLM, form: OutputFormat, temperature: float) -> None:
    done = answer(tiny, form, sampling={"temperature": temperature, "seed": 3})
    assert done.finish_reason == "stop"
    assert is_of(form, done.answer)


def test_an_answer_under_adapted_weights_has_the_form(tiny: CausalLM) -> None:
    adapt = {"optimizer": {"steps": 2, "learning_rate": 0.01}, "guard": "none"}
    done = answer(tiny, FORMS["schema"], adapt=adapt, compare_base=True)
    assert done.adaptation.adapted
    assert is_of(FORMS["schema"], done.answer)
    assert done.base_answer is not None
    assert is_of(FORMS["schema"], done.base_answer)


def test_the_model_chooses_among_choices(tiny: CausalLM) -> None:
    for wanted in ("amber", "coral"):
        document = f"The harbour code is {wanted}. "
        form = ChoiceFormat(("coral", "amber", "ivory"), "choice")
        sampling = SamplingConfig(form=form)
        work = AnswerRequest(document, QUERY, AdaptConfig(objective="none"), sampling)
        *_, last = perform(tiny, work)
        assert isinstance(last, AnswerCompleted)
        assert (last.answer, last.finish_reason) == (wanted, "stop")


def test_an_answer_that_is_cut_off_says_so(tiny: CausalLM) -> None:
    done = answer(tiny, FORMS["schema"], sampling={"max_tokens": 4})
    assert done.finish_reason == "length"
    assert done.usage.completion_tokens == 4
    assert done.answer.startswith("{")


def test_a_form_ends_the_answer_where_the_models_own_end_is_ignored(tiny: CausalLM) -> None:
    done = answer(tiny, FORMS["schema"], sampling={"ignore_eos": True})
    assert done.finish_reason == "stop"
    assert is_of(FORMS["schema"], done.answer)


def test_any_object_is_json(tiny: CausalLM) -> None:
    done = answer(tiny, JsonFormat(ANY_OBJECT, "form"))
    assert isinstance(json.loads(done.answer), dict)


UNFIT: dict[str, dict[str, Any]] = {
    "nothing is false": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "longer than it may be": {"type": "string", "minLength": 5, "maxLength": 2},
    "no number between": {"type": "integer", "minimum": 3, "maximum": 1},
    "one of none": {"enum": []},
    "of two types": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "of no type": {"type": "text"},
    "not supported": {"not": {"type": "string"}},
    "somewhere else": {"$ref": "http://127.0.0.1:9/schema.json"},
    "nowhere": {"$ref": "#/$defs/nowhere"},
    "no pattern": {"type": "string", "pattern": "("},
    "too large": {"type": "object", "properties": {f"p{n}": {} for n in range(40_000)}},
}


@pytest.mark.parametrize("schema", UNFIT.values(), ids=UNFIT)
def test_a_schema_that_nothing_fits_is_refused(tiny: CausalLM, schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        GrammarCompiler(tiny).compile(json_form(schema))
    assert (refused.value.param, refused.value.code) == ("schema", "invalid_format")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_schema_nested_too_deeply_is_refused(tiny: CausalLM) -> None:
    schema = '{"items": ' * 1400 + "{}" + "}" * 1400
    with pytest.raises(RequestError) as refused:
        GrammarCompiler(tiny).compile(JsonFormat(schema, "schema"))
    assert refused.value.code == "invalid_format"


@pytest.mark.parametrize(
    "definition", ['{"$ref": "#/$defs/%d"}', '{"items": {"$ref": "#/$defs/%d"}}']
)
def test_a_long_chain_of_references_does_not_end_the_process(
    tiny: CausalLM, definition: str
) -> None:
    links = [f'"{n}": {definition % (n + 1)}' for n in range(350)]
    schema = '{"$ref": "#/$defs/0", "$defs": {' + ", ".join([*links, '"350": {}']) + "}}"
    compiled: list[object] = []
    # Threads have less of a stack than the main one.
    compiler = GrammarCompiler(tiny)
    thread = Thread(target=lambda: compiled.append(compiler.compile(JsonFormat(schema, "schema"))))
    thread.start()
    thread.join()
    assert len(compiled) == 1


def test_clients_cannot_change_how_white_space_is_written(tiny: CausalLM) -> None:
    schema = {**SCHEMA, "x-guidance": {"whitespace_pattern": "x*"}}
    assert is_of(FORMS["schema"], answer(tiny, json_form(schema)).answer)


# -- regular expressions and grammars -------------------------------------------------------------


def texts(tiny: CausalLM, form: OutputFormat) -> list[str]:
    samplings = ({"temperature": 1.0, "seed": seed, "max_tokens": 16} for seed in range(6))
    return [answer(tiny, form, sampling=sampling).answer for sampling in samplings]


@pytest.mark.parametrize(
    "pattern", ["[0-9]{4}-[0-9]{2}", "a/b+c", "(amber|coral)!", "\\d{3}", "x\ny", "^ab$", '"q"']
)
def test_an_answer_matches_a_pattern_as_a_whole(tiny: CausalLM, pattern: str) -> None:
    for text in texts(tiny, RegexFormat(pattern, "pattern")):
        assert regex.fullmatch(pattern, text), text  # which knows newer digits than re


LARK = 'start: code (", " code)~0..2\ncode: "amber" | "coral" NUMBER\nNUMBER: /[0-9]{1,3}/\n'
GBNF = 'root ::= code (", " code)?\ncode ::= "amber" | "coral" [0-9]+\n'


@pytest.mark.parametrize("grammar", [LARK, GBNF])
def test_an_answer_is_of_a_grammar(tiny: CausalLM, grammar: str) -> None:
    code = r"(amber|coral[0-9]{1,12})"
    for text in texts(tiny, GrammarFormat(grammar, "grammar")):
        assert re.fullmatch(f"{code}(, {code})*", text), text


UNFIT_TEXTS: dict[str, OutputFormat] = {
    "look-ahead": RegexFormat("(?=a)b", "form"),
    "not closed": RegexFormat("(a", "form"),
    "nothing": RegexFormat("[^\\s\\S]", "form"),
    "too long": RegexFormat("a" * 20_000, "form"),
    "too deep": RegexFormat("(" * 8_000 + "a" + ")" * 8_000, "form"),
    "too complex": RegexFormat("(a{1000}){1000}", "form"),
    "no grammar": GrammarFormat("hello", "form"),
    "no start": GrammarFormat('code: "a"\n', "form"),
    "endless": GrammarFormat("start: start\n", "form"),
    "too deep a grammar": GrammarFormat("start: " + "(" * 5_000 + '"a"' + ")" * 5_000, "form"),
    "too deep in GBNF": GrammarFormat("root ::= " + "(" * 5_000 + '"a"' + ")" * 5_000, "form"),
    "somewhere else": GrammarFormat("start: @other\n", "form"),
    "growing": GrammarFormat(
        "".join(f"R{n}: R{n + 1} R{n + 1}\n" for n in range(40)) + 'R40: "a"\nstart: R0\n', "form"
    ),
}


@pytest.mark.parametrize("form", UNFIT_TEXTS.values(), ids=UNFIT_TEXTS)
def test_a_pattern_or_grammar_that_cannot_be_is_refused(tiny: CausalLM, form: OutputFormat) -> None:
    with pytest.raises(RequestError) as refused:
        GrammarCompiler(tiny).compile(form)
    assert (refused.value.param, refused.value.code) == ("form", "invalid_format")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
