"""The structure of a JSON text, counted piece by piece without parsing it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_server.server.http.middleware.json_structure import (
    MAX_STRUCTURE,
    MAX_VALUES,
    JsonStructure,
)

TEXTS = st.text(st.sampled_from('ab,:[]{}"\\\n\u6f22'), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def counted(pieces: list[bytes]) -> JsonStructure:
    structure = JsonStructure()
    for piece in pieces:
        structure.add(piece)
    return structure


def expected(value: Any) -> tuple[int, int]:
    """Return the commas, and the objects, arrays and fields, of a parsed value."""
    if not isinstance(value, dict | list):
        return 0, 0
    inner = [expected(item) for item in (value.values() if isinstance(value, dict) else value)]
    commas = max(len(value) - 1, 0) + sum(item[0] for item in inner)
    fields = len(value) if isinstance(value, dict) else 0
    return commas, 1 + fields + sum(item[1] for item in inner)


@given(JSON, st.booleans(), st.lists(st.integers(0, 200), max_size=6))
def test_the_counts_are_those_of_the_value_wherever_its_text_is_cut(
    value: Any, ensure_ascii: bool, cuts: list[int]
) -> None:
    text = json.dumps(value, ensure_ascii=ensure_ascii).encode()
    places = [0, *sorted(cuts), max(len(text), 200)]
    structure = counted([text[a:b] for a, b in pairwise(places)])
    assert (structure.values, structure.structure) == expected(value)


@given(JSON)
def test_the_counts_are_the_same_byte_by_byte(value: Any) -> None:
    structure = counted([bytes([byte]) for byte in json.dumps(value).encode()])
    assert (structure.values, structure.structure) == expected(value)


@pytest.mark.parametrize(
    ("text", "is_excessive"),
    [
        (b"[" + b"1," * MAX_VALUES + b"1]", False),
        (b"[" + b"1," * (MAX_VALUES + 1) + b"1]", True),
        (b"[" * MAX_STRUCTURE, False),
        (b"[" * (MAX_STRUCTURE + 1), True),
        (b'{"a": {' * (MAX_STRUCTURE // 3), False),
        (b'{"a": {' * (MAX_STRUCTURE // 3 + 1), True),
        (b'"' + b",[{:" * MAX_VALUES + b'"', False),
    ],
)
def test_more_than_a_request_can_need_is_excessive(text: bytes, is_excessive: bool) -> None:
    assert counted([text]).is_excessive is is_excessive
