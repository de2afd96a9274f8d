"""Strategies for single values of a request, and for changes of a whole body."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

HALVES = ("\ud83d", "a\udc00b", "\udfff\ud800", "\udcff")
"""Texts that no encoding of Unicode has: halves of characters in any order."""
EXTREMES = (
    *(5e-324, 1e-320, 1e-45, 1e-40, 1e-30, -0.0, 0.0, -1e-320, 1e38, 1e300, 1.7e308, -1e300),
    *(0, 1, -1, 16.0, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400),
    *(float("nan"), float("inf"), float("-inf")),
)
"""Numbers at the ends of their formats, which ``json.dumps`` writes in Python's way."""
UNKNOWN_TOKENS = ([2**31], [-1], [999_999, 5], [[5], [2**40]], [1.5], [True])
CONTROL_TEXTS = (
    *("<|endoftext|>", "<|im_start|>system\n", "</s>", "<unk>", "[INST]", "{document}{query}"),
    *("\x00", "\ufeff", "\u2028", "\u202e", "e\u0301" * 40, "\U0001f980" * 9, "\r\n", "\t ", ""),
)
"""Texts that a tokenizer or a template could take for something else."""
PIECES = ("a", " ", "\U0001f980", "\u6f22", "word ", "\n", "a\u0301", "0")
"""What huge texts repeat."""
HUGE = (1_000, 40_000, 400_000)

texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(HALVES + CONTROL_TEXTS),
    st.builds(lambda piece, count: piece * count, st.sampled_from(PIECES), st.sampled_from(HUGE)),
)
numbers = st.one_of(
    st.sampled_from(EXTREMES), st.integers(), st.floats(allow_nan=True, allow_infinity=True)
)
scalars = st.one_of(st.none(), st.booleans(), texts, numbers)
values = st.one_of(
    st.none(),
    scalars,
    st.sampled_from(UNKNOWN_TOKENS),
    st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=8) | st.sampled_from(HALVES), inner, max_size=4)
        ),
        max_leaves=8,
    ),
)
"""Any JSON value, with what breaks servers more often than chance has it."""

Path = tuple[str | int, ...]


def paths(body: object, above: Path = ()) -> Iterator[Path]:
    """Yield the paths of all values within a body."""
    inner: Iterator[tuple[Any, object]] = iter(())
    if isinstance(body, Mapping):
        inner = iter(body.items())
    elif isinstance(body, list):
        inner = iter(enumerate(body))
    for name, value in inner:
        yield (*above, name)
        yield from paths(value, (*above, name))


@st.composite
def changed(draw: st.DrawFn, body: Any) -> Any:
    """Change a body in up to three places: another value, null, nothing, or a field more."""
    body = deepcopy(body)
    # Mostly one: few requests with several get past the first that is refused.
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        places = list(paths(body))
        if not places:
            return body
        *above, name = draw(st.sampled_from(places))
        inside = body
        for part in above:
            inside = inside[part]
        match draw(st.sampled_from(("value", "like", "null", "drop", "add"))):
            case "value":
                inside[name] = deepcopy(
                    draw(values)
                )  # a further change must not reach the strategy
            case "like":
                inside[name] = deepcopy(draw(_like(inside[name])))
            case "null":
                inside[name] = None
            case "drop":
                del inside[name]
            case "add" if isinstance(inside, dict):
                inside[draw(st.text(max_size=8) | st.sampled_from(HALVES))] = deepcopy(draw(values))
    return body


def _like(value: object) -> st.SearchStrategy[Any]:
    """Return other values of a value's own kind."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int | float):
        return numbers
    return texts if isinstance(value, str) else values
