"""What is wrong with a value, in plain words: pydantic's errors as people are told them."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

WORDS: Mapping[str, str] = {
    "missing": "required",
    "extra_forbidden": "there is no such field",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be an integer"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("string_type", "string_sub_type"), "must be a string"),
    "string_unicode": "must be valid Unicode",
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "iterable_type"), "must be a list"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"), "must be an object"
    ),
    "none_required": "must be null",
    "path_type": "must be a path",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} elements",
    "too_long": "must have at most {max_length} elements",
    "union_tag_invalid": "must be one of {expected_tags}",
    "union_tag_not_found": "required",
}
"""What is said for each of pydantic's types of errors; names in braces are of their context."""

ONE = {"1 characters": "1 character", "1 elements": "1 element"}


def reason(error: Mapping[str, Any]) -> str:
    """Say what is wrong with a value.

    Args:
        error: one of ``ValidationError.errors()``.
    """
    words = WORDS.get(error["type"])
    if words is None:  # of our own validators
        return str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    said = words.format_map(error.get("ctx", {}))
    end = " ".join(said.split()[-2:])
    return said.removesuffix(end) + ONE.get(end, end)


def problems(error: ValidationError) -> str:
    """Say all that is wrong: the dotted path of each field at fault, and the reason."""
    found: Iterable[Mapping[str, Any]] = error.errors()
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {reason(e)}" for e in found)
